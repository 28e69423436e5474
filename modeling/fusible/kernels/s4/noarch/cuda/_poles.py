"""Sums of poles for `_raw`, in Triton."""
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl


NODES = 128  # a tile's, as in `_device`


@triton.jit
def _quotient(states, nodes, count, k, n, state):
    """`1 / (A + i B)` of one state at the nodes; the difference in A is exact beside a pole."""
    cosine, sine = tl.load(nodes + k), tl.load(nodes + 2 * count + k)
    size, low = tl.load(states + n), tl.load(states + state + n)
    decay, scale = tl.load(states + 2 * state + n), tl.load(states + 3 * state + n)
    cosine_low, sine_low = tl.load(nodes + count + k), tl.load(nodes + 3 * count + k)
    near = size * cosine - sine + (low * (cosine + cosine_low) + size * cosine_low - sine_low)
    a, b = (near * scale) * ((near + 2 * (sine + sine_low)) * scale), decay * tl.load(nodes + 4 * count + k)
    inverse = 1 / (a * a + b * b)
    return a * inverse, b * inverse


@triton.jit
def _tables(
    weights, states, nodes, k, count, state, ins, outs, entry, present,
    INS: tl.constexpr, OUTS: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """Sums of poles, real and imaginary parts `[INS, OUTS, nodes]`."""
    cosine = tl.load(nodes + k) + tl.load(nodes + count + k)
    sine = tl.load(nodes + 2 * count + k) + tl.load(nodes + 3 * count + k)
    c, s = cosine[None, None, :], sine[None, None, :]
    re = tl.zeros((INS, OUTS, NODES), dtype=weights.dtype.element_ty)
    im = tl.zeros((INS, OUTS, NODES), dtype=weights.dtype.element_ty)
    for n in range(state):
        real, imaginary = _quotient(states, nodes, count, k, n, state)
        real, imaginary = real[None, None, :], imaginary[None, None, :]
        both = tl.load(weights + entry * state + n, mask=present, other=0.0)
        single = tl.load(weights + (entry + ins * outs) * state + n, mask=present, other=0.0)
        re += both * (c * real) + single * (s * imaginary)
        im += single * (s * real) - both * (c * imaginary)
    return re, im, cosine, sine


@triton.jit
def _pick(values, at, where, axis: tl.constexpr):
    """The values at one place of an axis, which is kept."""
    return tl.sum(tl.where(at == where, values, 0.0), axis=axis, keep_dims=True)


@triton.jit
def _factor(re, im, i, o, last, column, cosine):
    """Row and column of the low-rank part, and what Woodbury's identity divides their product by."""
    row_re, row_im = _pick(re, i, last, 0), _pick(im, i, last, 0)
    column_re, column_im = _pick(re, o, column, 1), _pick(im, o, column, 1)
    below, beside = 1 + cosine * _pick(row_re, o, column, 1), cosine * _pick(row_im, o, column, 1)
    by = cosine / (below * below + beside * beside)
    return row_re, row_im, column_re, column_im, below * by, -beside * by


@triton.jit
def _pole_sums(
    spectrum, weights, states, nodes, count, state, ins, outs,
    INS: tl.constexpr, OUTS: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * NODES + tl.arange(0, NODES)
    k = tl.minimum(place, count - 1)
    i, o = tl.arange(0, INS)[:, None, None], tl.arange(0, OUTS)[None, :, None]
    entry, present = i * outs + o, (i < ins) & (o < outs)
    weights, states = weights + head * 2 * ins * outs * state, states + head * 4 * state
    re, im, cosine, sine = _tables(
        weights, states, nodes, k, count, state, ins, outs, entry, present, INS, OUTS, NODES
    )
    c, s = cosine[None, None, :], sine[None, None, :] / 2
    channels = outs - ins + 1
    for stage in range(1, ins):
        last, column = ins - stage, outs - stage
        row_re, row_im, column_re, column_im, by_re, by_im = _factor(re, im, i, o, last, column, c)
        left_re, left_im = column_re * by_re - column_im * by_im, column_re * by_im + column_im * by_re
        used = (i < last) & (o < column)
        re -= tl.where(used, left_re * row_re - left_im * row_im, 0.0)
        im -= tl.where(used, left_re * row_im + left_im * row_re, 0.0)
    to = spectrum + ((head * channels + o + 0 * i) * count + place[None, None, :]) * 2
    inside = (i == 0) & (o < channels) & (place < count)[None, None, :]
    tl.store(to, c * re - s * im, mask=inside)
    tl.store(to + 1, c * im + s * re, mask=inside)


@triton.jit
def _pole_sums_backward(
    of_weights, of_states, gradient, weights, states, nodes, count, state, ins, outs,
    INS: tl.constexpr, OUTS: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    tile, tiles, head = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    place = tile * NODES + tl.arange(0, NODES)
    k = tl.minimum(place, count - 1)
    i, o = tl.arange(0, INS)[:, None, None], tl.arange(0, OUTS)[None, :, None]
    entry, present = i * outs + o, (i < ins) & (o < outs)
    weights, states = weights + head * 2 * ins * outs * state, states + head * 4 * state
    re, im, cosine, sine = _tables(
        weights, states, nodes, k, count, state, ins, outs, entry, present, INS, OUTS, NODES
    )
    c, s = cosine[None, None, :], sine[None, None, :] / 2
    channels = outs - ins + 1
    for stage in range(1, ins):
        last, column = ins - stage, outs - stage
        row_re, row_im, column_re, column_im, by_re, by_im = _factor(re, im, i, o, last, column, c)
        left_re, left_im = column_re * by_re - column_im * by_im, column_re * by_im + column_im * by_re
        used = (i < last) & (o < column)
        re -= tl.where(used, left_re * row_re - left_im * row_im, 0.0)
        im -= tl.where(used, left_re * row_im + left_im * row_re, 0.0)
    source = gradient + ((head * channels + o + 0 * i) * count + place[None, None, :]) * 2
    inside = (i == 0) & (o < channels) & (place < count)[None, None, :]
    given_re, given_im = tl.load(source, mask=inside, other=0.0), tl.load(source + 1, mask=inside, other=0.0)
    of_re, of_im = c * given_re + s * given_im, c * given_im - s * given_re
    # used rows and columns are still as they were before they were used
    for last in range(1, ins):
        column = channels + last - 1
        row_re, row_im, column_re, column_im, by_re, by_im = _factor(re, im, i, o, last, column, c)
        used = (i < last) & (o < column)
        g_re, g_im = tl.where(used, of_re, 0.0), tl.where(used, of_im, 0.0)
        t_re, t_im = g_re * by_re + g_im * by_im, g_im * by_re - g_re * by_im
        of_column_re = tl.sum(t_re * row_re + t_im * row_im, axis=1, keep_dims=True)
        of_column_im = tl.sum(t_im * row_re - t_re * row_im, axis=1, keep_dims=True)
        of_row_re = tl.sum(t_re * column_re + t_im * column_im, axis=0, keep_dims=True)
        of_row_im = tl.sum(t_im * column_re - t_re * column_im, axis=0, keep_dims=True)
        both_re, both_im = column_re * row_re - column_im * row_im, column_re * row_im + column_im * row_re
        of_by_re = tl.sum(tl.sum(g_re * both_re + g_im * both_im, axis=1, keep_dims=True), axis=0, keep_dims=True)
        of_by_im = tl.sum(tl.sum(g_im * both_re - g_re * both_im, axis=1, keep_dims=True), axis=0, keep_dims=True)
        square_re, square_im = by_re * by_re - by_im * by_im, 2 * by_re * by_im
        of_pivot_re = of_by_re * square_re + of_by_im * square_im
        of_pivot_im = of_by_im * square_re - of_by_re * square_im
        in_column, in_row, is_pivot = (
            (i < last) & (o == column),
            (i == last) & (o < column),
            (i == last) & (o == column),
        )
        of_re -= tl.where(in_column, of_column_re, 0.0) + tl.where(in_row, of_row_re, 0.0)
        of_im -= tl.where(in_column, of_column_im, 0.0) + tl.where(in_row, of_row_im, 0.0)
        of_re += tl.where(is_pivot, of_pivot_re, 0.0)
        of_im += tl.where(is_pivot, of_pivot_im, 0.0)
    slot = head * tiles + tile
    of_weights += slot * 2 * ins * outs * state
    of_states += slot * 2 * state
    both_factor = tl.load(nodes + 4 * count + k)
    for n in range(state):
        real, imaginary = _quotient(states, nodes, count, k, n, state)
        g, h = real[None, None, :], imaginary[None, None, :]
        two_s = 2 * s
        of_both = tl.sum(c * (of_re * g - of_im * h), axis=2, keep_dims=True)
        of_single = tl.sum(two_s * (of_re * h + of_im * g), axis=2, keep_dims=True)
        tl.store(of_weights + entry * state + n, of_both, mask=present)
        tl.store(of_weights + (entry + ins * outs) * state + n, of_single, mask=present)
        both = tl.load(weights + entry * state + n, mask=present, other=0.0)
        single = tl.load(weights + (entry + ins * outs) * state + n, mask=present, other=0.0)
        of_real = tl.sum(tl.sum(both * (c * of_re) + single * (two_s * of_im), axis=1), axis=0)
        of_imaginary = tl.sum(tl.sum(single * (two_s * of_re) - both * (c * of_im), axis=1), axis=0)
        even, odd = imaginary * imaginary - real * real, 2 * real * imaginary
        tl.store(of_states + n, tl.sum((of_real * even - of_imaginary * odd) * cosine * cosine))
        tl.store(of_states + state + n, -tl.sum((of_real * odd + of_imaginary * even) * both_factor))


def _pole_sizes(weights: torch.Tensor, nodes: torch.Tensor) -> tuple[tuple[int, int], tuple[int, ...]]:
    (heads, _, ins, outs, state), count = weights.shape, nodes.shape[1]
    blocks = triton.next_power_of_2(ins), triton.next_power_of_2(outs), NODES
    return (triton.cdiv(count, NODES), heads), (count, state, ins, outs, *blocks)


def pole_sums(spectrum: torch.Tensor, weights: torch.Tensor, states: torch.Tensor, nodes: torch.Tensor) -> None:
    grid, sizes = _pole_sizes(weights, nodes)
    if len(weights):
        _pole_sums[grid](spectrum, weights, states, nodes, *sizes)


def pole_sums_backward(
    of_weights: torch.Tensor,
    of_states: torch.Tensor,
    gradient: torch.Tensor,
    weights: torch.Tensor,
    states: torch.Tensor,
    nodes: torch.Tensor,
) -> None:
    grid, sizes = _pole_sizes(weights, nodes)
    if len(weights):
        _pole_sums_backward[grid](of_weights, of_states, gradient, weights, states, nodes, *sizes)
