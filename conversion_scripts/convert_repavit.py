"""
The authors' RePaViT checkpoints (github.com/Ackesnal/RePaViT) as RePaViT on a CLIP vision tower.

Their ViT is that tower: no bias in the patch embedding, a LayerNorm after the position embedding, and a class token.
"""

from collections.abc import Mapping
from typing import Any

import torch

from conversion_scripts.common import rename
from fusible import RePaViTConfig


BLOCK = r"blocks\.(\d+)"
OURS = r"backbone.encoder.layers.\1"
SHARED = {
    r"cls_token": r"backbone.embeddings.class_embedding",
    r"pos_embed": r"backbone.embeddings.position_embedding.weight",
    r"patch_embed\.proj\.weight": r"backbone.embeddings.patch_embedding.weight",
    r"norm_pre\.(weight|bias)": r"backbone.pre_layrnorm.\1",
    r"norm\.(weight|bias)": r"backbone.post_layernorm.\1",
    r"head\.(weight|bias)": r"classifier.\1",
    rf"{BLOCK}\.attn\.norm\.(weight|bias)": rf"{OURS}.layer_norm1.\2",
    rf"{BLOCK}\.attn\.(q_proj|k_proj|v_proj)\.(weight|bias)": rf"{OURS}.self_attn.\2.\3",
    rf"{BLOCK}\.attn\.proj\.(weight|bias)": rf"{OURS}.self_attn.out_proj.\2",
}
TRAINING = SHARED | {
    rf"{BLOCK}\.mlp\.(fc1|fc2)\.(weight|bias)": rf"{OURS}.feed_forward.\2.\3",
    rf"{BLOCK}\.mlp\.(norm1|norm2)\.(\w+)": rf"{OURS}.feed_forward.\2.\3",
    rf"{BLOCK}\.mlp\.norm\.(weight|bias)": rf"{OURS}.feed_forward.norm1.\2",  # the LayerNorm baseline
}
# their fused FFN reuses fc1 and fc2 for other things
FUSED = SHARED | {
    rf"{BLOCK}\.mlp\.linear\.(weight|bias)": rf"{OURS}.feed_forward.\2",  # a block without active channels
    rf"{BLOCK}\.mlp\.(ffn\.fc[12]\.(weight|bias))": rf"{OURS}.feed_forward.\2",  # a block without idle ones
    rf"{BLOCK}\.mlp\.fc1\.(weight|bias)": rf"{OURS}.feed_forward.shortcut.\2",
    rf"{BLOCK}\.mlp\.fc2\.(weight|bias)": rf"{OURS}.feed_forward.up.\2",
    rf"{BLOCK}\.mlp\.fc3\.weight": rf"{OURS}.feed_forward.down.weight",
}


def is_fused(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Only the training form has norms in its FFNs."""
    return not any(".mlp.norm" in name for name in state_dict)


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors of the authors' ViT, in either form, under the names of `RePaViTForImageClassification`.

    Raises:
        KeyError: if a tensor has a name that the authors' ViT does not have.
    """
    tensors = {}
    fused = is_fused(state_dict)
    state_dict = {name: tensor for name, tensor in state_dict.items()}
    for prefix in [name.removesuffix("fc3.weight") for name in state_dict if name.endswith(".mlp.fc3.weight")]:
        width, active = state_dict[f"{prefix}fc3.weight"].shape
        if active == 4 * width:  # their linear path is the identity here; ours is left out
            if not torch.equal(state_dict.pop(f"{prefix}fc1.weight"), torch.eye(width)):
                raise ValueError(f"{prefix}fc1.weight should be the identity, as all channels are active.")
            tensors[f"{prefix}ffn.fc1.weight"] = state_dict.pop(f"{prefix}fc2.weight")
            tensors[f"{prefix}ffn.fc1.bias"] = state_dict.pop(f"{prefix}fc2.bias")
            tensors[f"{prefix}ffn.fc2.weight"] = state_dict.pop(f"{prefix}fc3.weight")
            tensors[f"{prefix}ffn.fc2.bias"] = state_dict.pop(f"{prefix}fc1.bias")
    for name, tensor in state_dict.items():
        if ".attn.qkv." in name:
            for part, third in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                tensors[name.replace("qkv", part)] = third.contiguous()
        elif fused and ".mlp.fc1." in name and name.split("fc1")[0] + "fc2.weight" not in state_dict:
            tensors[name.replace("fc1", "linear")] = tensor
        else:
            tensors[name] = tensor.flatten() if name == "cls_token" else tensor[0] if name == "pos_embed" else tensor
    return rename(tensors, FUSED if fused else TRAINING)


def config_for(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int, **channels: Any) -> RePaViTConfig:
    """
    The configuration that a checkpoint of the authors' ViT needs; sizes are read off its tensors.

    Args:
        state_dict: the authors' tensors, in either form.
        num_attention_heads: not recorded in the tensors.
        **channels: `idle_ratio` with `idle_schedule`, or `active_channels`; not recorded in the training form either.
    """
    hidden_size, num_channels, patch_size, _ = state_dict["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in state_dict if name.startswith("blocks."))
    fused = is_fused(state_dict)
    backbone = {
        "model_type": "clip_vision_model",
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": num_attention_heads,
        "num_channels": num_channels,
        "image_size": patch_size * round((state_dict["pos_embed"].shape[1] - 1) ** 0.5),
        "patch_size": patch_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    return RePaViTConfig(
        backbone_config=backbone,
        ffn_norm="batch" if fused or "blocks.0.mlp.norm1.weight" in state_dict else "layer",
        block_norm_eps=1e-5,
        num_labels=len(state_dict["head.bias"]),
        fused=fused,
        **channels,
    )
