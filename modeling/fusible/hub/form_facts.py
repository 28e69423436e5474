"""Size of a model's forms and the difference of their outputs, as model cards give them."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.utils import logging

from .weight_files import FusibleModel


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class FormFacts:
    """Size of one form of a model."""

    parameters: int  # without buffers, such as the running statistics of BatchNorm
    macs: int  # multiply-adds for one input
    num_bytes: int  # of all saved tensors


class ConditionsHold(TorchDispatchMode):
    """Answers yes where a model on meta asks for a value: whether inputs are valid, or a mask leaves nothing out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; buffers, such as the running statistics of BatchNorm, do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, **inputs: torch.Tensor) -> int:
    """Multiply-adds of one forward pass: all matrix products, those of the attention included, and convolutions."""
    # the CPU's fused attention kernels are not counted, so attention runs as plain products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs)
    return counter.get_total_flops() // 2


def form_facts(model: FusibleModel, fused: bool) -> FormFacts:
    """Facts of either form of a model, from a copy without weights."""
    config = copy.deepcopy(model.config)
    # the training form is built first in any case, as a fused model has no way back to it
    config.fused = False
    with torch.device("meta"):
        twin = type(model)(config)
        form: nn.Module = twin.fuse(share=True) if fused else twin.eval()
    # the size is that of the saved precision
    form.to(model.dtype)
    inputs = {name: tensor[:1] for name, tensor in model.dummy_inputs.items()}
    num_bytes = sum(tensor.nbytes for tensor in form.state_dict().values())
    # on meta only shapes are computed
    with ConditionsHold():
        macs = count_macs(form, **moved(inputs, torch.device("meta"), model.dtype))
    return FormFacts(count_parameters(form), macs, num_bytes)


@contextmanager
def eval_mode(*models: FusibleModel | PreTrainedModel) -> Iterator[list[PreTrainedModel]]:
    """Yields models in eval mode; after the block, each of their modules has the mode back that it had before."""
    # `train(mode)` would set all modules alike, also those that somebody froze in eval mode
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield [model.eval() for model in models]
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def max_difference(
    training_form: FusibleModel,
    fused_form: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> tuple[float, float]:
    """
    Largest absolute difference of the two forms' first outputs in eval mode, and the largest output.

    Args:
        training_form: any mode; all its modules are left in their modes.
        fused_form: of the same dtype; likewise.
        inputs: defaults to the model's `dummy_inputs`, which are random.
    """
    inputs = training_form.dummy_inputs if inputs is None else inputs
    with eval_mode(training_form, fused_form) as forms:
        expected, actual = (form(**moved(inputs, form.device, form.dtype))[0] for form in forms)
    return (actual - expected).abs().max().item(), expected.abs().max().item()


def compare_forms(
    training_form: FusibleModel, fused_form: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]] = ()
) -> dict[str, float]:
    """
    `max_difference` and `max_output` of both forms on random inputs, and on batches of inputs if there are any.

    Raises:
        ValueError: if all outputs are zero.
    """
    # random inputs always: data alone may leave parts of a model unused
    results = [max_difference(training_form, fused_form)]
    results += [max_difference(training_form, fused_form, batch) for batch in batches]

    def relative(result: tuple[float, float]) -> float:
        # the tolerance is relative to the outputs; no difference that is not a number is small
        ratio = result[0] / result[1] if result[1] else result[0]
        return math.inf if math.isnan(ratio) else ratio

    difference, output = max(results, key=relative)
    if difference == output == 0:
        raise ValueError("All outputs of both forms are zero, which compares nothing. Are these the trained weights?")
    return {"max_difference": difference, "max_output": output}


def check_agreement(compared: Mapping[str, float], tolerance: float) -> None:
    """
    Refuses two forms that differ, and says it if they agree.

    Args:
        compared: by `compare_forms`.
        tolerance: the most that they may differ, relative to the largest output.

    Raises:
        ValueError: if they differ more, or are not finite.
    """
    difference, output = compared["max_difference"], compared["max_output"]
    if not difference <= tolerance * output:  # also refuses NaN
        raise ValueError(
            f"The forms differ by {difference:.1e} where outputs reach {output:.1e}; the tolerance is "
            f"{tolerance:.0e} of that. Nothing was written. Is the model in half precision, or are its weights "
            "not finite?"
        )
    # a log and not stdout, which with --json is for JSON only
    logger.warning(f"Both forms agree: they differ by {difference:.1e} where outputs reach {output:.1e}.")


def moved(inputs: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs on a device, floating-point ones in a dtype."""
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in inputs.items()
    }


__all__ = [
    "FormFacts",
    "check_agreement",
    "compare_forms",
    "count_macs",
    "count_parameters",
    "form_facts",
    "max_difference",
    "moved",
]
