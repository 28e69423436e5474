"""The same functions in torch, for systems without a compiled variant."""

import math

import torch


CHUNK = 64


def _apply(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return (matrix @ vector[..., None])[..., 0]


def ssm_scan(
    inputs: torch.Tensor,
    transition: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
    gelu: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The recurrence `x_l = A x_{l-1} + b u_l`, `y_l = c x_l + D u_l`, with A of real blocks.

    Args:
        inputs: u `[batch, heads, length]`.
        transition: A `[heads, groups, size, size]`.
        b: `[heads, groups, size]`.
        c: `[heads, channels, groups, size]`.
        state: x before the first step, `[batch, heads, groups, size]`.
        skip: D `[channels, heads]`.
        gelu: whether to return the GELU of y, the exact one.

    Returns:
        y `[batch, channels, heads, length]` and the state after the last step, in the dtype of the inputs.

    Raises:
        ValueError: if there are no steps.
    """
    length = inputs.shape[-1]
    if length == 0:
        raise ValueError("length must not be zero")
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    signal, state, outputs = inputs.to(dtype), state.to(dtype).flatten(2), []
    for piece in signal.split(length - length % CHUNK or length, dim=-1):
        blocks = piece.unflatten(-1, (-1, min(CHUNK, piece.shape[-1])))
        y, state = _scan_chunks(blocks, transition, b, c, state)
        outputs.append(y)
    y = torch.cat(outputs, dim=-1)
    if skip is not None:
        y = y + skip.to(dtype)[..., None] * signal[:, None]
    if gelu:
        y = torch.nn.functional.gelu(y)
    return y.to(inputs.dtype), state.unflatten(2, b.shape[1:]).to(inputs.dtype)


def ssm_step(
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    skip: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One step `x <- x + D x - U V^T x + b u`, `y = c x + skip u`: `[batch, heads]` to `[batch, channels, heads]`, and x.

    Args:
        inputs: u.
        increment: p and q `[heads, groups, 2]` of the blocks `[[p, -q], [q, p]]` of D.
        tail: what rounding took away from the increment.
        b: `[heads, groups, 2]`.
        c: `[heads, channels, groups, 2]`.
        state: x `[batch, heads, groups, 2]`.
        skip: `[channels, heads]`.
        left: U `[heads, rank, groups, 2]`.
        right: V, of the same shape.
    """
    dtype, wide = state.dtype, torch.float32 if state.device.type == "mps" else torch.float64
    exact = state.to(wide)
    turned = torch.stack([-exact[..., 1], exact[..., 0]], dim=-1)
    change = b.to(wide) * inputs[..., None, None]
    if left is not None and right is not None:
        inner = torch.einsum("hrgi,bhgi->bhr", right.to(wide), exact)
        change = change - torch.einsum("hrgi,bhr->bhgi", left.to(wide), inner)
    for part in (tail, increment):
        if part is not None:
            change = change + part[..., :1].to(wide) * exact + part[..., 1:].to(wide) * turned
    state = (exact + change).to(dtype)  # rounded once: sums in float32 would round the tail away, in all steps alike
    outputs = (c.movedim(1, 0) * state[:, None]).sum((-2, -1))
    return outputs if skip is None else outputs + skip * inputs[:, None], state


def ssm_step_(
    outputs: torch.Tensor,
    state: torch.Tensor,
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
) -> None:
    """`ssm_step` in place; `inputs` and `outputs` may have more dimensions of 1."""
    y, last = ssm_step(inputs.flatten(1), increment, tail, b, c, state, skip, left, right)
    state.copy_(last)
    outputs.copy_(y.view_as(outputs))


def _scan_chunks(
    inputs: torch.Tensor, transition: torch.Tensor, b: torch.Tensor, c: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of whole chunks: `[batch, heads, chunks, steps]` to `[batch, channels, heads, length]`, and the flat state."""
    (batch, heads, _, steps), dtype = inputs.shape, inputs.dtype
    responses, readouts = [b], [_apply(transition.mT[:, None], c)]  # A^l b, c A^(l + 1)
    for _ in range(steps - 1):
        responses.append(_apply(transition, responses[-1]))
        readouts.append(_apply(transition.mT[:, None], readouts[-1]))
    response, readout = torch.stack(responses, dim=-1).flatten(1, 2), torch.stack(readouts, dim=-1).flatten(2, 3)
    lag = torch.arange(steps, device=b.device)[:, None] - torch.arange(steps, device=b.device)
    kernel = c.flatten(2) @ response
    toeplitz = torch.where(lag >= 0, kernel[..., lag.clamp(min=0)], 0).to(dtype)
    leap = torch.linalg.matrix_power(transition, steps).to(dtype)
    increments = torch.einsum("bhkt,hnt->kbhn", inputs, response.flip(-1).to(dtype))
    before = []
    for increment in increments:
        before.append(state)
        state = _apply(leap, state.unflatten(2, b.shape[1:])).flatten(2) + increment
    y = torch.einsum("bhks,hcts->bchkt", inputs, toeplitz)
    y = y + torch.einsum("kbhn,hcnt->bchkt", torch.stack(before), readout.to(dtype))
    return y.reshape(batch, -1, heads, inputs.shape[2] * steps), state


def cauchy(
    inputs: torch.Tensor, outputs: torch.Tensor, poles: torch.Tensor, length: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """
    Spectra of the kernels of systems with a low-rank part, at the nodes `exp(-2 pi i k / length)`.

    Args:
        inputs: `[heads, 1 + rank, state]`, complex128, multiplied by the step size.
        outputs: `[heads, channels + rank, state]`, complex128.
        poles: `[heads, state]`, complex128, multiplied by the step size.
        length: of the kernels, at least 1.
        dtype: the result's real one.

    Returns:
        The values at nodes 0 ... length // 2, complex `[heads, channels, length // 2 + 1]`.
    """
    rank, channels = inputs.shape[1] - 1, outputs.shape[1] - inputs.shape[1] + 1
    angles = torch.arange(length // 2 + 1, dtype=torch.float64, device=poles.device) * (math.pi / length)
    cosine, sine = angles.cos(), angles.sin()
    a, b, w = (torch.cat([part, part.conj()], dim=-1) for part in (inputs, outputs, poles))
    table = torch.einsum("han,hbn,hnk->hkab", a, b, 1 / (2j * sine - w[..., None] * cosine))
    low_rank, by_rank = table[:, :, 1:], cosine[:, None, None] * table[..., channels:]
    eye = torch.eye(rank, dtype=table.dtype, device=table.device)
    solved = torch.linalg.solve(eye + by_rank[:, :, 1:], low_rank[..., :channels])
    spectrum = (table[:, :, :1, :channels] - by_rank[:, :, :1] @ solved)[:, :, 0].mT * torch.complex(cosine, sine)
    return spectrum.to(dtype.to_complex())


def vandermonde(
    coefficients: torch.Tensor, base: torch.Tensor, length: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """
    Kernels of diagonal systems: `K[h, r, l] = 2 Re sum_n coefficients[h, r, n] * base[h, n] ** l`, for l < length.

    Args:
        coefficients: `[heads, rows, state]`, complex128.
        base: `[heads, state]`, complex128.
        length: at least 1.
        dtype: of the result.

    Returns:
        `[heads, rows, length]`.
    """
    width = math.isqrt(length - 1) + 1
    fine = base[..., None] ** torch.arange(width, device=base.device)
    coarse = (fine[..., -1] * base)[..., None] ** torch.arange(-(-length // width), device=base.device)
    left = (coefficients[..., None] * coarse[:, None]).mT
    left = torch.cat([2 * left.real, -2 * left.imag], dim=-1).flatten(1, 2).to(dtype)
    sums = left @ torch.cat([fine.real, fine.imag], dim=1).to(dtype)
    return sums.view(*coefficients.shape[:2], -1)[..., :length]


devices = ("cpu",)

__all__ = ["cauchy", "devices", "ssm_scan", "ssm_step", "ssm_step_", "vandermonde"]
