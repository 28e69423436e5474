r"""
Turns a checkpoint of the authors' ZeroI2V (github.com/MCG-NJU/ZeroI2V), as trained or merged, into a folder that
transformers loads, with image processor and model card. CLIP of OpenAI becomes a model to train.

From the root of the repository:

    python conversion_scripts/convert_zeroi2v.py --checkpoint CLIP-B_k400_8x16x1.pth --output zeroi2v-base-k400 \
        --preset k400-base-8f

    python conversion_scripts/convert_zeroi2v.py --checkpoint hmdb51.pth --output zeroi2v-base-hmdb51 \
        --temporal-offsets -1 1 -2 2 --adapter-scale 0.5 --fused
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import VideoMAEImageProcessorPil


if __package__ is None:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion_scripts.common import Discarded, load_and_publish, parser_for, read_entries, run, state_dict_in
from conversion_scripts.zeroi2v_config import PRESETS, backbone_in, config_for
from conversion_scripts.zeroi2v_names import bare, convert_state_dict, kind_of
from fusible import ZeroI2VForVideoClassification, ZeroI2VModel


# CLIP's mean and deviation as the authors round them, in [0, 255]
MEAN, DEVIATION = (122.769, 116.74, 104.04), (68.493, 66.63, 70.321)


def discard(*args: Any) -> None:
    """Stands for `getattr`, by which mmengine's records refer to their own methods."""


HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
NUMPY = {"scalar": np._core.multiarray.scalar, "_reconstruct": np._core.multiarray._reconstruct}
MMENGINE: list[Any] = [
    (Discarded, HISTORY),
    *((discard, f"{module}.getattr") for module in ("builtins", "__builtin__")),
    *((value, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, value in NUMPY.items()),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]


def written_backbone(content: Any) -> Mapping[str, Any]:
    """The backbone in the configuration that mmengine writes into a checkpoint, if there is one."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    try:
        return backbone_in(text) if isinstance(text, str) else {}
    except SyntaxError:
        return {}


def written_classes(content: Any, num_labels: int) -> dict[int, str] | None:
    """Names of the classes that mmengine writes into a checkpoint, if there are as many as the classifier has."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    data = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    classes = data.get("classes") if isinstance(data, Mapping) else None
    known = isinstance(classes, Sequence) and len(classes) == num_labels
    return {index: str(name) for index, name in enumerate(classes or [])} if known else None


def frame_processor(image_size: int) -> VideoMAEImageProcessorPil:
    """The authors' processing of frames for tests: short side to `image_size`, bilinear, and the middle of it."""
    return VideoMAEImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        resample=2,
        image_mean=[value / 255 for value in MEAN],
        image_std=[value / 255 for value in DEVIATION],
    )


def convert(options: argparse.Namespace) -> str:
    """
    Converts as the command line says, and says what was written.

    Raises:
        OSError: if the checkpoint cannot be read, or the folder or the push cannot be completed.
        ValueError: if checkpoint and command line do not fit together, or tensors are left over or missing.
        StrictDataclassError: if an option is outside its range.
        KeyError: if a tensor is missing.
    """
    content = read_entries(options.checkpoint, MMENGINE)
    tensors = bare(state_dict_in(content, options.checkpoint))
    kind = kind_of(tensors)
    config = config_for(
        tensors,
        preset=PRESETS[options.preset] if options.preset else None,
        temporal_offsets=options.temporal_offsets,
        adapter_scale=options.adapter_scale,
        num_attention_heads=options.num_attention_heads,
        num_frames=options.num_frames,
        backbone=written_backbone(content),
    )
    classes = written_classes(content, config.num_labels)
    if classes is not None:
        config.id2label, config.label2id = classes, {name: index for index, name in classes.items()}
    has_head = "fc_cls.bias" in tensors or (kind == "clip" and options.preset is not None)
    model = (ZeroI2VForVideoClassification if has_head else ZeroI2VModel)(config).eval()
    converted = {name: tensor.float() for name, tensor in convert_state_dict(tensors).items()}
    if kind == "clip":  # what CLIP has not is new
        new = {name for name in model.trained_parameters() if "post_layernorm" not in name}
        converted |= {name: tensor for name, tensor in model.state_dict().items() if name in new}
    model = load_and_publish(model, converted, options, frame_processor(config.backbone_config.image_size))
    form = "fused" if model.config.fused else "training"
    return f"{options.output}: {form} form, {config.num_frames} frames, {model.num_parameters():,} parameters"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; ends with one line and exit status 1 if the checkpoint cannot be converted."""
    parser = parser_for(__doc__, ".pth, .pt or .safetensors, trained or merged")
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), help="which of the released checkpoints it is")
    add(
        "--temporal-offsets",
        type=json.loads,
        nargs="+",
        metavar="O",
        help="for each head, from the first on, the offset of the frame that it sees; '[-1,1]' divides a head",
    )
    add("--adapter-scale", type=float, metavar="S", help="of the training; not needed for merged checkpoints")
    add("--num-attention-heads", type=int, metavar="H", help="needed for another width than CLIP's B/16 and L/14")
    add("--num-frames", type=int, metavar="T", help="needed for CLIP")
    run(convert, parser, arguments)


if __name__ == "__main__":
    main()
