"""Whole small models of the authors: their weights under our names give their outputs, in both forms."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusible import S4Config, S4ForCausalLM, S4ForSequenceClassification
from tester.base import relative_error


DATA = Path(__file__).parent / "data" / "s4"
NAMES = {
    r"encoder\.0\.emb_layers\.(\d)\.weight": r"embeddings.table_\1",
    r"encoder\.0\.emb_projs\.(\d)": r"embeddings.projection_\1",
    r"encoder\.0\.": r"embeddings.",
    r"model\.layers\.(\d+)\.layer\.layer\.(kernel\.)?": r"layers.\1.mixer.ssm.",
    r"model\.layers\.(\d+)\.layer\.output_linear\.0\.": r"layers.\1.mixer.out_proj.",
    r"model\.layers\.(\d+)\.layer\.ff\.0\.0\.": r"layers.\1.mixer.fc1.",
    r"model\.layers\.(\d+)\.layer\.ff\.2\.": r"layers.\1.mixer.fc2.",
    r"model\.layers\.(\d+)\.norm\.norm\.": r"layers.\1.norm.",
    r"model\.norm\.norm\.": r"final_norm.",
    r"decoder\.0\.output_transform\.": r"classifier.",
    r"loss\.out_projs\.0": r"lm_head.projection",
    r"loss\.out_layers_biases\.": r"lm_head.biases.",
    r"loss\.cluster_": r"lm_head.cluster_",
}


def load(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict]:
    """Weights under our names, the other tensors, and the authors' configuration."""
    tensors = load_file(DATA / f"{name}.safetensors")
    weights = {}
    for key in [key for key in tensors if key.startswith("state_dict.")]:
        tensor, ours = tensors.pop(key), key.removeprefix("state_dict.")
        if ours.startswith("loss_val.") or "shared_out_projs" in ours or ours.endswith("l_kernel"):
            continue  # copies, and the length, which is in the configuration
        pattern = next(pattern for pattern in NAMES if re.match(pattern, ours))
        ours = re.sub(pattern, NAMES[pattern], ours)
        ours = re.sub(r"norm\.m$", "norm.shift", re.sub(r"norm\.s$", "norm.scale", ours))
        weights[ours] = tensor[0] if ours.endswith("ssm.B") else tensor
    return weights, tensors, json.loads((DATA / f"{name}.json").read_text())["config"]


@pytest.mark.parametrize(
    "name",
    ["lra_like_prenorm_batch_bi", "cifar_like_postnorm_layer_bi", "prenorm_transposedLN_uni", "s4d_prenorm_layer_uni"],
)
@torch.no_grad()
def test_classifiers(name):
    weights, tensors, theirs = load(f"stack_{name}")
    stack, layer = theirs["backbone"], theirs["layer"]
    mode = "diag" if layer["mode"] == "diag" else "dplr"
    config = S4Config(
        input_size=theirs["d_input"],
        num_labels=theirs["n_classes"],
        hidden_size=stack["d_model"],
        num_hidden_layers=stack["n_layers"],
        state_size=layer["d_state"],
        mode=mode,
        num_ssm=layer["n_ssm"] or stack["d_model"],
        bidirectional=layer.get("bidirectional", False),
        dt_transform=layer["dt_transform"],
        l_max=layer["l_max"] if mode == "dplr" else None,
        norm="scalar" if stack["transposed"] else stack["norm"],
        prenorm=stack["prenorm"],
    )
    model = S4ForSequenceClassification(config)
    model.load_state_dict(weights)
    model.eval()
    for form, dtype in ((model, torch.float32), (model.double(), torch.float64), (model.fuse(), torch.float64)):
        values = tensors["input"].to(dtype)
        assert relative_error(form(input_values=values).logits, tensors["output"]) < 1e-4, (type(form), dtype)
        hidden = form(input_values=values, output_hidden_states=True).hidden_states[-1]
        assert relative_error(hidden, tensors["hidden"]) < 1e-4


@torch.no_grad()
def test_language_model():
    weights, tensors, theirs = load("stack_wt103_like_lm")
    config = S4Config(
        vocab_size=theirs["vocab"],
        hidden_size=theirs["d_model"],
        num_hidden_layers=3 * theirs["n_layers"],
        layer_pattern=["s4", "s4", "ffn"],
        cutoffs=theirs["cutoffs"],
        div_val=theirs["div_val"],
        l_max=theirs["l_max"],
        hidden_dropout_prob=0.25,
    )
    model = S4ForCausalLM(config)
    model.load_state_dict(weights)
    model.eval()
    ids = tensors["input"]
    assert relative_error(model.embeddings(ids), tensors["embeddings"]) < 1e-6
    for form in (model, model.double(), model.fuse()):
        assert relative_error(form(ids).logits, tensors["logprobs"]) < 1e-4
        assert relative_error(form(ids).logits, tensors["output_step"]) < 1e-4
    cache, steps = None, []
    for piece in ids.split(1, dim=1):
        outputs = form(piece, cache_params=cache, use_cache=True)
        cache = outputs.cache_params
        steps.append(outputs.logits)
    assert relative_error(torch.cat(steps, dim=1), model(ids).logits) < 1e-9
