"""The inference form for other runtimes: ONNX, and programs of `torch.export`, by transformers' exporters."""

import contextlib
import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
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
TOLERANCES = {False: 1e-4, True: 0.1}  # without and with int8


def check_format(kind: str, int8: bool = False) -> None:
    """
    Whether a model can be exported in this format here.

    Raises:
        ValueError: if the format is unknown, or has no int8.
        ImportError: if a package for it is missing.
    """
    if kind not in NEEDED:
        raise ValueError(f"{kind!r} is no format; take one of {', '.join(NEEDED)}.")
    if int8 and kind != "onnx":
        raise ValueError(f"int8 is for programs of ONNX, and not for the format {kind!r}.")
    missing = [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"The format {kind} needs {', '.join(missing)}: pip install 'fusible[export]'")


def is_program_file(name: str) -> bool:
    """Whether a file is of a program for whole sequences, or of those for pieces, which take each other's place."""
    return name.startswith(("model.", "step.", "chunk."))


def refuse_model_folder(folder: Path) -> None:
    """Raises `ValueError` if a folder for a program has a model's weights."""
    if folder.is_dir() and any(is_weight_file(file.name) for file in folder.iterdir()):
        raise ValueError(
            f"{folder} holds a model, whose configuration would be overwritten; export to another folder."
        )


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
    model: FusiblePreTrainedModel,
    folder: Path,
    kind: Format = "onnx",
    tolerance: float | None = None,
    int8: bool = False,
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
        tolerance: largest difference of the first outputs, relative to the largest of them; 1e-4 by default, and 0.1
            with int8.
        int8: multiply in int8 ("onnx" only). Each output channel of a linear has a scale; the scale of its inputs is
            that of the batch at hand (dynamic quantization). Layers that are no matrix products stay as they are.

    Returns:
        `format`, `int8`, `files`, `inputs` (shapes), `max_difference` and `max_output`.

    Raises:
        ValueError: if the outputs differ, the format is unknown or has no int8, or the folder holds a model; nothing
            is written then.
        ImportError: if a package for it is missing.
    """
    check_format(kind, int8)
    tolerance = TOLERANCES[int8] if tolerance is None else tolerance
    refuse_model_folder(folder)
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
    with atomic_folder(folder, is_program_file, LAST) as stage:
        # what was written is compared, not the program in memory; an error here leaves the folder as it was
        exported.save_pretrained(stage)
        if int8:
            _quantize_linears_(Path(stage))
        # transformers asks for trust before torch unpickles a program, which is our own here
        difference, largest = _difference(ExportedModel.from_pretrained(stage, trust_remote_code=True), fused, model)
        if not difference <= tolerance * largest:  # also refuses NaN
            raise ValueError(
                f"The program differs by {difference:.1e} where outputs reach {largest:.1e}; the tolerance is "
                f"{tolerance:.0e} of that. Nothing was written. Is the model in half precision"
                f"{', or too sensitive for int8' if int8 else ''}?"
            )
        files = sorted(file.name for file in stage.iterdir())
    return {
        "format": kind,
        "int8": int8,
        "folder": str(folder),
        "files": files,
        "inputs": input_shapes(model),
        "max_difference": difference,
        "max_output": largest,
    }


def _quantize_linears_(folder: Path) -> None:
    """Rewrites an ONNX program, whose weights lie in a file of their own, with its linears in int8."""
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    program = folder / "model.onnx"
    with TemporaryDirectory() as scratch:
        inferred = Path(scratch, "model.onnx")
        # shapes of tensors alone: onnxruntime makes its own optimizations when it loads a program
        quant_pre_process(
            program,
            inferred,
            skip_optimization=True,
            skip_symbolic_shape=True,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
        )
        for file in folder.glob("model.onnx*"):
            file.unlink()
        quantize_dynamic(
            inferred,
            program,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )


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


__all__ = [
    "LAST",
    "TOLERANCES",
    "Format",
    "check_format",
    "example_inputs",
    "export_fused",
    "input_shapes",
    "is_program_file",
    "refuse_model_folder",
]
