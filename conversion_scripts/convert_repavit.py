r"""
Turns a checkpoint of the authors' RePaViT (github.com/Ackesnal/RePaViT), their ViT or Swin, into a folder that
transformers loads, with image processor, class names and model card.

From the root of the repository:

    python conversion_scripts/convert_repavit.py --checkpoint best_checkpoint.pth --output repavit-base \
        --architecture vit --idle-ratio 0.75

    python conversion_scripts/convert_repavit.py --checkpoint swin.safetensors --output repaswin-tiny-fused \
        --architecture swin --idle-ratio 0.75 --fused --push-to-hub user/repaswin-tiny-fused
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


if __package__ is None:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion_scripts.common import agreed, image_processor, load_and_publish, parser_for, read_checkpoint, run
from conversion_scripts.repavit_config import config_for
from conversion_scripts.repavit_names import architecture_of, convert_state_dict, is_fused
from fusible import RePaViTForImageClassification


def idle_options(
    state_dict: Mapping[str, torch.Tensor],
    arguments: Mapping[str, Any],
    idle_ratio: float | None,
    idle_schedule: str | None,
) -> dict[str, Any]:
    """
    Idle ratio and schedule from command line and training arguments; a wrong ratio would load without an error.

    Args:
        state_dict: the authors' tensors, in either form.
        arguments: the checkpoint's `args`.
        idle_ratio: `--idle-ratio`.
        idle_schedule: `--idle-schedule`.

    Raises:
        ValueError: if they contradict each other, or the training form has no ratio.
    """
    source = "the args in the checkpoint"
    found_ratio, found_schedule = arguments.get("idle_ratio"), arguments.get("heuristic")
    if arguments.get("channel_idle") is False:  # their default, whatever the ratio says
        found_ratio, found_schedule = 0.0, None
    elif found_schedule is not None:
        found_schedule = found_schedule.strip().lower().replace("none", "") or "static"
    ratio = agreed("--idle-ratio", idle_ratio, found_ratio, source)
    if architecture_of(state_dict) == "swin":
        found_schedule, source = "static", "the authors' Swin, which has one ratio for all blocks"
    schedule = agreed("--idle-schedule", idle_schedule, found_schedule, source) or "static"
    if ratio is None and not is_fused(state_dict):
        raise ValueError(
            "The training form does not show which channels are idle: give the --idle-ratio of the training (0 for a "
            "baseline, where none are)."
        )
    return {"idle_ratio": ratio, "idle_schedule": schedule}


def convert(options: argparse.Namespace) -> str:
    """
    Converts as the command line says, and says what was written.

    Raises:
        OSError: if the checkpoint cannot be read, or the folder or the push cannot be completed.
        ValueError: if checkpoint and command line do not fit together, or tensors are left over or missing.
        StrictDataclassError: if an option is outside its range.
        KeyError: if a tensor is missing.
    """
    state_dict, arguments = read_checkpoint(options.checkpoint)
    name = str(arguments.get("model", ""))
    known = re.match("repa(vit|swin)_", name.lower())
    trained = known[1] if known else name or None
    agreed("--architecture", options.architecture, trained, "the args in the checkpoint")
    agreed("--architecture", options.architecture, architecture_of(state_dict), "the names of the tensors")
    tensors = convert_state_dict(state_dict)
    channels = idle_options(state_dict, arguments, options.idle_ratio, options.idle_schedule)
    config = config_for(state_dict, options.num_attention_heads, options.window_size, options.image_size, **channels)
    processor = image_processor(config.backbone_config.image_size)
    model = load_and_publish(RePaViTForImageClassification(config).eval(), tensors, options, processor)
    form = "fused" if model.config.fused else "training"
    return f"{options.output}: {options.architecture}, {form} form, {model.num_parameters():,} parameters"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; ends with one line and exit status 1 if the checkpoint cannot be converted."""
    parser = parser_for(__doc__, ".pth, .pt or .safetensors, training or fused form")
    add = parser.add_argument
    add("--architecture", choices=["vit", "swin"], required=True, help="which of the authors' models")
    add(
        "--idle-ratio",
        type=float,
        metavar="R",
        help="of the training; may be left out where the args in the checkpoint tell it, and for fused checkpoints",
    )
    add(
        "--idle-schedule", choices=["static", "linear"], help="default: what the args in the checkpoint say, or static"
    )
    add(
        "--num-attention-heads", type=int, nargs="+", metavar="N", help="needed for a ViT of another width than theirs"
    )
    add("--window-size", type=int, metavar="W", help="of a Swin; only compared with the tensors")
    add("--image-size", type=int, metavar="S", help="needed for a Swin without the buffers attn_mask")
    run(convert, parser, arguments)


if __name__ == "__main__":
    main()
