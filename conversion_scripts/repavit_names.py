"""
The tensor names of the authors' RePaViT (github.com/Ackesnal/RePaViT), as those of `RePaViTForImageClassification`.

Their ViT is transformers' CLIP vision tower: no bias in the patch embedding, a LayerNorm after the position embedding,
and a class token. Their Swin is Microsoft's.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch

from conversion_scripts.common import rename
from fusible.models.repavit.earlier_format import without_identity


Architecture = Literal["vit", "swin"]

EXPANSION = 4  # hidden channels of all their FFNs, relative to the width; fused tensors do not show it
BLOCK = r"(?:blocks|layers)\.(\d+|\d+\.blocks\.\d+)"  # in ViT blocks.0, in Swin layers.0.blocks.0
OURS = r"backbone.encoder.layers.\1"

TRAINING_FFN = {
    rf"{BLOCK}\.mlp\.(fc1|fc2)\.(weight|bias)": rf"{OURS}.feed_forward.\2.\3",
    rf"{BLOCK}\.mlp\.norm1\.(\w+)": rf"{OURS}.feed_forward.input_norm.\2",
    rf"{BLOCK}\.mlp\.norm2\.(\w+)": rf"{OURS}.feed_forward.hidden_norm.\2",
    rf"{BLOCK}\.mlp\.norm\.(weight|bias)": rf"{OURS}.feed_forward.input_norm.\2",  # the LayerNorm baseline
}
# their fused FFN reuses fc1 and fc2 for other things
FUSED_FFN = {
    rf"{BLOCK}\.mlp\.linear\.(weight|bias)": rf"{OURS}.feed_forward.ffn.\2",  # a block without active channels
    rf"{BLOCK}\.mlp\.(ffn\.fc[12]\.(weight|bias))": rf"{OURS}.feed_forward.\2",  # a block without idle ones
    rf"{BLOCK}\.mlp\.fc1\.(weight|bias)": rf"{OURS}.feed_forward.ffn.linear.\2",
    rf"{BLOCK}\.mlp\.fc2\.(weight|bias)": rf"{OURS}.feed_forward.ffn.up.\2",
    rf"{BLOCK}\.mlp\.fc3\.weight": rf"{OURS}.feed_forward.ffn.down.weight",
}
VIT = {
    r"cls_token": r"backbone.embeddings.class_embedding",
    r"pos_embed": r"backbone.embeddings.position_embedding.weight",
    r"patch_embed\.proj\.weight": r"backbone.embeddings.patch_embedding.weight",
    r"norm_pre\.(weight|bias)": r"backbone.pre_layrnorm.\1",
    rf"{BLOCK}\.attn\.norm\.(weight|bias)": rf"{OURS}.layer_norm1.\2",
    rf"{BLOCK}\.attn\.(q_proj|k_proj|v_proj)\.(weight|bias)": rf"{OURS}.self_attn.\2.\3",
    rf"{BLOCK}\.attn\.proj\.(weight|bias)": rf"{OURS}.self_attn.out_proj.\2",
    r"norm\.(weight|bias)": r"backbone.post_layernorm.\1",
    r"head\.(weight|bias)": r"classifier.\1",
}
SWIN = {
    r"patch_embed\.proj\.(weight|bias)": r"backbone.embeddings.patch_embeddings.projection.\1",
    r"patch_embed\.norm\.(weight|bias)": r"backbone.embeddings.norm.\1",
    rf"{BLOCK}\.norm1\.(weight|bias)": rf"{OURS}.layernorm_before.\2",
    rf"{BLOCK}\.attn\.(q_proj|k_proj|v_proj)\.(weight|bias)": rf"{OURS}.attention.\2.\3",
    rf"{BLOCK}\.attn\.proj\.(weight|bias)": rf"{OURS}.attention.o_proj.\2",
    rf"{BLOCK}\.attn\.(relative_position_bias_table)": rf"{OURS}.attention.relative_position_bias.\2",
    rf"{BLOCK}\.attn\.relative_position_index": None,  # follows from the window's size
    rf"{BLOCK}\.attn_mask": None,  # follows from the sizes of window and image
    r"layers\.(\d+)\.downsample\.(reduction|norm)\.(weight|bias)": r"backbone.encoder.layers.\1.downsample.\2.\3",
    r"norm\.(weight|bias)": r"backbone.layernorm.\1",
    r"head\.(weight|bias)": r"classifier.\1",
}
TABLES: dict[Architecture, Mapping[str, str | None]] = {"vit": VIT, "swin": SWIN}


def architecture_of(state_dict: Mapping[str, torch.Tensor]) -> Architecture:
    """
    Whether these are the tensors of their ViT or of their Swin.

    Raises:
        ValueError: if of neither.
    """
    for prefix, architecture in (("layers.0.blocks.0.", "swin"), ("blocks.0.", "vit")):
        if any(name.startswith(prefix) for name in state_dict):
            return architecture  # type: ignore[return-value]
    raise ValueError(f"These are no tensors of the authors' ViT or Swin: {', '.join(sorted(state_dict)[:10])}")


def ffns(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Prefixes of the names in the blocks' FFNs, first to last."""
    found = {name.split("mlp.")[0] + "mlp." for name in state_dict if re.match(rf"{BLOCK}\.mlp\.", name)}
    return sorted(found, key=lambda prefix: [int(number) for number in re.findall(r"\d+", prefix)])


def is_fused(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Only the training form has norms in its FFNs."""
    return not any(".mlp.norm" in name for name in state_dict)


def fused_channels(state_dict: Mapping[str, torch.Tensor]) -> list[int]:
    """Number of active channels of each block of a fused state dict."""
    outs = [state_dict.get(f"{prefix}fc3.weight") for prefix in ffns(state_dict)]
    return [0 if out is None else out.shape[1] for out in outs]


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The authors' tensors, in either form, under the names of `RePaViTForImageClassification`.

    Raises:
        ValueError: if a tensor has a name that the authors' models do not have, or the form of a fused block is not
            ours.
        KeyError: if a tensor of a fused block is missing.
    """
    fused = is_fused(state_dict)
    source = _regroup_fused(state_dict) if fused else dict(state_dict)
    tensors = {}
    for name, tensor in source.items():
        if ".attn.qkv." in name:
            for part, third in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                tensors[name.replace("qkv", part)] = third.contiguous()
        else:
            tensors[name] = tensor.flatten() if name == "cls_token" else tensor[0] if name == "pos_embed" else tensor
    return rename(tensors, TABLES[architecture_of(state_dict)] | (FUSED_FFN if fused else TRAINING_FFN))


def _regroup_fused(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Names apart the blocks without active and without idle channels, which our fused form has as other modules, and
    takes the identity out of the linear paths, which is the shortcut.
    """
    tensors = dict(state_dict)
    for prefix, active in zip(ffns(state_dict), fused_channels(state_dict), strict=True):
        width = len(tensors[f"{prefix}fc1.weight"])
        hidden = EXPANSION * width
        tensors[f"{prefix}fc1.weight"] = without_identity(tensors[f"{prefix}fc1.weight"])
        if active == 0:
            for kind in ("weight", "bias"):
                tensors[f"{prefix}linear.{kind}"] = tensors.pop(f"{prefix}fc1.{kind}")
            for name in (f"{prefix}fc2.weight", f"{prefix}fc2.bias", f"{prefix}fc3.weight"):
                if name in tensors and tensors[name].numel() == 0:  # in Swin; not there in ViT
                    del tensors[name]
        elif active == hidden:  # without idle channels nothing is left, and we have no linear path
            if tensors.pop(f"{prefix}fc1.weight").any():
                raise ValueError(f"{prefix}fc1.weight should be the identity, as all channels are active.")
            tensors[f"{prefix}ffn.fc1.weight"] = tensors.pop(f"{prefix}fc2.weight")
            tensors[f"{prefix}ffn.fc1.bias"] = tensors.pop(f"{prefix}fc2.bias")
            tensors[f"{prefix}ffn.fc2.weight"] = tensors.pop(f"{prefix}fc3.weight")
            tensors[f"{prefix}ffn.fc2.bias"] = tensors.pop(f"{prefix}fc1.bias")
        elif 2 * (hidden - active) <= width:
            raise ValueError(
                f"Only {hidden - active} of {hidden} channels are idle in {prefix.removesuffix('.')}. Where at most "
                "one in eight is, our fused form keeps two linears, which cannot be recovered from these tensors: "
                "convert the training checkpoint instead, with --fused."
            )
    return tensors
