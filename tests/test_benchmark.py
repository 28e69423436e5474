"""The counts that cards and tables show, against the paper's formulas."""

import pytest
import torch

from fusible import RePaViTConfig, RePaViTForImageClassification, RePaViTModel
from fusible.benchmark import median_seconds
from fusible.hub.form_facts import count_macs, form_facts, max_difference
from support.small_models import make_model


def authors_vit(width: int, depth: int, heads: int, idle_ratio: float, model_class=RePaViTForImageClassification):
    backbone = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": 16,
    }
    with torch.device("meta"):
        return model_class(RePaViTConfig(backbone_config=backbone, idle_ratio=idle_ratio, num_labels=1000))


@pytest.mark.parametrize(
    ("width", "depth", "heads", "idle_ratio", "parameters", "macs"),
    [  # parameters exact, of both forms; GMACs rounded, with the attention's products, of the fused form
        (192, 12, 3, 0.5, (5_736_040, 4_381_288), 0.99),
        (384, 12, 6, 0.75, (22_087_912, 13_180_648), 2.86),
        (768, 12, 12, 0.75, (86_642_152, 51_132_904), 10.59),
        (1024, 24, 16, 0.75, (304_524_264, 178_375_656), 36.77),
        (1280, 32, 16, 0.75, (632_528_360, 369_851_880), 75.67),
    ],
)
def test_counts_of_the_papers_models(width, depth, heads, idle_ratio, parameters, macs):
    model = authors_vit(width, depth, heads, idle_ratio)
    training, fused = form_facts(model, fused=False), form_facts(model, fused=True)
    assert (training.parameters, fused.parameters) == parameters
    assert fused.num_bytes == 4 * fused.parameters
    # the paper counts all tokens in the last block, of which a classifier needs only the class token
    model = authors_vit(width, depth, heads, idle_ratio, RePaViTModel)
    head, attention = 1000 * width, 196 * (2 * width**2 + 2 * 197 * width)
    last = 196 * (width**2 + 8 * width**2 * (1 - idle_ratio))
    training_macs, fused_macs = (form_facts(model, fused=form).macs + head for form in (False, True))
    assert fused.macs == fused_macs - attention - last
    assert training.macs == training_macs - attention - 196 * 8 * width**2
    tokens, hidden, active = 197, 4 * width, round(4 * width * (1 - idle_ratio))
    outside = depth * (4 * width**2 * tokens + 2 * tokens**2 * width) + 196 * 768 * width + 1000 * width
    assert training_macs == outside + depth * 2 * width * hidden * tokens
    assert fused_macs == outside + depth * (width**2 + 2 * active * width) * tokens
    assert round(fused_macs / 1e9, 2) == macs


def test_attention_counts_on_any_device():
    """The CPU has attention kernels that the counter does not know."""
    config = authors_vit(32, 1, 2, 0.5).config
    on_cpu = RePaViTForImageClassification(config).eval()
    inputs = {name: tensor[:1] for name, tensor in on_cpu.dummy_inputs.items()}
    assert count_macs(on_cpu, **inputs) == form_facts(on_cpu, fused=False).macs


def test_functions_take_turns():
    calls = []
    medians = median_seconds([lambda: calls.append(0), lambda: calls.append(1)], repeats=4, warmup=1)
    assert calls == [0, 1] * 5 and len(medians) == 2


def test_any_accelerator_is_waited_for(monkeypatch):
    """Also the second one, and one that is not CUDA's."""
    waited = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    median_seconds([lambda: None], repeats=2, warmup=1)
    median_seconds([lambda: None], repeats=2, warmup=1, device=torch.device("cuda:1"))
    assert waited == 3 * [torch.device("xpu")] + 3 * [torch.device("cuda:1")]
    median_seconds([lambda: None], device=torch.device("cpu"))
    assert len(waited) == 6


def test_comparing_forms_leaves_every_modules_mode():
    model = make_model(num_labels=3).train()
    fused = model.fuse().train()
    model.backbone.layernorm.eval()  # as somebody who freezes a part
    modes = [[module.training for module in form.modules()] for form in (model, fused)]
    assert max_difference(model, fused)[0] < 1e-4
    assert [[module.training for module in form.modules()] for form in (model, fused)] == modes
