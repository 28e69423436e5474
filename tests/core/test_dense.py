"""Models at hand to start from: they stay as they are, and give what their folder gives."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageClassification, CLIPConfig, CLIPModel, PreTrainedModel, ViTModel

from fusible import (
    EWAForImageClassification,
    EWAModel,
    RePaViTForImageClassification,
    RePaViTForZeroShotImageClassification,
    RePaViTModel,
    ZeroI2VForVideoClassification,
)
from support.model_tests.base import perturb_
from support.small_models import SIZES, backbone_of


TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}


def make_dense(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "clip":
        model: PreTrainedModel = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=TEXT, projection_dim=8))
    elif name == "vit without head":
        model = ViTModel(AutoConfig.for_model(**backbone_of("vit")))
    else:
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model(**backbone_of(name)))
    perturb_(model)
    return model.train()


CASES = [
    (EWAForImageClassification, "swin", {"num_experts": 2}),
    (EWAModel, "vit without head", {"num_experts": 2}),
    (RePaViTForImageClassification, "vit", {"idle_ratio": 0.5}),
    (RePaViTModel, "vit without head", {"idle_ratio": 0.5, "ffn_norm": "layer"}),
    (RePaViTModel, "clip", {"idle_ratio": 0.5}),
    (RePaViTForZeroShotImageClassification, "clip", {"idle_ratio": 0.5}),
    (ZeroI2VForVideoClassification, "clip", {"num_frames": 3, "num_labels": 4}),
    (ZeroI2VForVideoClassification, "dinov2", {"num_frames": 3, "num_labels": 4}),
]


@pytest.mark.parametrize(("model_class", "name", "options"), CASES)
def test_a_model_at_hand(model_class, name, options, tmp_path):
    dense = make_dense(name)
    dense.save_pretrained(tmp_path)
    before, config = copy.deepcopy(dense.state_dict()), dense.config.to_dict()
    modules = [(path, type(module), module.training) for path, module in dense.named_modules()]
    from_folder = model_class.from_dense(tmp_path, **options)
    model = model_class.from_dense(dense, **options)
    assert model.config.structure_digest() == from_folder.config.structure_digest()
    found, expected = model.state_dict(), from_folder.state_dict()
    assert found.keys() == expected.keys()
    for path, tensor in found.items():
        if not path.startswith("classifier.") and "adapter" not in path:  # which are new
            assert torch.equal(tensor, expected[path]), path
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.config.id2label = {0: "changed"}
    assert dense.config.to_dict() == config
    assert [(path, type(module), module.training) for path, module in dense.named_modules()] == modules
    assert dense.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[path]) for path, tensor in dense.state_dict().items())


def test_models_of_another_kind():
    with pytest.raises(ValueError, match="RePaViTConfig has no 'idle_ration'. Did you mean idle_ratio?"):
        RePaViTModel.from_dense(make_dense("vit"), idle_ration=0.5)
    with pytest.raises(ValueError, match="nothing to load with token"):
        ZeroI2VForVideoClassification.from_dense(make_dense("vit"), num_frames=2, token="secret")
    with pytest.raises(
        ValueError, match="The ViTForImageClassification at hand does not fit .* lacks pooler.dense.bias"
    ):
        EWAModel.from_dense(make_dense("vit"))


@pytest.mark.parametrize(("model_class", "name", "options"), CASES[:2] + CASES[5:6])
def test_checkpoints_that_lack_weights(model_class, name, options, tmp_path):
    """transformers draws them at random and logs it."""
    dense = make_dense(name)
    dense.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name, tensor in weights.items() if ".0." in name and tensor.ndim == 2)
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks"):
        model_class.from_dense(tmp_path, **options)
