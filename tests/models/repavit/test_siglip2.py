"""SigLIP 2's vision tower, which takes padded patches of images of any size, and says which are padding."""

import inspect

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import Siglip2Config, Siglip2Model

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    EWAModel,
    RePaViTBackbone,
    RePaViTConfig,
    RePaViTForImageClassification,
    RePaViTModel,
    ZeroI2VConfig,
    ZeroI2VModel,
)
from fusible.hub.form_facts import form_facts
from support.model_tests.base import perturb_, relative_error
from support.model_tests.equivalence import EquivalenceTests
from support.repavit_cases import RePaViTCases
from support.small_models import SIGLIP2


def patches(batch_size: int) -> dict[str, torch.Tensor]:
    shapes = torch.tensor([[3, 3], [2, 3], [1, 5]]).repeat(batch_size, 1)[:batch_size]
    mask = (torch.arange(9) < shapes.prod(1, keepdim=True)).long()
    return {
        "pixel_values": torch.randn(batch_size, 9, 48),
        "pixel_attention_mask": mask,
        "spatial_shapes": shapes,
    }


class TestSiglip2(EquivalenceTests):
    model_classes = (RePaViTModel, RePaViTForImageClassification)
    cases = ("batch", "layer")
    main_cases = ("batch",)

    def make_config(self, case):
        return RePaViTConfig(backbone_config=SIGLIP2, num_labels=5, ffn_norm=case)

    def make_inputs(self, config, batch_size=3):
        return patches(batch_size) | {"labels": torch.arange(batch_size) % 5}

    take_method_out = RePaViTCases.take_method_out


@pytest.fixture
def siglip() -> Siglip2Model:
    sizes = {key: value for key, value in SIGLIP2.items() if key != "model_type"}
    text = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 2}
    text |= {"intermediate_size": 32, "projection_size": 16, **tokens}
    model = Siglip2Model(Siglip2Config(vision_config=sizes, text_config=text)).eval()
    perturb_(model)
    return model


def test_from_a_siglip2(siglip):
    """Without idle channels and with LayerNorm it is that tower; what is padding has no effect on the feature."""
    model = RePaViTModel.from_dense(siglip, idle_ratio=0, ffn_norm="layer").eval()
    inputs = patches(3)
    with torch.no_grad():
        expected = siglip.vision_model(**inputs).pooler_output
        assert relative_error(model(**inputs).pooler_output, expected) < 1e-6
        inputs["pixel_values"][1, 6:] = 100.0
        assert relative_error(model(**inputs).pooler_output, expected) < 1e-5
    calibrated = RePaViTForImageClassification.from_dense(siglip, calibration=[patches(8)], num_labels=3)
    assert calibrated(**patches(2), labels=torch.tensor([0, 2])).loss.isfinite()


def test_sizes_of_both_forms():
    model = RePaViTForImageClassification(RePaViTConfig(backbone_config=SIGLIP2))
    before, after = (form_facts(model, fused) for fused in (False, True))
    # per block and patch: two linears of 16 x 64, in their place three of 16 x 16
    assert before.macs - after.macs == 3 * 16 * (2 * 16 * 64 - 3 * 16 * 16)


def test_other_methods():
    model = EWAModel(EWAConfig(backbone_config=SIGLIP2, num_experts=2)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**model.dummy_inputs)[0], model.fuse()(**model.dummy_inputs)[0])
    for kind in (RePaViTModel, RePaViTForImageClassification, EWAModel, EWAForImageClassification):
        # Trainer gives a model the columns that its forward pass names
        assert {*patches(1)} <= inspect.signature(kind.forward).parameters.keys()
    with pytest.raises(ValueError, match="no feature maps of 'siglip2_vision_model'"):
        RePaViTBackbone(RePaViTConfig(backbone_config=SIGLIP2))
    with pytest.raises(StrictDataclassClassValidationError, match="no attention within images of one size"):
        ZeroI2VModel(ZeroI2VConfig(backbone_config=SIGLIP2))
