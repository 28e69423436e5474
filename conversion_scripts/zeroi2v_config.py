"""What the authors' ZeroI2V checkpoints do not show: offsets, scales and sampling, by preset or from their configs."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from conversion_scripts.common import agreed
from conversion_scripts.zeroi2v_names import kind_of, num_adapters
from fusible import ZeroI2VConfig


Offsets = list[int | list[int]]
CLIP_HEADS = {768: 12, 1024: 16}  # by width: B/16 and L/14
DENSE = {"sampling": "dense", "num_clips": 3, "num_crops": 1}
UNIFORM = {"sampling": "uniform", "num_clips": 1, "num_crops": 3}


@dataclass(frozen=True)
class Preset:
    """One of the released checkpoints."""

    width: int
    num_frames: int
    num_labels: int
    temporal_offsets: Offsets
    adapter_scale: float
    options: Mapping[str, Any]  # of `ZeroI2VConfig`


PRESETS = {
    "k400-base-8f": Preset(768, 8, 400, [-1, 1], 0.5, DENSE | {"frame_interval": 16}),
    "k400-large-8f": Preset(1024, 8, 400, [-1, -1, 1, 1], 0.5, DENSE | {"frame_interval": 16}),
    "k400-large-32f": Preset(1024, 32, 400, [-1, -1, 1, 1, -2, -2], 0.5, DENSE | {"frame_interval": 4}),
    "ssv2-large-32f": Preset(1024, 32, 174, [-1, -1, 1, 1, -2, 2, -3], 1.0, UNIFORM),
}


def offsets_of(backbone: Mapping[str, Any], width: int, num_heads: int) -> Offsets:
    """
    Offsets by head from the authors' notation: ranges of `width // div` channels, from the first channel on.

    Args:
        backbone: the backbone in their configuration: `type` and `stdha_cfg`. What the released configurations leave
            out is the default of the class; `ops_type` may be missing.
        width: channels.
        num_heads: heads; a range may be a part of one.

    Raises:
        ValueError: for the variants of their ablations that are no per-head shift of keys and values.
    """
    options = dict(backbone.get("stdha_cfg") or {})
    kind = str(backbone["type"])
    if options.get("divide_head") and "ablation" not in kind or options.get("ops_type") not in (None, "stdha"):
        raise ValueError(f"Only the shift of heads (STDHA) can be converted, not {options}.")
    if kind.endswith("_long"):
        steps = [(options.get("shift1_div", 12), 1, True), (options.get("shift2_div", -1), 2, True)]
        steps += [(options.get(f"shift{n}_div", -1), n, options.get(f"shift{n}_right", False)) for n in (3, 4)]
    else:
        future = kind.endswith("_ablation") and options.get("long_shift_right", False)
        steps = [(options.get("shift_div", 12), options.get("shift_stride", 1), True)]
        steps += [(options.get("long_shift_div", -1), 2, future)]
    channels: list[int] = []
    for div, step, both in steps:
        if div != -1:
            channels += [-step] * (width // div) + [step] * (width // div if both else 0)
    channels += [0] * (width - len(channels))
    size = width // num_heads
    offsets: Offsets = []
    for head in (channels[start : start + size] for start in range(0, width, size)):
        parts = next(n for n in range(1, size + 1) if size % n == 0 and _even(head, n))
        entry = head[:: size // parts]
        offsets.append(entry[0] if parts == 1 else entry)
    while offsets and offsets[-1] == 0:
        offsets.pop()
    return offsets


def _even(head: Sequence[int], parts: int) -> bool:
    size = len(head) // parts
    return all(len(set(head[start : start + size])) == 1 for start in range(0, len(head), size))


def backbone_in(text: str) -> dict[str, Any]:
    """
    The backbone in the text of an mmengine configuration, such as checkpoints carry in `meta["cfg"]`.

    Only constants are read; nothing is run.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            values = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
            kind = values.get("type")
            if isinstance(kind, ast.Constant) and str(kind.value).startswith("ViT_Zero_CLIP"):
                return {name: value for name, node in values.items() if (value := _constant(node)) is not None}
    return {}


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _constant(keyword.value) for keyword in node.keywords}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def config_for(
    tensors: Mapping[str, torch.Tensor],
    *,
    preset: Preset | None = None,
    temporal_offsets: Offsets | None = None,
    adapter_scale: float | None = None,
    num_attention_heads: int | None = None,
    num_frames: int | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> ZeroI2VConfig:
    """
    The configuration of a model with the authors' tensors (without prefixes).

    Args:
        tensors: of a training checkpoint, a merged one, or CLIP.
        preset: one of the released checkpoints.
        temporal_offsets: as for `ZeroI2VConfig`.
        adapter_scale: as for `ZeroI2VConfig`.
        num_attention_heads: needed for another width than CLIP's.
        num_frames: needed for CLIP, which has no temporal embedding.
        backbone: the backbone in the configuration that the checkpoint carries, if it does.

    Raises:
        ValueError: if something needed is missing, or two sources contradict each other.
        KeyError: if a tensor is missing.
    """
    kind = kind_of(tensors)
    width, num_channels, patch_size, _ = tensors["conv1.weight"].shape
    heads = num_attention_heads or CLIP_HEADS.get(width, 0)
    if heads < 1 or width % heads:
        raise ValueError(
            f"Tensors do not show the number of heads. For a width of {width}, give --num-attention-heads that divide "
            "it."
        )
    options: dict[str, Any] = {} if preset is None else dict(preset.options)
    found_frames = tensors["temporal_embedding"].shape[1] if kind != "clip" else None
    num_frames = agreed("--num-frames", num_frames, found_frames, "the temporal embedding")
    labels = tensors["fc_cls.bias"].shape[0] if "fc_cls.bias" in tensors else None
    found_offsets = found_scale = None
    if preset is not None:
        for name, given, found in (("width", preset.width, width), ("frames", preset.num_frames, num_frames)):
            if found is not None and given != found:
                raise ValueError(f"The preset has {name} {given}, the tensors {found}; take another preset.")
        if labels not in (None, preset.num_labels):
            raise ValueError(f"The preset has {preset.num_labels} classes, the tensors {labels}; take another preset.")
        num_frames = preset.num_frames
        found_offsets, found_scale = preset.temporal_offsets, preset.adapter_scale
    temporal_offsets = agreed("--temporal-offsets", temporal_offsets, found_offsets, "the preset")
    adapter_scale = agreed("--adapter-scale", adapter_scale, found_scale, "the preset")
    if backbone:
        source = "the configuration in the checkpoint"
        written = offsets_of(backbone, width, heads)
        temporal_offsets = agreed("--temporal-offsets", temporal_offsets, written, source)
        adapter_scale = agreed("--adapter-scale", adapter_scale, float(backbone.get("adapter_scale", 1)), source)
        options["adapter_dropout"] = float(backbone.get("dropout_rate", 0.1))
    if kind == "clip":
        temporal_offsets = "auto" if temporal_offsets is None else temporal_offsets  # type: ignore[assignment]
        adapter_scale = 0.5 if adapter_scale is None else adapter_scale
        if num_frames is None:
            raise ValueError("CLIP has no temporal embedding, and the frames of a clip must be given: --num-frames.")
    if temporal_offsets is None:
        raise ValueError("Tensors do not show which heads see which frames: give --preset or --temporal-offsets.")
    if kind == "training":
        if adapter_scale is None:
            raise ValueError(
                "Tensors do not show the scale of the adapters (the authors have 0.5 on Kinetics-400, UCF101 and "
                "HMDB51, and 1 on Something-Something v2): give --preset or --adapter-scale."
            )
        rank = tensors["transformer.resblocks.0.MLP_Adapter.D_fc1.weight"].shape[0]
        options |= {"num_adapters": num_adapters(tensors), "adapter_ratio": rank / width}
    if kind != "fused" and adapter_scale is not None:
        options["adapter_scale"] = adapter_scale
    depth = len({name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")})
    grid = round((tensors["positional_embedding"].shape[0] - 1) ** 0.5)
    return ZeroI2VConfig(
        backbone_config={
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_channels": num_channels,
            "image_size": grid * patch_size,
            "patch_size": patch_size,
        },
        num_frames=num_frames,
        temporal_offsets=temporal_offsets,
        fused=kind == "fused",
        num_labels=labels or (preset.num_labels if preset is not None else 2),
        **options,
    )
