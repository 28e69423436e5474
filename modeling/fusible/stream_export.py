"""Programs for other runtimes that read a sequence piece by piece: inputs and states to outputs and new states."""

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.export import Dim
from transformers import DynamicCache

from .core.modeling import FusiblePreTrainedModel
from .export import LAST, TOLERANCES, Format, check_format, is_program_file, refuse_model_folder
from .hub.atomic import atomic_folder
from .models.s4.backbone import S4PreTrainedModel
from .models.s4.states import write_states


Part = Literal["step", "chunk"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


class StreamProgram(nn.Module):
    """A model as a function of inputs `[batch, length, ...]` and a list of states, one for each layer that has one."""

    def __init__(self, model: FusiblePreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, states: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        cache = DynamicCache(config=self.model.config)
        slots = dict(enumerate(cache.layers))
        write_states(slots, dict(enumerate(states)), {})
        outputs = self.model(**{_input_name(self.model): inputs}, cache=cache, use_cache=True)
        return outputs[0], [cast(Any, layer).recurrent_states[0] for layer in cache.layers]


def _input_name(model: FusiblePreTrainedModel) -> str:
    return next(iter(model.dummy_inputs))


def zero_states(model: FusiblePreTrainedModel, batch_size: int) -> list[torch.Tensor]:
    """The states before the first position: zeros `[batch, heads, state_size / 2, 2]` for each layer that has one."""
    inputs = next(iter(model.dummy_inputs.values()))[:1, :1]
    with torch.no_grad():
        cache = model(**{_input_name(model): inputs}, use_cache=True).cache
    states = (layer.recurrent_states[0] for layer in cache.layers)
    return [state.new_zeros(batch_size, *state.shape[1:]) for state in states]


def check_streams(model: FusiblePreTrainedModel) -> None:
    """
    Whether a model reads piece by piece.

    Raises:
        ValueError: if it has no states, or states of no fixed shape.
    """
    if not isinstance(model, S4PreTrainedModel):
        raise ValueError(f"{type(model).__name__} has no states to go on from; only S4 reads token by token.")
    config = model.config
    for name in ("bidirectional", "pool_sizes"):
        if getattr(config, name):
            reason = "needs the whole sequence" if name == "bidirectional" else "has states of growing shapes"
            raise ValueError(f"A model with {name} {getattr(config, name)} {reason}, and cannot be exported by steps.")
    if "cache" not in model._forward_arguments:
        raise ValueError(
            f"{type(model).__name__} gives one output for a whole sequence; export S4Model or S4ForCausalLM by steps."
        )


def stream_shapes(model: FusiblePreTrainedModel, chunk: int) -> dict[str, Any]:
    """Shapes of the programs' inputs by name; those of `inputs` by program."""
    shape = list(next(iter(model.dummy_inputs.values())).shape[2:])
    states = {f"state_{n}": ["batch", *state.shape[1:]] for n, state in enumerate(zero_states(model, 1))}
    return {"inputs": {"step": ["batch", 1, *shape], "chunk": ["batch", chunk, *shape]}, **states}


def export_stream(
    model: FusiblePreTrainedModel,
    folder: Path,
    kind: Format = "onnx",
    chunk: int = 64,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """
    Writes two programs: `step` for one position, and `chunk` for as many as it says, both for any batch size.

    A sequence of any length is a loop of `chunk`, then of `step`, at a constant cost and memory. Inputs are called
    `inputs`, `state_0` and so on, outputs `outputs`, `new_state_0` and so on; the first states are zeros. All names
    and shapes are in `export.json`.

    Args:
        model: in either form; it stays as it is.
        folder: gets the programs and their weights, all at once or not at all.
        kind: "onnx", or "torch" for `torch.export`.
        chunk: positions of the second program, at least 2.
        tolerance: largest difference of the outputs over two chunks and some steps, relative to the largest of them;
            1e-4 by default.

    Returns:
        What `export.json` has, with `max_difference` and `max_output`.

    Raises:
        ValueError: if the model has no states, the outputs differ, or the folder holds a model; nothing is written
            then.
        ImportError: if a package for the format is missing.
    """
    check_format(kind)
    tolerance = TOLERANCES[False] if tolerance is None else tolerance
    check_streams(model)
    if chunk < 2:
        raise ValueError(f"chunk is {chunk}; it must be at least 2: the other program takes one position.")
    refuse_model_folder(folder)
    fused = (model if model.config.fused else model.fuse(share=True)).eval()
    lengths: dict[Part, int] = {"step": 1, "chunk": chunk}
    states = zero_states(fused, 2)
    first = next(iter(model.dummy_inputs.values()))
    record: dict[str, Any] = {
        "format": kind,
        "programs": {name: f"{name}{SUFFIXES[kind]}" for name in lengths},
        "inputs": stream_shapes(fused, chunk),
        "outputs": ["outputs", *(f"new_state_{number}" for number in range(len(states)))],
    }
    with atomic_folder(folder, is_program_file, LAST) as stage:
        for name, length in lengths.items():
            inputs = first[:1].repeat(2, -(-length // first.shape[1]), *[1] * (first.ndim - 2))[:, :length]
            _write(StreamProgram(fused).eval(), inputs, states, stage / record["programs"][name], kind)
        run = {name: load_program(stage / record["programs"][name], kind) for name in lengths}
        difference, largest = _compare(run, fused, first, chunk)
        if not difference <= tolerance * largest:  # also refuses NaN
            raise ValueError(
                f"The programs differ by {difference:.1e} where outputs reach {largest:.1e}; the tolerance is "
                f"{tolerance:.0e} of that. Nothing was written. Is the model in half precision?"
            )
        (stage / LAST).write_text(json.dumps(record, indent=2) + "\n")
    return {"folder": str(folder), **record, "max_difference": difference, "max_output": largest}


@torch.no_grad()
def _write(program: StreamProgram, inputs: torch.Tensor, states: list[torch.Tensor], file: Path, kind: str) -> None:
    batch = {0: Dim("batch", min=1)}
    axes: Any = (batch, [batch] * len(states))
    # torch's exporter warns of what it does itself, and its progress does not belong on stdout
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec", FutureWarning)
        warnings.filterwarnings("ignore", ".*axis name", UserWarning)
        if kind == "torch":
            torch.export.save(torch.export.export(program, (inputs, states), dynamic_shapes=axes), file)
            return
        names = ["inputs", *(f"state_{number}" for number in range(len(states)))]
        torch.onnx.export(
            program,
            (inputs, states),
            file,
            input_names=names,
            output_names=["outputs", *(f"new_{name}" for name in names[1:])],
            dynamic_shapes=axes,
            dynamo=True,
            external_data=True,
        )


def load_program(file: Path, kind: Format) -> Any:
    """A function of inputs and a list of states that runs a program, by torch or by onnxruntime."""
    if kind == "torch":
        return torch.export.load(file).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(inputs: torch.Tensor, states: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        named = {"inputs": inputs, **{f"state_{number}": state for number, state in enumerate(states)}}
        outputs, *after = session.run(None, {name: tensor.numpy() for name, tensor in named.items()})
        return torch.from_numpy(outputs), [torch.from_numpy(state) for state in after]

    return run


@torch.no_grad()
def _compare(
    run: dict[Part, Any], fused: FusiblePreTrainedModel, first: torch.Tensor, chunk: int
) -> tuple[float, float]:
    """Largest difference of two chunks and three steps from the whole, and the largest output."""
    length = 2 * chunk + 3
    inputs = first[:1].repeat(1, -(-length // first.shape[1]), *[1] * (first.ndim - 2))[:, :length]
    expected, states, outputs = fused(**{_input_name(fused): inputs})[0], zero_states(fused, 1), []
    for piece in inputs.split([chunk, chunk, 1, 1, 1], dim=1):
        output, states = run["step" if piece.shape[1] == 1 else "chunk"](piece.contiguous(), states)
        outputs.append(output)
    difference = (torch.cat(outputs, dim=1) - expected).abs().max().item()
    return difference, expected.abs().max().item()


__all__ = ["check_streams", "export_stream", "load_program", "stream_shapes", "zero_states"]
