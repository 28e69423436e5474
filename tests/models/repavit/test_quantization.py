"""Weights in few bits, by torchao and optimum-quanto through transformers, in both forms."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torchao.quantization import Int8WeightOnlyConfig
from transformers import QuantoConfig, TorchAoConfig

from fusible import RePaViTConfig, RePaViTForImageClassification
from support.model_tests.base import relative_error
from support.small_models import SMALL_BACKBONES, make_model, make_trainer


# wide enough that the errors of both forms are averages over many roundings
WIDE = {"hidden_size": 64, "intermediate_size": 256}
OTHER_WIDTHS = {
    "swin": {"embed_dim": 32},
    "poolformer": {"hidden_sizes": [32, 64]},
    "point_vit": {"num_groups": 16, "group_size": 4, "num_hidden_layers": 3, "num_attention_heads": 2, **WIDE},
}
LIBRARIES = {
    "torchao": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
    "quanto": lambda: QuantoConfig(weights="int8"),
}


def make_trained(backbone: str, **options) -> tuple[RePaViTForImageClassification, torch.Tensor]:
    """A model that was trained for some steps, and inputs that it has not seen."""
    sizes = SMALL_BACKBONES.get(backbone, {}) | OTHER_WIDTHS.get(backbone, WIDE)
    config = RePaViTConfig(backbone_config={"model_type": backbone, **sizes}, num_labels=32, **options)
    model = RePaViTForImageClassification(config).train()
    inputs = torch.randn(192, *((32, 3) if backbone == "point_vit" else (3, 16, 16)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(inputs[:64]).logits, torch.arange(64) % 32)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), inputs[64:]


@torch.no_grad()
def logits(model, inputs: torch.Tensor) -> torch.Tensor:
    return model(inputs).logits


def quantized(folder, library: str) -> RePaViTForImageClassification:
    return RePaViTForImageClassification.from_pretrained(folder, quantization_config=LIBRARIES[library]())


CASES = [(backbone, "batch") for backbone in (*SMALL_BACKBONES, "point_vit")] + [("vit", "layer")]


@pytest.mark.parametrize(("backbone", "ffn_norm"), CASES)
def test_int8_costs_the_fused_form_no_more_than_the_training_form(backbone, ffn_norm, tmp_path):
    model, inputs = make_trained(backbone, ffn_norm=ffn_norm)
    expected = logits(model, inputs)
    for fused in (False, True):
        model.save_pretrained(tmp_path / str(fused), fused=fused)
    for library in LIBRARIES:
        training, fused = (
            torch.dist(logits(quantized(tmp_path / str(form), library), inputs), expected) / expected.norm()
            for form in (False, True)
        )
        assert 1e-4 < training < 0.05
        assert fused <= 1.15 * training, library


def test_quantized_fused_models_are_saved_and_loaded(tmp_path):
    model = make_model(num_labels=3)
    model.save_pretrained(tmp_path / "fused", fused=True)
    expected = quantized(tmp_path / "fused", "torchao")
    expected.save_pretrained(tmp_path / "int8")
    found = RePaViTForImageClassification.from_pretrained(tmp_path / "int8")
    assert found.config.fused
    assert type(found.backbone.layers[0].feed_forward.ffn.linear.weight).__name__ == "Int8Tensor"
    inputs = torch.randn(4, 3, 16, 16)
    assert torch.equal(logits(found, inputs), logits(expected, inputs))


def test_lora_on_a_fused_model(tmp_path):
    """Trained on the linears of the fused FFN, reloaded on the fused model, and merged into it."""
    model = make_model(num_labels=3)
    model.save_pretrained(tmp_path / "fused", fused=True)
    fused = RePaViTForImageClassification.from_pretrained(tmp_path / "fused")
    config = LoraConfig(target_modules=["linear", "up", "down", "q_proj"], modules_to_save=["classifier"])
    adapted = get_peft_model(fused, config)
    make_trainer(adapted, tmp_path / "out").train()
    inputs = torch.randn(4, 3, 16, 16)
    expected = logits(adapted.eval(), inputs)
    assert relative_error(expected, logits(model, inputs)) > 0.01
    adapted.save_pretrained(tmp_path / "adapter")
    base = RePaViTForImageClassification.from_pretrained(tmp_path / "fused")
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(logits(reloaded, inputs), expected)
    merged = reloaded.merge_and_unload()
    assert relative_error(logits(merged, inputs), expected) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    loaded, info = RePaViTForImageClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()) and loaded.config.fused
    assert torch.equal(logits(loaded, inputs), logits(merged, inputs))
