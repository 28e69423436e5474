"""The inference form for other runtimes: ONNX, and programs of `torch.export`, by transformers' exporters."""

import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.export import Dim
from transformers import PreTrainedModel

from .core.modeling import FusiblePreTrainedModel
from .hub.atomic import atomic_folder
from .hub.weight_files import is_weight_file


Format = Literal["onnx", "torch"]
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
LAST = "export.json"  # what transformers' ExportedModel.from_pretrained reads first
BATCHES = (1, 2, 3)


def check_format(kind: str) -> None:
    """
    Whether a model can be exported in this format here.

    Raises:
        ValueError: if the format is unknown.
        ImportError: if a package for it is missing.
    """
    if kind not in NEEDED:
        raise ValueError(f"{kind!r} is no format; take one of {', '.join(NEEDED)}.")
    missing = [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"The format {kind} needs {', '.join(missing)}: pip install 'fusible[export]'")


def example_inputs(model: FusiblePreTrainedModel, batch_size: int, shorter: int = 0) -> dict[str, torch.Tensor]:
    """
    The model's `dummy_inputs`, repeated or cut to a batch size, in its dtype.

    Args:
        model: whose inputs.
        batch_size: length of the first axis.
        shorter: by how much the others of the model's `dynamic_axes` are shorter.
    """
    inputs = {}
    for name, tensor in model.dummy_inputs.items():
        repeated = torch.cat([tensor] * -(-batch_size // len(tensor)))[:batch_size]
        for axis in model.dynamic_axes.keys() - {0}:
            repeated = repeated.narrow(axis, 0, repeated.shape[axis] - shorter)
        inputs[name] = repeated.to(model.dtype) if repeated.is_floating_point() else repeated
    return inputs


def input_shapes(model: FusiblePreTrainedModel) -> dict[str, list[str | int]]:
    """Shapes of a program's inputs: names of axes that may have any length, and lengths of the others."""
    return {
        name: [model.dynamic_axes.get(axis, (size,))[0] for axis, size in enumerate(tensor.shape)]
        for name, tensor in example_inputs(model, 1).items()
    }


def export_fused(
    model: FusiblePreTrainedModel, folder: Path, kind: Format = "onnx", tolerance: float = 1e-4
) -> dict[str, Any]:
    """
    Writes the inference form as a program for any batch size, and of texts for any length, and compares what it
    computes with the model.

    `transformers.exporters.ExportedModel.from_pretrained(folder)` runs either format. For "torch" it asks for
    `trust_remote_code=True`, since such files can run code. `model.onnx` runs in any runtime of ONNX. Axes other than
    the model's `dynamic_axes` have the sizes of `dummy_inputs`.

    Args:
        model: in either form; it stays as it is.
        folder: gets the program, its weights, `export.json` and `config.json`, all at once or not at all.
        kind: "onnx", or "torch" for `torch.export`.
        tolerance: largest difference of the first outputs, relative to the largest of them.

    Returns:
        `format`, `files`, `inputs` (shapes), `max_difference` and `max_output`.

    Raises:
        ValueError: if the outputs differ, the format is unknown, or the folder holds a model; nothing is written then.
        ImportError: if a package for it is missing.
    """
    check_format(kind)
    if folder.is_dir() and any(is_weight_file(file.name) for file in folder.iterdir()):
        raise ValueError(
            f"{folder} holds a model, whose configuration would be overwritten; export to another folder."
        )
    from transformers.exporters import DynamoConfig, DynamoExporter, ExportedModel, OnnxConfig, OnnxExporter

    fused: PreTrainedModel = (model if model.config.fused else model.fuse(share=True)).eval()
    # torch.export takes an axis of length 1 for a constant
    inputs = example_inputs(model, 2)
    exporter, config_class = (OnnxExporter(), OnnxConfig) if kind == "onnx" else (DynamoExporter(), DynamoConfig)
    # one of a name, as the axes of this name in all inputs are of one length
    axes = {axis: Dim(name, min=1, max=longest) for axis, (name, longest) in model.dynamic_axes.items()}
    config = config_class(dynamic_shapes=dict.fromkeys(inputs, axes))
    with contextlib.redirect_stdout(sys.stderr):  # where torch's progress belongs
        exported = exporter.export(fused, cast(Any, inputs), config)
    with atomic_folder(folder, lambda name: name.startswith("model."), LAST) as stage:
        # what was written is compared, not the program in memory; an error here leaves the folder as it was
        exported.save_pretrained(stage)
        # transformers asks for trust before torch unpickles a program, which is our own here
        difference, largest = _difference(ExportedModel.from_pretrained(stage, trust_remote_code=True), fused, model)
        if not difference <= tolerance * largest:  # also refuses NaN
            raise ValueError(
                f"The program differs by {difference:.1e} where outputs reach {largest:.1e}; the tolerance is "
                f"{tolerance:.0e} of that. Nothing was written. Is the model in half precision?"
            )
        files = sorted(file.name for file in stage.iterdir())
    return {
        "format": kind,
        "folder": str(folder),
        "files": files,
        "inputs": input_shapes(model),
        "max_difference": difference,
        "max_output": largest,
    }


@torch.no_grad()
def _difference(program: Any, fused: PreTrainedModel, model: FusiblePreTrainedModel) -> tuple[float, float]:
    """Largest difference of the first outputs over several sizes of the dynamic axes, and the largest output."""
    differences, outputs = [], []
    for shorter, batch_size in enumerate(BATCHES):
        inputs = example_inputs(model, batch_size, shorter)
        expected, actual = fused(**inputs)[0], program(**inputs)[0]
        differences.append((actual - expected).abs().max().item())
        outputs.append(expected.abs().max().item())
    return max(differences), max(outputs)


__all__ = ["Format", "check_format", "example_inputs", "export_fused", "input_shapes"]
