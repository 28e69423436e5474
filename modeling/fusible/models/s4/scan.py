"""
The recurrence of S4: a scan of many steps, one step, and one step in place.

`ssm_scan` and `ssm_step` are specifications as well: exact, differentiable, pure functions of plain tensors. None of
them makes a tensor of heads * state * length elements. Where compiled kernels are given that there are for the device
of the tensors, they do the work. `ssm_step_` is `ssm_step` in place, without a gradient.
"""

import torch

from ...kernels.loading import Kernels, is_transformed, usable_kernels
from .coefficients import Coefficients


CHUNK = 64  # steps that `ssm_scan` turns into one product of matrices


def _without_tiny(state: torch.Tensor) -> torch.Tensor:
    """
    A state without numbers below 1e-30, of which nothing is heard: what decays would get to subnormal ones and stay.

    Some processors take ten times as long for those. Not where a gradient is wanted, which zeros would not pass on.
    """
    return state if state.requires_grad or is_transformed() else torch.nn.functional.hardshrink(state, 1e-30)


def _apply(transition: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Blocks `[..., size, size]` times vectors `[..., size, count]`."""
    if transition.shape[-1] == 2:  # products of matrices are slow for so small ones
        first, second = transition.unbind(-1)
        return first[..., None] * vectors[..., :1, :] + second[..., None] * vectors[..., 1:, :]
    return transition @ vectors


def krylov(transition: torch.Tensor, vectors: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Vectors multiplied by the powers of a transition, by doubling.

    Args:
        transition: `[..., size, size]`.
        vectors: `[..., size, k]`.
        count: a power of two.

    Returns:
        `[..., size, count * k]`, where column `j * k + i` is `transition ** j @ vectors[i]`; `transition ** count`.
    """
    while count > 1:
        # from powers 0 ... j - 1 to 0 ... 2 j - 1, where `transition` is power j of the one given
        vectors = torch.cat([vectors, _apply(transition, vectors)], dim=-1)
        transition, count = _apply(transition, transition), count // 2
    return vectors, transition


def ssm_scan(
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
    kernels: Kernels | None = None,
    gelu: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The recurrence `x_l = A x_{l-1} + b u_l`, `y_l = c x_l + D u_l`, with A of real blocks, in chunks.

    Inside a chunk all is a product of matrices; from chunk to chunk the state is passed on.

    Args:
        inputs: u `[batch, heads, length]`, real.
        transition: A `[heads, groups, size, size]`, real: pairs of modes with size 2, a dense matrix with groups 1.
        b: `[heads, groups, size]`.
        c: `[heads, channels, groups, size]`.
        state: x before the first step, `[batch, heads, groups, size]`.
        skip: D `[channels, heads]`, zero by default.
        kernels: compiled ones.
        gelu: whether to return the GELU of y, the exact one.

    Returns:
        y `[batch, channels, heads, length]` and the state after the last step, in the dtype of the inputs.
    """
    compiled = usable_kernels(kernels, inputs)
    if compiled is not None:
        return compiled.ssm_scan(inputs, transition, b, c, state, skip, gelu)
    length, channels = inputs.shape[-1], c.shape[1]
    # a power of two, as doubling needs; a small one for few steps
    chunk = min(CHUNK, 1 << (length - 1).bit_length())
    responses, chunk_transition = krylov(transition, b[..., None], chunk)
    # c A ** (l + 1), as columns of the transposed: the state is the one in front of a chunk
    outputs, _ = krylov(transition.mT, _apply(transition.mT, c.movedim(1, -1)), chunk)
    responses = responses.flatten(1, 2)
    outputs = outputs.unflatten(-1, (chunk, channels)).permute(0, 4, 3, 1, 2).flatten(3)
    kernel = c.flatten(2) @ responses
    # [heads, groups, size, batch], for products of matrices over the batch
    state = state.movedim(0, -1).to(inputs.dtype)
    pieces = []
    # all whole chunks at once, then the rest as one shorter chunk
    for piece in inputs.split(length - length % chunk or length, dim=-1):
        width = min(chunk, piece.shape[-1])
        if width < chunk:
            chunk_transition = torch.linalg.matrix_power(transition, width)
        maps = [kernel[..., :width], responses[..., :width], outputs[:, :, :width], chunk_transition]
        # rounded only here, after all powers were made in the precision of the transition
        kernel_map, response_map, output_map, leap_map = (part.to(inputs.dtype) for part in maps)
        blocks = piece.unflatten(-1, (-1, width))
        y, state = _scan_chunks(blocks, kernel_map, response_map, output_map, leap_map, state)
        pieces.append(y)
    y = torch.cat(pieces, dim=-1)
    if skip is not None:
        y = y + skip.to(y.dtype)[..., None] * inputs[:, None]
    if gelu:
        y = torch.nn.functional.gelu(y)
    return y, state.movedim(-1, 0)


def _scan_chunks(
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    responses: torch.Tensor,
    outputs: torch.Tensor,
    chunk_transition: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `ssm_scan` of whole chunks.

    Args:
        inputs: `[batch, heads, chunks, steps]`.
        kernel: `c A ** l b`, `[heads, channels, steps]`.
        responses: `A ** l b`, `[heads, groups * size, steps]`.
        outputs: `c A ** (l + 1)`, `[heads, channels, steps, groups * size]`.
        chunk_transition: `A ** steps`, `[heads, groups, size, size]`.
        state: `[heads, groups, size, batch]`.
    """
    (heads, channels, steps), (batch, _, chunks, _) = kernel.shape, inputs.shape
    time = torch.arange(steps, device=kernel.device)
    lag = time[:, None] - time
    # [heads, channels * steps, steps]: outputs of inputs of the same chunk
    toeplitz = torch.where(lag >= 0, kernel[..., lag.clamp(min=0)], 0).flatten(1, 2)
    # [heads, steps, chunks * batch]
    columns = inputs.permute(1, 3, 2, 0).flatten(2)
    y = toeplitz @ columns
    # what a chunk adds to the state: its last input by b, its first one by A ** (steps - 1) b
    increments = (responses.flip(-1) @ columns).view(*state.shape[:3], chunks, batch)
    before = []
    for increment in increments.unbind(3):
        before.append(state)
        state = _without_tiny(_apply(chunk_transition, state) + increment)
    # states in front of the chunks as `[heads, groups * size, chunks * batch]`
    y = torch.baddbmm(y, outputs.flatten(1, 2), torch.stack(before, dim=3).flatten(3).flatten(1, 2))
    y = y.view(heads, channels, steps, chunks, batch).permute(4, 1, 0, 3, 2)
    return y.flatten(3), state


def scan_system(
    inputs: torch.Tensor,
    system: Coefficients,
    state: torch.Tensor | None,
    skip: torch.Tensor | None,
    kernels: Kernels | None = None,
    gelu: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `ssm_scan` of an exact system, from a state `[batch, heads, groups, 2]`, zero by default, to another.

    Low rank makes one dense matrix of each head, for this call only.
    """
    transition, b, c = system.matrices()
    batch = inputs.shape[0]
    before = inputs.new_zeros(batch, *b.shape) if state is None else state.reshape(batch, *b.shape).to(inputs.dtype)
    outputs, after = ssm_scan(inputs, transition, b, c, before, skip, kernels, gelu)
    return outputs, after.reshape(batch, *system.b.shape)


def ssm_step(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    rounding_residual: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
    kernels: Kernels | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One step `x <- x + D x - U V^T x + b u`, `y = c x + skip u`, with all tensors of one dtype.

    Args:
        inputs: u `[batch, heads]`.
        increment: p and q `[heads, groups, 2]` of the blocks `[[p, -q], [q, p]]` of D.
        rounding_residual: what rounding took away from the increment.
        b: `[heads, groups, 2]`.
        c: `[heads, channels, groups, 2]`.
        state: x before the step, `[batch, heads, groups, 2]`.
        skip: `[channels, heads]`, zero by default.
        left: U `[heads, rank, groups, 2]`, zero by default.
        right: V, of the same shape.
        kernels: compiled ones, which have no gradient and are not used where one is wanted.

    Returns:
        y `[batch, channels, heads]` and the state after the step.
    """
    tensors = (inputs, increment, b, c, state, skip, left, right)
    wants_gradient = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)
    compiled = usable_kernels(kernels, inputs)
    if compiled is not None and not wants_gradient:
        return compiled.ssm_step(inputs, increment, rounding_residual, b, c, state, skip, left, right)
    state = _moved(inputs, increment, rounding_residual, b, state, left, right)
    return _readout(inputs, c, state, skip), _without_tiny(state)


def _moved(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    rounding_residual: torch.Tensor | None,
    b: torch.Tensor,
    state: torch.Tensor,
    left: torch.Tensor | None,
    right: torch.Tensor | None,
) -> torch.Tensor:
    """The state after a step, rounded once where the device has float64: sums would lose the residual."""
    dtype = state.dtype
    if rounding_residual is not None and state.device.type != "mps":
        inputs, increment, rounding_residual, b, state = (
            part.double() for part in (inputs, increment, rounding_residual, b, state)
        )
        increment, rounding_residual = increment + rounding_residual, None
    # small terms first and the state last: where there is no float64, they would be lost in the state
    change, turned = b * inputs[..., None, None], torch.stack([-state[..., 1], state[..., 0]], dim=-1)
    if left is not None and right is not None:
        # [batch, heads, rank]
        inner = torch.einsum("hrgi,bhgi->bhr", right.to(state.dtype), state)
        change = change - torch.einsum("hrgi,bhr->bhgi", left.to(state.dtype), inner)
    for part in (rounding_residual, increment):
        if part is not None:
            # products with blocks `[[p, -q], [q, p]]`
            change = change + part[..., :1] * state + part[..., 1:] * turned
    return (state + change).to(dtype)


def _readout(inputs: torch.Tensor, c: torch.Tensor, state: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
    """`c x + skip u`."""
    y = (c.movedim(1, 0) * state[:, None]).sum((-2, -1))
    return y if skip is None else y + skip * inputs[:, None]


def ssm_step_(
    outputs: torch.Tensor,
    state: torch.Tensor,
    inputs: torch.Tensor,
    increment: torch.Tensor,
    rounding_residual: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
    kernels: Kernels | None = None,
) -> None:
    """
    `ssm_step` in place, without a gradient.

    Args:
        outputs: written to: y `[batch, 1, channels * heads]`, contiguous.
        state: replaced: x `[batch, heads, groups, 2]`, contiguous.
        inputs: u `[batch, 1, heads]`.
        increment: as the others, that of `ssm_step`.
        rounding_residual: what rounding took away from the increment.
        b: `[heads, groups, 2]`.
        c: `[heads, channels, groups, 2]`.
        skip: `[channels, heads]`, zero by default.
        left: U `[heads, rank, groups, 2]`, zero by default.
        right: V, of the same shape.
        kernels: compiled ones.

    Raises:
        RuntimeError: for dtypes, shapes and devices that do not fit.
    """
    maps = increment, rounding_residual, b, c
    compiled = usable_kernels(kernels, state)
    if compiled is not None:
        compiled.ssm_step_(outputs, state, inputs, *maps, skip, left, right)
        if not state.is_inference():
            torch.autograd.graph.increment_version(state)  # a graph that needs the old numbers says so
        return
    y, moved = ssm_step(inputs.flatten(1), *maps, state, skip, left, right)
    state.copy_(moved)
    outputs.copy_(y.view_as(outputs))


__all__ = ["krylov", "scan_system", "ssm_scan", "ssm_step", "ssm_step_"]
