"""The inference form of S4's state spaces: a recurrence with real coefficients, at a constant cost per step."""

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import nn
from transformers.activations import GELUActivation
from transformers.utils.generic import maybe_autocast

from ...kernels.loading import Kernels, is_transformed
from .diagonalization import Coefficients, kernel_errors, sampled_kernel, to_modal_form
from .scan import ssm_scan, ssm_step, ssm_step_


TOLERANCE = {torch.float64: 1e-10}  # of kernels of diagonalized heads, relative to their peaks
DEFAULT_TOLERANCE = 5e-6


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
    State spaces, one per channel of the input, as recurrences `x <- A x + b u`, `y = c x + D u` of real numbers, and
    the activation of their outputs.

    A state is `[batch, heads, state_size / 2, 2]`, first of the heads whose transition is pairs, in the basis of their
    modes, then of those whose transition is dense. That of a diagonal system is stored as `[heads, groups, 2]`: see
    `blocks_of`. `kernel_error` says, for each head, how far its impulse response is from the training form's, relative
    to the peak: the largest difference that the stored coefficients make at some of the lags, measured in float64 when
    they were made, plus an estimate of what rounded states add. Single lags may differ more, by a small factor.

    `kernels` are compiled operations, if there are any to use.
    """

    order: torch.Tensor
    transition_tail: torch.Tensor | None
    kernels: Kernels | None = None

    def __init__(
        self,
        pairs: Coefficients | None,
        dense: Coefficients | None,
        order: torch.Tensor,
        skip: nn.Parameter,
        kernel_error: torch.Tensor,
        bidirectional: bool,
    ) -> None:
        """
        Args:
            pairs: of the heads whose transition is pairs, if there are any.
            dense: of the other heads, if there are any.
            order: `[heads]` (int64), which head of the input each is; first the pairs.
            skip: D `[channels, heads]`.
            kernel_error: `[heads]`, in the order of the input.
            bidirectional: whether the second half of the channels looks ahead.
        """
        super().__init__()
        self.bidirectional = bidirectional
        self.has_pairs, self.has_dense = pairs is not None, dense is not None
        if pairs is not None:
            self.transition, self.input_map, self.output_map = (nn.Parameter(part) for part in pairs[:3])
            self.register_buffer("transition_tail", pairs.rounding_residual)
        if dense is not None:
            self.dense_transition, self.dense_input_map, self.dense_output_map = (
                nn.Parameter(part) for part in dense[:3]
            )
            self.register_buffer("order", order)
        self.D = skip
        self.register_buffer("kernel_error", kernel_error)
        self.dropout: nn.Module = nn.Identity()
        self.activation: nn.Module = nn.Identity()

    @classmethod
    def from_system(
        cls,
        transition: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        skip: nn.Parameter,
        bidirectional: bool,
        dense_heads: int | None = None,
    ) -> Self:
        """
        Diagonalizes the heads for which that is exact enough.

        Args:
            transition: `[heads, groups, size, size]`, float64, and so are
            b: `[heads, groups, size]` and
            c: `[heads, channels, groups, size]`.
            skip: D `[channels, heads]`; coefficients get its dtype.
            bidirectional: whether the second half of the channels looks ahead.
            dense_heads: how many heads keep a dense transition, the least exact ones; by default, those whose modes
                miss the tolerance.
        """
        dtype, exact = skip.dtype, sampled_kernel(transition, b, c)
        system = Coefficients.of(transition, b, c, dtype)
        errors = kernel_errors(exact, system)
        order = torch.arange(len(b), device=b.device)
        if system.rounding_residual is not None:
            # several blocks are those of a diagonal system; a single one may be dense
            system = system.as_rotations() if transition.shape[1] > 1 else system
            return cls(system, None, order, skip, errors.to(dtype), bidirectional)
        modes = Coefficients.of(*to_modal_form(transition, b, c)[:3], dtype)
        mode_errors = kernel_errors(exact, modes)
        # defective matrices have no modes: such heads stay dense
        mode_errors = torch.where(mode_errors.isfinite(), mode_errors, torch.inf)
        if dense_heads is None:
            dense_heads = 0
            # on the meta device there is nothing to compare; a loaded model has the count in its configuration
            if not b.is_meta:
                limit = TOLERANCE.get(dtype, DEFAULT_TOLERANCE)
                dense_heads = int(((mode_errors > limit) & (mode_errors > errors)).sum())
        # heads that gain by staying dense come last
        order = torch.where(mode_errors > errors, mode_errors, 0).argsort(stable=True, dim=0)
        # both parts in the order of the input again
        kept, dense = (part.sort().values for part in order.tensor_split([len(order) - dense_heads]))
        is_dense = torch.zeros_like(errors, dtype=torch.bool).index_fill(0, dense, True)
        return cls(
            modes.of_heads(kept) if len(kept) else None,
            system.of_heads(dense) if dense_heads else None,
            torch.cat([kept, dense]),
            skip,
            torch.where(is_dense, errors, mode_errors).to(dtype),
            bidirectional,
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn), recurse)

    @property
    def num_dense_heads(self) -> int:
        """Number of heads whose transition is a dense matrix."""
        return len(self.dense_transition) if self.has_dense else 0

    def _systems(self) -> list[Coefficients]:
        systems = []
        if self.has_pairs:
            rounding_residual = self.get_buffer("transition_tail")
            systems.append(Coefficients(self.transition, self.input_map, self.output_map, rounding_residual))
        if self.has_dense:
            systems.append(Coefficients(self.dense_transition, self.dense_input_map, self.dense_output_map, None))
        return systems

    def _scan(
        self,
        inputs: torch.Tensor,
        state: torch.Tensor | None,
        channels: slice,
        skip: torch.Tensor | None,
        gelu: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, heads, length]` to `[batch, channels, heads, length]` and the state, both in the stored order."""
        outputs, states, start = [], [], 0
        for system in self._systems():
            heads = slice(start, start + len(system.b))
            system = system._replace(c=system.c[:, channels])
            u, shape = inputs[:, heads], (inputs.shape[0], *system.b.shape)
            d = None if skip is None else skip[:, heads]
            # [batch, heads, state / 2, 2] of pairs, [batch, heads, 1, state] of dense heads
            before = u.new_zeros(shape) if state is None else state[:, heads].reshape(shape).to(u.dtype)
            if u.shape[-1] == 1:
                increment, rounding_residual, b, c = system.increment, system.rounding_residual, system.b, system.c
                if b.dtype != u.dtype:
                    increment, b, c = (part.to(u.dtype) for part in (increment, b, c))
                    rounding_residual = None if rounding_residual is None else rounding_residual.to(u.dtype)
                y, after = ssm_step(u[..., 0], increment, rounding_residual, b, c, before, d, kernels=self.kernels)
                y = y[..., None]
            else:
                # products of many steps' matrices are made in float64, where the device has it
                precise = torch.float32 if u.device.type == "mps" else torch.float64
                y, after = ssm_scan(u, *system.in_precision(precise), before, d, self.kernels, gelu)
            outputs.append(y)
            states.append(after.flatten(2).unflatten(2, (-1, 2)))
            start = heads.stop
        if not self.has_dense:
            return outputs[0], states[0]
        return torch.cat(outputs, dim=2), torch.cat(states, dim=1)

    def _step(self, inputs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, 1, heads]` in the dtype of the coefficients to outputs and the next state; without a gradient."""
        outputs, order, first = inputs.new_empty(len(inputs), 1, self.D.numel()), None, 0
        state = state.clone(memory_format=torch.contiguous_format)
        if self.has_dense:
            order = self.order
        if self.has_pairs:
            maps = self.transition, self.transition_tail, self.input_map, self.output_map
            ssm_step_(outputs, state, inputs, *maps, self.D, order, kernels=self.kernels)
            first = len(maps[0])
        if self.has_dense:
            maps = self.dense_transition, None, self.dense_input_map, self.dense_output_map
            ssm_step_(outputs, state, inputs, *maps, self.D, order, first, self.kernels)
        return outputs, state

    def _run(self, inputs: torch.Tensor, state: torch.Tensor | None, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, length, heads]` to `[batch, length, channels * heads]` and the state, or to the GELU of that."""
        u = inputs.movedim(1, 2)
        ordered = u[:, self.order] if self.has_dense else u
        channels = len(self.D)
        skip = self.D.to(u.dtype)
        skip = skip[:, self.order] if self.has_dense else skip
        y, state = self._scan(ordered, state, slice(0, channels), skip, gelu)
        if self.bidirectional:
            ahead, _ = self._scan(ordered.flip(-1), None, slice(channels, None), None)
            # of the positions after this one
            y = y + torch.nn.functional.pad(ahead.flip(-1)[..., 1:], (0, 1))
        if self.has_dense:
            y = torch.empty_like(y).index_copy(2, self.order, y)
        return y.flatten(1, 2).mT, state

    def forward(
        self, inputs: torch.Tensor, state: torch.Tensor | None = None, return_state: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            inputs: `[batch, length, heads]`.
            state: what a call on the positions before returned.
            return_state: whether a state is wanted.

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
                y, state = self._step(inputs.to(dtype), cast(torch.Tensor, state))
            else:
                y, state = self._run(inputs.to(dtype), state, gelu)
            if not gelu:
                y = self.activation(self.dropout(y))
        return y.to(inputs.dtype), state if return_state else None

    def extra_repr(self) -> str:
        return f"heads={self.D.shape[1]}, dense_heads={self.num_dense_heads}, bidirectional={self.bidirectional}"


__all__ = ["S4Recurrence", "keep_float32"]
