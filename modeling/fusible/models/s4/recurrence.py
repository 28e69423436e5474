"""The inference form of S4's state spaces: a recurrence with real coefficients, at a constant cost per step."""

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import nn
from transformers.activations import GELUActivation
from transformers.utils.generic import maybe_autocast

from ...kernels.loading import Kernels, is_transformed
from .coefficients import Coefficients
from .scan import scan_system, ssm_step, ssm_step_


def keep_float32(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a module is moved or cast with, but without casts to half precision."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        result = fn(tensor)
        if result.dtype in (torch.float16, torch.bfloat16):
            # the tensor itself, as its digits are gone in the result; what is half precision already becomes float32
            return tensor.to(result.device, torch.float32 if tensor.dtype == result.dtype else tensor.dtype)
        return result

    return moved


class S4Recurrence(nn.Module):
    """
    State spaces, one per channel of the input, as recurrences `x <- x + D x - U V^T x + b u`, `y = c x + skip u`, and
    the activation of their outputs.

    D is `transition`, with what rounding took away from it, of blocks of two; U and V are `low_rank_left` and
    `low_rank_right`, which diagonal systems do without; b and c are `input_map` and `output_map`. For their shapes see
    `Coefficients`. A state is `[batch, heads, state_size / 2, 2]`, as in the training form.

    `kernels` are compiled operations, if there are any to use.
    """

    transition_tail: torch.Tensor
    kernels: Kernels | None = None

    def __init__(self, system: Coefficients, skip: nn.Parameter, bidirectional: bool) -> None:
        """
        Args:
            system: as it is stored.
            skip: `[channels, heads]`.
            bidirectional: whether the second half of the channels looks ahead.
        """
        super().__init__()
        self.bidirectional = bidirectional
        self.transition = nn.Parameter(system.increment)
        self.register_buffer("transition_tail", system.rounding_residual)
        self.input_map, self.output_map = nn.Parameter(system.b), nn.Parameter(system.c)
        self.is_low_rank = system.left is not None
        if system.left is not None and system.right is not None:
            self.low_rank_left, self.low_rank_right = nn.Parameter(system.left), nn.Parameter(system.right)
        self.D = skip
        self.dropout: nn.Module = nn.Identity()
        self.activation: nn.Module = nn.Identity()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn), recurse)

    @property
    def system(self) -> Coefficients:
        """The coefficients as they are stored."""
        low_rank = (self.low_rank_left, self.low_rank_right) if self.is_low_rank else (None, None)
        return Coefficients(self.transition, self.transition_tail, self.input_map, self.output_map, *low_rank)

    def _step(self, inputs: torch.Tensor, state: torch.Tensor, overwrite: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, 1, heads]` in the dtype of the coefficients to outputs and the next state; without a gradient."""
        # torch forbids to write over tensors of inference mode outside of it
        is_writable = state.is_contiguous() and (torch.is_inference_mode_enabled() or not state.is_inference())
        if not overwrite or state.requires_grad or not is_writable:
            state = state.clone(memory_format=torch.contiguous_format)
        outputs = inputs.new_empty(inputs.shape[0], 1, self.D.numel())
        increment, residual, b, c, left, right = self.system
        ssm_step_(outputs, state, inputs, increment, residual, b, c, self.D, left, right, self.kernels)
        return outputs, state

    def _scan(self, inputs: torch.Tensor, state: torch.Tensor | None, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, length, heads]` to `[batch, length, channels * heads]` and the state, or to the GELU of that."""
        u, channels, skip = inputs.movedim(1, 2), len(self.D), self.D.to(inputs.dtype)
        if u.shape[-1] == 1 and not self.bidirectional:
            increment, residual, b, c, left, right = self.system.cast(u.dtype)
            before = u.new_zeros(u.shape[0], *self.input_map.shape) if state is None else state.to(u.dtype)
            y, state = ssm_step(u[..., 0], increment, residual, b, c, before, skip, left, right, self.kernels)
            return y.flatten(1)[:, None], state
        # products of many steps' matrices are made in float64, where the device has it
        system = self.system.in_precision(torch.float32 if u.device.type == "mps" else torch.float64)
        forward = system._replace(c=system.c[:, :channels])
        y, state = scan_system(u, forward, state, skip, self.kernels, gelu)
        if self.bidirectional:
            backward = system._replace(c=system.c[:, channels:])
            ahead, _ = scan_system(u.flip(-1), backward, None, None, self.kernels)
            # of the positions after this one
            y = y + torch.nn.functional.pad(ahead.flip(-1)[..., 1:], (0, 1))
        return y.flatten(1, 2).mT, state

    def forward(
        self,
        inputs: torch.Tensor,
        state: torch.Tensor | None = None,
        return_state: bool = False,
        *,
        overwrite: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            inputs: `[batch, length, heads]`.
            state: what a call on the positions before returned.
            return_state: whether a state is wanted.
            overwrite: whether a single step without a gradient may write the new state over the old one: of many
                sequences, new memory takes longer than the step.

        Returns:
            `[batch, length, channels * heads]` in the dtype of the inputs, behind the activation, and the state after
            the last position.

        Raises:
            ValueError: if a bidirectional layer is asked to use states.
        """
        if self.bidirectional and (state is not None or return_state):
            raise ValueError("A bidirectional layer has no state to pass on; it needs the whole sequence.")
        # autocast would turn the products of matrices into half precision
        with maybe_autocast(inputs.device.type, enabled=False):
            dtype = torch.promote_types(inputs.dtype, torch.float32)
            # a scan makes the exact GELU with its outputs, unless dropout or the other direction comes first
            scans = inputs.shape[1] > 1 and not self.bidirectional
            gelu = scans and not self.training and isinstance(self.activation, GELUActivation)
            takes_step = state is not None and inputs.shape[1] == 1 and dtype == state.dtype == self.D.dtype
            if takes_step and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed()):
                y, state = self._step(inputs.to(dtype), cast(torch.Tensor, state), overwrite)
            else:
                y, state = self._scan(inputs.to(dtype), state, gelu)
            if not gelu:
                y = self.activation(self.dropout(y))
        return y.to(inputs.dtype), state if return_state else None

    def extra_repr(self) -> str:
        rank = self.low_rank_left.shape[1] if self.is_low_rank else 0
        return f"heads={self.D.shape[1]}, rank={rank}, bidirectional={self.bidirectional}"


__all__ = ["S4Recurrence", "keep_float32"]
