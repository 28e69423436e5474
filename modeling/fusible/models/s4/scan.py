"""
The recurrence of S4: a scan of many steps, one step, and one step in place.

`ssm_scan` and `ssm_step` are specifications as well: exact, differentiable, pure functions of plain tensors. None of
them makes a tensor of heads * state * length elements. Where compiled kernels are given that there are for the device
of the tensors, they do the work. `ssm_step_` is `ssm_step` in place, without a gradient.
"""

import torch

from ...kernels.loading import Kernels, usable_kernels


CHUNK = 64  # steps that `ssm_scan` turns into one product of matrices


def _apply(transition: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Blocks `[..., size, size]` times vectors `[..., size, count]`."""
    if transition.shape[-1] == 2:  # products of matrices are slow for so small ones
        first, second = transition.unbind(-1)
        return first[..., None] * vectors[..., :1, :] + second[..., None] * vectors[..., 1:, :]
    return transition @ vectors


def blocks_of(parts: torch.Tensor) -> torch.Tensor:
    """Blocks `[heads, groups, size, size]`, also of rotations `[heads, groups, 2]`: p and q of `[[p, -q], [q, p]]`."""
    if parts.ndim == 4:
        return parts
    p, q = parts.unbind(-1)
    return torch.stack([p, -q, q, p], dim=-1).unflatten(-1, (2, 2))


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
        state = _apply(chunk_transition, state) + increment
    # states in front of the chunks as `[heads, groups * size, chunks * batch]`
    y = torch.baddbmm(y, outputs.flatten(1, 2), torch.stack(before, dim=3).flatten(3).flatten(1, 2))
    y = y.view(heads, channels, steps, chunks, batch).permute(4, 1, 0, 3, 2)
    return y.flatten(3), state


def ssm_step(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    rounding_residual: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
    kernels: Kernels | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One step of `ssm_scan`, with all tensors of one dtype.

    Args:
        inputs: u `[batch, heads]`.
        increment: A without the identity, `[heads, groups, size, size]`, or what `blocks_of` makes it of.
        rounding_residual: what rounding took away from the increment.
        b: `[heads, groups, size]`.
        c: `[heads, channels, groups, size]`.
        state: x before the step, `[batch, heads, groups, size]`.
        skip: D `[channels, heads]`, zero by default.
        kernels: compiled ones, which have no gradient and are not used where one is wanted.

    Returns:
        y `[batch, channels, heads]` and the state after the step.
    """
    tensors = (inputs, increment, b, c, state, skip)
    wants_gradient = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)
    compiled = usable_kernels(kernels, inputs)
    if compiled is not None and not wants_gradient:
        return compiled.ssm_step(inputs, increment, rounding_residual, b, c, state, skip)
    state = _moved(inputs, increment, rounding_residual, b, state)
    return _readout(inputs, c, state, skip), state


def _moved(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    rounding_residual: torch.Tensor | None,
    b: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """`A x + b u`, rounded once where the device has float64: sums would lose the residual, in all steps alike."""
    dtype = state.dtype
    if rounding_residual is not None and state.device.type != "mps":
        inputs, increment, rounding_residual, b, state = (
            part.double() for part in (inputs, increment, rounding_residual, b, state)
        )
        increment, rounding_residual = increment + rounding_residual, None
    # small terms first and the state last: where there is no float64, they would be lost in the state
    change = b * inputs[..., None, None]
    for part in (rounding_residual, increment):
        if part is not None:
            change = change + _apply(blocks_of(part), state.movedim(0, -1)).movedim(-1, 0)
    return (state + change).to(dtype)


def _readout(inputs: torch.Tensor, c: torch.Tensor, state: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
    """`c x + D u`."""
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
    order: torch.Tensor | None = None,
    first: int = 0,
    kernels: Kernels | None = None,
) -> None:
    """
    `ssm_step` in place, without a gradient, of some of the heads of a state.

    Args:
        outputs: written to: y `[batch, 1, channels * all heads]`, contiguous.
        state: replaced: x `[batch, all heads, groups, size]`, or its numbers in another shape of as many dimensions;
            contiguous.
        inputs: u `[batch, 1, all heads]`.
        increment: A without the identity; it, rounding_residual, b and c are those of `ssm_step`.
        rounding_residual: what rounding took away from the increment.
        b: `[heads, groups, size]`.
        c: `[heads, channels, groups, size]`.
        skip: D `[channels, all heads]`, zero by default.
        order: `[all heads]` (int64), whose input, skip and output each head of the state has; by default its own.
        first: number of the first head of the state that is moved; as many as there are increments are.
        kernels: compiled ones.

    Raises:
        RuntimeError: for dtypes, shapes and devices that do not fit.
    """
    compiled = usable_kernels(kernels, state)
    if compiled is not None:
        compiled.ssm_step_(outputs, state, inputs, increment, rounding_residual, b, c, skip, order, first)
        if not state.is_inference():
            torch.autograd.graph.increment_version(state)  # a graph that needs the old numbers says so
        return
    here = slice(first, first + len(b))
    place = here if order is None else order[here]
    u, moved = inputs.flatten(1)[:, place], state[:, here].view(len(state), *b.shape)
    # `moved` is a view, so that this writes the state
    moved.copy_(_moved(u, increment, rounding_residual, b, moved))
    y = _readout(u, c, moved, None if skip is None else skip[:, place])
    outputs.view(len(state), c.shape[1], -1)[:, :, place] = y


__all__ = ["blocks_of", "krylov", "ssm_scan", "ssm_step", "ssm_step_"]
