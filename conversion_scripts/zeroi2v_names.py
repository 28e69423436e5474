"""
The tensor names of the authors' ZeroI2V (github.com/MCG-NJU/ZeroI2V), as those of `ZeroI2VForVideoClassification`.

Their backbone is OpenAI's CLIP vision tower, whose names they kept: CLIP itself can be read too.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch

from conversion_scripts.common import rename


Kind = Literal["training", "fused", "clip"]

BLOCK = r"transformer\.resblocks\.(\d+)"
OURS = r"backbone.encoder.layers.\1"

COMMON = {
    r"class_embedding": r"backbone.embeddings.class_embedding",
    r"positional_embedding": r"backbone.embeddings.position_embedding.weight",
    r"temporal_embedding": r"backbone.embeddings.temporal_embedding",
    r"conv1\.weight": r"backbone.embeddings.patch_embedding.weight",
    r"ln_pre\.(weight|bias)": r"backbone.pre_layrnorm.\1",
    r"ln_post\.(weight|bias)": r"backbone.post_layernorm.\1",
    rf"{BLOCK}\.ln_([12])\.(weight|bias)": rf"{OURS}.layer_norm\2.\3",
    r"fc_cls\.(weight|bias)": r"classifier.\1",
    r"proj": None,  # of CLIP; maps to the space of the texts
}
TRAINING = {
    rf"{BLOCK}\.attn\.(q_proj|k_proj|v_proj|out_proj)\.(weight|bias)": rf"{OURS}.self_attn.attention.\2.\3",
    rf"{BLOCK}\.mlp\.c_fc\.(weight|bias)": rf"{OURS}.mlp.ffn.fc1.\2",
    rf"{BLOCK}\.mlp\.c_proj\.(weight|bias)": rf"{OURS}.mlp.ffn.fc2.\2",
    rf"{BLOCK}\.T_Adapter_in\.D_fc1\.(weight|bias)": rf"{OURS}.self_attn.adapter_before.down.\2",
    rf"{BLOCK}\.T_Adapter_in\.D_fc2\.(weight|bias)": rf"{OURS}.self_attn.adapter_before.up.\2",
    rf"{BLOCK}\.S_Adapter\.D_fc1\.(weight|bias)": rf"{OURS}.self_attn.adapter_after.down.\2",
    rf"{BLOCK}\.S_Adapter\.D_fc2\.(weight|bias)": rf"{OURS}.self_attn.adapter_after.up.\2",
    rf"{BLOCK}\.MLP_Adapter\.D_fc1\.(weight|bias)": rf"{OURS}.mlp.adapter_before.down.\2",
    rf"{BLOCK}\.MLP_Adapter\.D_fc2\.(weight|bias)": rf"{OURS}.mlp.adapter_before.up.\2",
    rf"{BLOCK}\.MLP_Adapter_out\.D_fc1\.(weight|bias)": rf"{OURS}.mlp.adapter_after.down.\2",
    rf"{BLOCK}\.MLP_Adapter_out\.D_fc2\.(weight|bias)": rf"{OURS}.mlp.adapter_after.up.\2",
}
FUSED = {
    rf"{BLOCK}\.attn\.(q_proj|k_proj|v_proj|out_proj)\.(weight|bias)": rf"{OURS}.self_attn.\2.\3",
    rf"{BLOCK}\.mlp\.c_fc\.(weight|bias)": rf"{OURS}.mlp.fc1.\2",
    rf"{BLOCK}\.mlp\.c_proj\.(weight|bias)": rf"{OURS}.mlp.fc2.\2",
}
# of a whole CLIP
TEXT = r"transformer\..*|token_embedding\.weight|positional_embedding|ln_final\.\w+|text_projection|logit_scale"
TEXT += r"|input_resolution|context_length|vocab_size"


def bare(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors of the backbone and of the classifier without prefixes; of a whole CLIP those of the vision tower.

    Raises:
        ValueError: if two tensors have one name.
    """
    if any(name.startswith("visual.") for name in state_dict):
        return rename(state_dict, {r"visual\.(.*)": r"\1", TEXT: None})
    return rename(state_dict, {r"(?:backbone|cls_head)\.(.*)": r"\1", r"(.*)": r"\1"})


def kind_of(tensors: Mapping[str, torch.Tensor]) -> Kind:
    """
    Whether these (without prefixes) are a training checkpoint, a merged one, or CLIP without temporal embedding.

    Raises:
        ValueError: if none of these.
    """
    if "transformer.resblocks.0.attn.in_proj_weight" not in tensors:
        raise ValueError(f"These are no tensors of the authors' ZeroI2V or of CLIP: {', '.join(sorted(tensors)[:10])}")
    if any("Adapter" in name for name in tensors):
        return "training"
    return "fused" if "temporal_embedding" in tensors else "clip"


def num_adapters(tensors: Mapping[str, torch.Tensor]) -> Literal[4, 3, 2]:
    """How many adapters the first block has; their `num_tadapter` is 2, 1 or -1."""
    if "transformer.resblocks.0.MLP_Adapter_out.D_fc1.weight" in tensors:
        return 4
    return 3 if "transformer.resblocks.0.S_Adapter.D_fc1.weight" in tensors else 2


def convert_state_dict(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The authors' tensors, or CLIP's, without prefixes, under the names of `ZeroI2VForVideoClassification`.

    Raises:
        ValueError: if a tensor has a name that the authors' models do not have.
    """
    split = {}
    for name, tensor in tensors.items():
        packed = re.fullmatch(rf"({BLOCK}\.attn)\.in_proj_(weight|bias)", name)
        if packed is None:
            split[name] = tensor
            continue
        for part, third in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
            split[f"{packed[1]}.{part}.{packed[3]}"] = third.contiguous()
    return rename(split, COMMON | (FUSED if kind_of(tensors) == "fused" else TRAINING))
