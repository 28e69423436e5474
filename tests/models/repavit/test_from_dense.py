"""RePaViT from dense checkpoints, with and without calibration data."""

import copy
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, TensorDataset
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    ViTConfig,
    ViTForImageClassification,
)

from fusible import BACKBONES, RePaViTConfig, RePaViTForImageClassification, RePaViTModel
from support.model_tests.base import perturb_, relative_error
from support.small_models import SIZES, SMALL_BACKBONES


def save_dense(backbone: str, folder) -> torch.nn.Module:
    config = AutoConfig.for_model(backbone, **SMALL_BACKBONES[backbone])
    model = AutoModel.from_config(config, **BACKBONES[backbone].model_kwargs)
    perturb_(model)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": torch.randn(64, 3, 16, 16), "labels": torch.zeros(64)} for _ in range(4)]


@pytest.mark.parametrize("backbone", [name for name in SMALL_BACKBONES if name != "poolformer"])
def test_layer_norm_and_no_idle_channels_is_the_dense_model(backbone, tmp_path):
    dense = save_dense(backbone, tmp_path)
    model = RePaViTModel.from_dense(tmp_path, idle_ratio=0, ffn_norm="layer").double().eval()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(model(pixels).last_hidden_state, dense.double()(pixels).last_hidden_state) < 1e-9


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_calibration_keeps_the_model(backbone, tmp_path, batches):
    """On other inputs, the error to the dense model is clearly smaller than without."""
    dense = save_dense(backbone, tmp_path)
    pixels = torch.randn(8, 3, 16, 16)
    for norm in ("layer", "batch"):
        if norm == "layer" and backbone == "poolformer":
            continue
        errors = []
        for calibration in (None, batches):
            model = RePaViTModel.from_dense(tmp_path, calibration, idle_ratio=0.5, ffn_norm=norm)
            with torch.no_grad():
                errors.append(relative_error(model.backbone(pixels)[0], dense(pixels)[0]))
        assert errors[1] < 0.9 * errors[0], (norm, errors)
        assert relative_error(model.double().fuse()(pixels.double())[0], model(pixels.double())[0]) < 1e-9


@pytest.mark.parametrize("backbone", ["vit", "swin", "poolformer"])
def test_each_block_runs_once(backbone, tmp_path, batches, monkeypatch):
    """On each batch, first the dense blocks, then the attentions of the others, of which each sees those before it."""
    dense = save_dense(backbone, tmp_path)
    spec, calls = BACKBONES[backbone], []
    name = "attention" if backbone != "poolformer" else "pooling"
    kind = type(next(spec.blocks(dense)).get_submodule(name))
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, *args, **kwargs: calls.append(self) or forward(self, *args, **kwargs)
    )
    RePaViTModel.from_dense(dense, batches, idle_ratio=0.5)
    blocks = len(list(spec.blocks(dense)))
    assert len(calls) == 2 * blocks * len(batches)
    assert all(calls.count(module) == len(batches) for module in calls)


def test_errors_of_earlier_blocks_are_corrected(tmp_path, batches):
    """The last block's target is the dense output, so a refitted one is closer than the dense one."""
    dense = save_dense("vit", tmp_path)
    model = RePaViTModel.from_dense(tmp_path, batches, idle_ratio=0.75)
    last = copy.deepcopy(model)
    exact = RePaViTModel.from_dense(tmp_path, idle_ratio=0)
    last.backbone.layers[-1].feed_forward = exact.backbone.layers[-1].feed_forward
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    with torch.no_grad():
        expected = dense(pixels)[0]
        refitted, kept = ((m.backbone(pixels)[0] - expected).square().mean() for m in (model, last))
    assert refitted < 1.5 * kept


def test_forms_of_calibration_data(tmp_path, batches):
    """One batch, a tensor, batches, examples, a loader and a data set give the same bytes; other seeds others."""
    save_dense("vit", tmp_path)
    pixels = torch.cat([batch["pixel_values"] for batch in batches])[:32]
    examples = [{"pixel_values": image, "labels": 0} for image in pixels]
    forms = {
        "batch": {"pixel_values": pixels},
        "tensor": pixels,
        "batches": iter([{"pixel_values": pixels}]),
        "tensors": [pixels],
        "examples": examples,
        "images": list(pixels),
        "loader": DataLoader(examples, batch_size=32),
        "tuples": DataLoader(TensorDataset(pixels, torch.zeros(32)), batch_size=32),
        "data set": Dataset.from_dict({"pixel_values": pixels.tolist()}).with_format("torch"),
    }
    # fewer tokens than there are, so that the seed chooses
    results = {
        name: RePaViTModel.from_dense(tmp_path, form, idle_ratio=0.5).state_dict() for name, form in forms.items()
    }
    for name, found in results.items():
        for key, value in results["batch"].items():
            assert torch.equal(found[key], value), (name, key)


def test_half_precision_is_fitted_in_full(tmp_path, batches):
    save_dense("vit", tmp_path)
    half = RePaViTModel.from_dense(tmp_path, batches, idle_ratio=0.5, dtype="bfloat16")
    dense = AutoModel.from_pretrained(tmp_path, dtype="bfloat16", add_pooling_layer=False).float()
    full = RePaViTModel.from_dense(dense, batches, idle_ratio=0.5).bfloat16()
    assert half.dtype == torch.bfloat16
    for name, value in full.state_dict().items():
        assert torch.equal(half.state_dict()[name], value), name


def test_statistics_of_the_batch_norms(tmp_path, batches):
    """What the first FFN sees does not depend on the FFNs, so its statistics are those of the dense model."""
    dense = save_dense("vit", tmp_path)
    seen = []
    dense.layers[0].layernorm_after.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    with torch.no_grad():
        for batch in batches:
            dense(batch["pixel_values"])
    before, after = (torch.cat([pair[i] for pair in seen]).flatten(0, 1).double() for i in (0, 1))
    model = RePaViTModel.from_dense(tmp_path, batches, idle_ratio=0.75, ffn_norm="batch")
    ffn = model.backbone.layers[0].feed_forward
    assert relative_error(ffn.input_norm.running_mean, before.mean(0)) < 1e-5
    assert relative_error(ffn.input_norm.running_var, before.var(0, correction=0)) < 1e-5
    normed = ffn.input_norm(before.float())
    assert relative_error(normed.mean(0), after.mean(0)) < 1e-4
    residual = (after - normed) - (after - normed).mean(0)
    centered = before - before.mean(0)
    assert (residual * centered).mean(0).abs().max() < 1e-4, "no slope would be closer"


def test_a_classifier_and_its_labels(tmp_path):
    config = ViTConfig(**SIZES, id2label={0: "cat", 1: "dog", 2: "cow"}, label2id={"cat": 0, "dog": 1, "cow": 2})
    dense = ViTForImageClassification(config)
    dense.save_pretrained(tmp_path / "dense")
    model = RePaViTForImageClassification.from_dense(tmp_path / "dense", idle_ratio=0.5)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "cow"} and model.classifier.out_features == 3
    assert torch.equal(model.backbone.layers[1].attention.q_proj.weight, dense.vit.layers[1].attention.q_proj.weight)
    rows = {tuple(row.tolist()) for row in dense.vit.layers[1].mlp.fc1.weight}
    assert {tuple(row.tolist()) for row in model.backbone.layers[1].feed_forward.fc1.weight} == rows
    model.save_pretrained(tmp_path / "repavit")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "repavit")
    assert torch.equal(
        loaded.backbone.layers[1].feed_forward.fc1.weight, model.backbone.layers[1].feed_forward.fc1.weight
    )
    assert RePaViTConfig.from_backbone(tmp_path / "dense", num_labels=7).num_labels == 7


TOWER = {"text_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}}
CLASSIFIERS = {
    **{name: None for name in ("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "swin")},
    "clip_vision_model": CLIPConfig,
    "siglip_vision_model": SiglipConfig,
}


@pytest.mark.parametrize("backbone", CLASSIFIERS)
def test_the_classifier_and_its_pooling_are_kept(backbone, tmp_path):
    """Without idle channels the logits are the dense classifier's, also of the loaded and the fused model."""
    kind = CLASSIFIERS[backbone]
    if kind is None:
        config = AutoConfig.for_model(backbone, num_labels=5, architectures=[], **SMALL_BACKBONES[backbone])
    else:
        config = kind(vision_config=SMALL_BACKBONES[backbone], num_labels=5, architectures=[], **TOWER)
    dense = AutoModelForImageClassification.from_config(config)
    perturb_(dense)
    dense.double().eval().save_pretrained(tmp_path / "dense")
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = dense(pixels).logits
        for source in (dense, tmp_path / "dense"):
            model = RePaViTForImageClassification.from_dense(source, idle_ratio=0).double()
            assert relative_error(model(pixels).logits, expected) < 1e-9
        model.save_pretrained(tmp_path / "own")
        loaded = RePaViTForImageClassification.from_pretrained(tmp_path / "own")
        assert relative_error(loaded(pixels).logits, expected) < 1e-9
        idle = RePaViTForImageClassification.from_dense(dense, idle_ratio=0.75)
        assert relative_error(idle.fuse()(pixels).logits, idle(pixels).logits) < 1e-9


def test_a_new_classifier_is_said(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("fusible.models.repavit.modeling_repavit.logger.warning", warnings.append)
    dense = ViTForImageClassification(ViTConfig(**SIZES, num_labels=3)).eval()
    same = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    RePaViTForImageClassification.from_dense(dense, idle_ratio=0.5, id2label=same, pooling=None)
    assert not warnings
    for model, options, why in (
        (dense, {"num_labels": 4}, "has other labels"),
        (dense, {"id2label": {0: "a", 1: "b", 2: "c"}}, "has other labels"),
        (dense.vit, {"num_labels": 3}, "has no linear classifier"),
        (dense, {"pooling": "class_token_and_mean"}, "has other pooling"),
    ):
        new = RePaViTForImageClassification.from_dense(model, idle_ratio=0.5, **options)
        assert why in warnings.pop() and new.config.num_labels == new.classifier.out_features
    with pytest.raises(Exception, match="needs tokens of patches"):
        RePaViTConfig(backbone_config={"model_type": "swin"}, pooling="mean")


def test_vision_tower_of_a_clip(tmp_path):
    text = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    clip = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text, projection_dim=8))
    clip.save_pretrained(tmp_path)
    model = RePaViTModel.from_dense(tmp_path, idle_ratio=0.5)
    assert model.config.backbone_config.model_type == "clip_vision_model"
    ours, theirs = model.backbone.encoder.layers[2], clip.vision_model.encoder.layers[2]
    assert torch.equal(ours.self_attn.k_proj.weight, theirs.self_attn.k_proj.weight)
    assert torch.equal(ours.layer_norm1.weight, theirs.layer_norm1.weight)


def test_errors(tmp_path):
    dense = save_dense("vit", tmp_path)
    convert = partial(RePaViTModel.from_dense, tmp_path, idle_ratio=0.5)
    pixels = torch.randn(8, 3, 16, 16)
    for calibration, message in (
        ([], "calibration is empty"),
        ({"input_ids": torch.ones(4, 7)}, "has no pixel_values"),
        (pixels.long(), "torch.int64"),
        (pixels * float("nan"), "not finite"),
        (pixels[:, 0, 0], "dimensions"),
        (pixels[:1], "at least 49 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(calibration)
    with pytest.raises(Exception, match="must be in"):
        RePaViTModel.from_dense(tmp_path, idle_ratio=2.0)
    with pytest.raises(ValueError, match="no plain model"):
        RePaViTModel.from_dense(get_peft_model(copy.deepcopy(dense), LoraConfig(target_modules=["fc1"])))
    # libraries that quantize in place leave no word in the configuration
    quantized = copy.deepcopy(dense)
    quantize_(quantized, Int8WeightOnlyConfig(version=2))
    with pytest.raises(ValueError, match="is quantized"):
        RePaViTModel.from_dense(quantized)
    dense.config.quantization_config = {"quant_method": "quanto"}
    with pytest.raises(ValueError, match="is quantized"):
        RePaViTModel.from_dense(dense)
