"""The configuration of the authors' RePaViT (github.com/Ackesnal/RePaViT), read off their tensors."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from conversion_scripts.common import agreed, class_names
from conversion_scripts.repavit_names import EXPANSION, architecture_of, ffns, fused_channels, is_fused
from fusible import RePaViTConfig


VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # by width: Tiny, Small, Base, Large, Huge


def vit_backbone(
    state_dict: Mapping[str, torch.Tensor],
    num_attention_heads: Sequence[int] | None,
    window_size: int | None,
    image_size: int | None,
) -> dict[str, Any]:
    """
    The backbone's configuration of the authors' ViT.

    Raises:
        ValueError: if an option contradicts the tensors, or is needed and missing.
        KeyError: if a tensor is missing.
    """
    width, num_channels, patch_size, _ = state_dict["patch_embed.proj.weight"].shape
    found_size = patch_size * round((state_dict["pos_embed"].shape[1] - 1) ** 0.5)
    heads = num_attention_heads or [VIT_HEADS.get(width, 0)]
    if len(heads) != 1 or heads[0] < 1 or width % heads[0]:
        raise ValueError(
            f"Tensors do not show the number of heads. For a ViT of width {width}, give it as one "
            "--num-attention-heads that divides the width."
        )
    if window_size is not None:
        raise ValueError(f"--window-size {window_size} is for Swin; a ViT has no windows.")
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": hidden_channels(state_dict)[0],
        "num_hidden_layers": len(ffns(state_dict)),
        "num_attention_heads": heads[0],
        "num_channels": num_channels,
        "image_size": agreed("--image-size", image_size, found_size, "the position embedding"),
        "patch_size": patch_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def swin_backbone(
    state_dict: Mapping[str, torch.Tensor],
    num_attention_heads: Sequence[int] | None,
    window_size: int | None,
    image_size: int | None,
) -> dict[str, Any]:
    """
    The backbone's configuration of the authors' Swin.

    Raises:
        ValueError: if an option contradicts the tensors, or is needed and missing.
        KeyError: if a tensor is missing.
    """
    width, num_channels, patch_size, _ = state_dict["patch_embed.proj.weight"].shape
    depths: list[int] = []
    for prefix in ffns(state_dict):
        stage, block = (int(number) for number in re.findall(r"\d+", prefix))
        depths[stage:] = [block + 1]
    tables = [state_dict[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(len(depths))]
    windows = sorted({round(len(table) ** 0.5 + 1) // 2 for table in tables})
    if len(windows) > 1:
        raise ValueError(f"The stages have windows of different sizes, {windows}; transformers' Swin has one size.")
    source = "the relative position biases"
    window = agreed("--window-size", window_size, windows[0], source)
    heads = [table.shape[1] for table in tables]
    given_heads = None if num_attention_heads is None else list(num_attention_heads)
    mask = state_dict.get("layers.0.blocks.1.attn_mask")  # one for each window
    found_size = None if mask is None else patch_size * windows[0] * round(len(mask) ** 0.5)
    size = agreed("--image-size", image_size, found_size, "the attention mask")
    if size is None:
        raise ValueError("The checkpoint has no attention mask to read the image's size from: give --image-size.")
    return {
        "model_type": "swin",
        "embed_dim": width,
        "depths": depths,
        "num_heads": agreed("--num-attention-heads", given_heads, heads, source),
        "window_size": window,
        "mlp_ratio": hidden_channels(state_dict)[0] / width,
        "num_channels": num_channels,
        "image_size": size,
        "patch_size": patch_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def hidden_channels(state_dict: Mapping[str, torch.Tensor]) -> list[int]:
    """Hidden width of each block's FFN."""
    factor = EXPANSION if is_fused(state_dict) else 1  # fused, fc1 is the linear path
    return [factor * len(state_dict[f"{prefix}fc1.weight"]) for prefix in ffns(state_dict)]


def config_for(
    state_dict: Mapping[str, torch.Tensor],
    num_attention_heads: Sequence[int] | None = None,
    window_size: int | None = None,
    image_size: int | None = None,
    **channels: Any,
) -> RePaViTConfig:
    """
    The configuration that the authors' tensors need; sizes are read off the tensors.

    Args:
        state_dict: the authors' tensors, in either form.
        num_attention_heads: one number for a ViT, where tensors do not show it, one for each stage of a Swin.
        window_size: of a Swin.
        image_size: height and width.
        **channels: `idle_ratio` and `idle_schedule`, or `active_channels`. The fused form shows the active channels
            itself, so there they are compared, and may be left out.

    Raises:
        ValueError: if an option contradicts the tensors, or is needed and missing.
        KeyError: if a tensor is missing.
    """
    architecture, fused = architecture_of(state_dict), is_fused(state_dict)
    make_backbone = vit_backbone if architecture == "vit" else swin_backbone
    if fused and channels.get("idle_ratio") is None:
        channels.setdefault("active_channels", fused_channels(state_dict))
    config = RePaViTConfig(
        backbone_config=make_backbone(state_dict, num_attention_heads, window_size, image_size),
        ffn_norm="layer" if any(name.endswith(".mlp.norm.weight") for name in state_dict) else "batch",
        block_norm_eps=1e-5,
        id2label=(names := class_names(len(state_dict["head.bias"]))),
        label2id={name: index for index, name in names.items()},
        fused=fused,
        **channels,
    )
    expected = config.active_channels_of(hidden_channels(state_dict))
    if fused and expected != fused_channels(state_dict):
        raise ValueError(
            f"By the idle ratio {expected} channels are active, in the tensors {fused_channels(state_dict)}."
        )
    return config
