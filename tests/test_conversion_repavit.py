"""The authors' own outputs, in both forms, from their checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conversion_scripts.convert_repavit import config_for, convert_state_dict
from fusible import RePaViTForImageClassification
from tester.base import relative_error


DATA = Path(__file__).parent / "data" / "repavit"
CASES = sorted(file.stem for file in DATA.glob("vit_*.safetensors"))


def read(case: str) -> tuple[dict, dict, dict, dict]:
    """Their training form, fused form (empty for the baseline), inputs and outputs, and the configuration."""
    tensors = load_file(DATA / f"{case}.safetensors")
    forms = [
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("state_dict.", "fused_state_dict.")
    ]
    return *forms, tensors, json.loads((DATA / f"{case}.json").read_text())


def load(state_dict: dict, facts: dict, by_ratio: bool = True) -> RePaViTForImageClassification:
    channels = {"idle_ratio": facts["idle_ratio"], "idle_schedule": facts["heuristic"]}
    if not by_ratio:
        channels = {"active_channels": list(facts["config"]["act_channels"].values())}
    model = RePaViTForImageClassification(config_for(state_dict, facts["config"]["num_heads"], **channels)).eval()
    model.load_state_dict(convert_state_dict(state_dict))
    return model


@torch.no_grad()
def logits(model: RePaViTForImageClassification, tensors: dict, dtype: torch.dtype) -> torch.Tensor:
    return model.to(dtype)(tensors["input"].to(dtype)).logits


def test_all_cases_are_there():
    assert len(CASES) == 7


@pytest.mark.parametrize("case", CASES)
def test_training_form(case):
    state_dict, _, tensors, facts = read(case)
    model = load(state_dict, facts)
    assert relative_error(logits(model, tensors, torch.float32), tensors["logits_fp64"]) < 1e-4
    assert relative_error(logits(model, tensors, torch.float64), tensors["logits_fp64"]) < 1e-9
    tokens = model.backbone.post_layernorm(model.encode(tensors["input"].double()).last_hidden_state)
    assert relative_error(tokens, tensors["features"].double()) < 1e-5  # theirs are in float32
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["config"]["num_params"]


@pytest.mark.parametrize("case", CASES)
def test_our_fusion_is_theirs(case):
    state_dict, fused_state_dict, tensors, facts = read(case)
    expected = tensors.get("logits_fused_fp64", tensors["logits_fp64"])
    model = load(state_dict, facts)
    assert relative_error(logits(model.fuse(), tensors, torch.float32), expected) < 1e-4
    fused = model.double().fuse()
    assert relative_error(logits(fused, tensors, torch.float64), expected) < 1e-9
    if fused_state_dict:
        theirs = convert_state_dict(fused_state_dict)
        assert {k: v.shape for k, v in fused.state_dict().items()} == {k: v.shape for k, v in theirs.items()}
        for name, tensor in theirs.items():
            assert relative_error(fused.state_dict()[name], tensor.double()) < 1e-5, name
        full = sum(active == 4 * 48 for active in facts["config"]["act_channels"].values())
        count = sum(parameter.numel() for parameter in fused.parameters())
        assert count == facts["num_params_fused"] - full * 48**2, "they keep an identity where all channels are active"


@pytest.mark.parametrize("case", [case for case in CASES if "baseline" not in case])
def test_their_fused_checkpoint(case, tmp_path):
    """Their fused tensors are in float32, so only that can be compared to their fused float64 logits."""
    _, fused_state_dict, tensors, facts = read(case)
    model = load(fused_state_dict, facts)
    assert model.config.fused
    assert relative_error(logits(model, tensors, torch.float32), tensors["logits_fused"]) < 1e-4
    exact = logits(model, tensors, torch.float64)
    assert relative_error(exact, tensors["logits_fused_fp64"]) < 1e-5
    model.save_pretrained(tmp_path)
    reloaded = RePaViTForImageClassification.from_pretrained(tmp_path)
    assert relative_error(logits(reloaded, tensors, torch.float64), exact) < 1e-12


@pytest.mark.parametrize("case", [case for case in CASES if "baseline" not in case])
def test_active_channels_are_the_authors(case):
    """Their rounding, which depends on floating-point noise; a list of channels gives the same model as the ratio."""
    state_dict, _, tensors, facts = read(case)
    by_ratio, by_list = (load(state_dict, facts, by_ratio) for by_ratio in (True, False))
    widths = list(facts["config"]["hidden"].values())
    assert by_ratio.config.active_channels_of(widths) == by_list.config.active_channels
    assert torch.equal(logits(by_ratio, tensors, torch.float32), logits(by_list, tensors, torch.float32))


def test_unknown_names_are_refused():
    state_dict, *_ = read("vit_idle0.5_static")
    with pytest.raises(KeyError, match=r"1 tensors are of no known name: blocks\.0\.mlp\.gate\.weight"):
        convert_state_dict(state_dict | {"blocks.0.mlp.gate.weight": torch.zeros(1)})
