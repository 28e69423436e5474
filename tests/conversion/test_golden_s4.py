"""The authors' own outputs, of blocks and of whole small models of all their versions, in both forms."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import pad
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache

from fusible import S4Model
from support.golden_s4 import CASES, convert, read
from support.model_tests.base import relative_error


pytest_plugins = ["support.kernel_fixture"]
pytestmark = pytest.mark.usefixtures("kernel_path")


def load_block(name: str, folder: Path) -> tuple[S4Model, dict[str, torch.Tensor], dict]:
    """A converted block, the tensors beside its weights with the length before the width, and the facts."""
    tensors, facts = read(name)[1:]
    rate = {} if facts["rate"] == 1 else {"rate": facts["rate"]}
    model = AutoModel.from_pretrained(convert(name, folder), **rate)
    if facts["config"]["transposed"]:
        tensors |= {key: x.mT for key, x in tensors.items() if key == "input" or key.startswith("output_conv")}
    if "lengths" in tensors:
        # behind the ends of rows, their states run on through zeros, and ours stand still
        tensors |= {key: x * mask_of(tensors)[..., None] for key, x in tensors.items() if key.startswith("output_")}
    return model, tensors, facts


def mask_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return (torch.arange(tensors["input"].shape[1]) < tensors["lengths"][:, None]).long()


def run_block(model: S4Model, tensors: dict[str, torch.Tensor], **arguments) -> torch.Tensor:
    mask = mask_of(tensors) if "lengths" in tensors else None
    outputs = model(input_values=tensors["input"], attention_mask=mask, **arguments).last_hidden_state
    return outputs if mask is None else outputs * mask[..., None]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("block_")])
@torch.no_grad()
def test_blocks(name, tmp_path, monkeypatch):
    model, tensors, facts = load_block(name, tmp_path)
    fused, ssm, kernel = model.fuse(), model.layers[0].mixer.ssm, tensors["kernel_fp64"]
    is_cut_off = "lmax64" in name
    taps = min(kernel.shape[-1], 64) if is_cut_off else kernel.shape[-1]
    assert relative_error(ssm.kernel(taps).movedim(1, 0), kernel[..., :taps]) < 1e-7
    outputs = run_block(model, tensors)
    if tensors.get("output_step") is not None:
        bound = 1e-5 if is_cut_off else max(2 * facts["err"]["step"], 1e-5)
        for form in (model, fused):
            assert (run_block(form, tensors) - tensors["output_step"]).abs().max() < bound
    if is_cut_off:
        # their convolution stops after l_max steps; their recurrence does not, and neither does ours
        whole = ssm.kernel
        monkeypatch.setattr(ssm, "kernel", lambda length, *dtype: pad(whole(64, *dtype), (0, length - 64)))
        outputs = run_block(model, tensors)
        fused = model
    assert (outputs - tensors["output_conv"]).abs().max() < max(2 * facts["err"]["conv"], 1e-5)
    expected = tensors["output_conv_fp64"]
    for form in (model, fused):
        assert relative_error(run_block(form, tensors), expected) < 1e-5
    assert relative_error(run_block(model.double(), tensors), expected) < 1e-6
    if "state.initial" in tensors:
        cache = DynamicCache(config=model.config)
        cache.update_recurrent_state(tensors["state.initial"].double(), 0)
        cache.layers[0].has_previous_state[0] = True
        outputs = run_block(model, tensors, cache=cache)
        assert relative_error(outputs, tensors["state.output_conv"]) < 1e-5
        after = cache.get_recurrent_state(0)
        assert relative_error(after, tensors["state.next_state"]) < 3e-5  # their single precision


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("old_")])
@torch.no_grad()
def test_blocks_of_older_versions(name, tmp_path):
    """`free` are those whose Q is not the conjugate of P; for all, Cauchy sums were taken in double precision."""
    tensors, facts = read(name)[1:]
    model = AutoModel.from_pretrained(convert(name, tmp_path))
    for form in (model, model.fuse()):
        assert relative_error(run_block(form, tensors), tensors["output"]) < 2e-6
    assert model.config.mode == ("diag" if "free" in name or "diag" in name else "dplr")
    assert model.config.bidirectional == facts["config"].get("bidirectional", False)


@torch.no_grad()
def test_minimal_s4d(tmp_path):
    tensors = read("stack_minimal_s4d")[1]
    model = AutoModel.from_pretrained(convert("stack_minimal_s4d", tmp_path))
    assert relative_error(model.layers[0].mixer.ssm.kernel(128)[:, 0], tensors["kernel"]) < 1e-5
    for form in (model, model.fuse()):
        outputs = form(input_values=tensors["input"].mT).last_hidden_state
        assert relative_error(outputs, tensors["output"].mT) < 1e-5


@pytest.mark.parametrize(
    "name",
    ["lra_like_prenorm_batch_bi", "cifar_like_postnorm_layer_bi", "prenorm_transposedLN_uni", "s4d_prenorm_layer_uni"],
)
@torch.no_grad()
def test_classifiers(name, tmp_path):
    tensors = read(f"stack_{name}")[1]
    model = AutoModelForSequenceClassification.from_pretrained(convert(f"stack_{name}", tmp_path))
    for form, dtype in ((model, torch.float32), (model.fuse(), torch.float32), (model.double(), torch.float64)):
        outputs = form(input_values=tensors["input"].to(dtype), output_hidden_states=True)
        assert relative_error(outputs.logits, tensors["output"]) < 1e-5
        assert relative_error(outputs.hidden_states[-1], tensors["hidden"]) < 1e-5


@torch.no_grad()
def test_language_model(tmp_path):
    tensors = read("stack_wt103_like_lm")[1]
    model = AutoModelForCausalLM.from_pretrained(convert("stack_wt103_like_lm", tmp_path))
    ids = tensors["input"]
    assert relative_error(model.embeddings(ids), tensors["embeddings"]) < 1e-6
    for form in (model, model.fuse(), model.double()):
        assert relative_error(form(ids).logits, tensors["logprobs"]) < 1e-5
        assert relative_error(form(ids).logits, tensors["output_step"]) < 1e-4
    fused, cache, steps = model.fuse(), None, []
    for piece in ids.split(1, dim=1):
        outputs = fused(piece, cache=cache, use_cache=True)
        cache = outputs.cache
        steps.append(outputs.logits)
    assert relative_error(torch.cat(steps, dim=1), model(ids).logits) < 1e-9
