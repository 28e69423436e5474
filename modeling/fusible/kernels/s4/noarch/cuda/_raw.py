"""The kernels that `_device` is made of, in Triton."""
# mypy: disable-error-code="no-untyped-def"

from types import SimpleNamespace

import torch
import triton
import triton.language as tl

from ._poles import pole_sums, pole_sums_backward


# Triton's interpreter runs on the CPU, for tests
DEVICES = ("cpu", "cuda") if triton.knobs.runtime.interpret else ("cuda",)
ROWS, COLUMNS, DEPTH = 32, 64, 32  # of a block in a product


@triton.jit
def _product(
    x, x_batch, x_head, x_chunk, x_column, x_steps, x_limit,
    matrix, m_head, m_row, m_column,
    batch, chunks, depth, columns,
    causal: tl.constexpr, precision: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(2), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sequence, chunk = (row // chunks).to(tl.int64), row % chunks
    x += sequence * x_batch + head.to(tl.int64) * x_head + chunk.to(tl.int64) * x_chunk
    matrix += head.to(tl.int64) * m_head + column * m_column
    total = tl.zeros((ROWS, COLUMNS), dtype=x.dtype.element_ty)
    lost = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, depth, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside = (row < batch * chunks)[:, None] & (k < depth)[None, :]
        inside = inside & (chunk[:, None] * x_steps + k[None, :] < x_limit)
        left = tl.load(x[:, None] + (k.to(tl.int64) * x_column)[None, :], mask=inside, other=0.0)
        inside = (k < depth)[:, None] & (column < columns)[None, :]
        right = tl.load(matrix[None, :] + (k * m_row)[:, None], mask=inside, other=0.0)
        if causal:
            # products with the zeros of a triangle would carry NaN and infinity back in time
            bad = (left != left) | (tl.abs(left) == float("inf"))
            left = tl.where(bad, 0.0, left)
            if tl.max(bad.to(tl.int32)) > 0:
                later = (k[:, None] <= column[None, :]).to(tl.float32)
                lost += tl.dot(bad.to(tl.float32), later)
        total += tl.dot(left, right, input_precision=precision)
    return tl.where(lost > 0, float("nan"), total)


@triton.jit
def _multiply(
    out, out_batch, out_head, out_chunk, out_column, out_steps, out_limit,
    x, x_batch, x_head, x_chunk, x_column, x_steps, x_limit,
    matrix, m_head, m_row, m_column, depth,
    y, y_batch, y_head, y_chunk, y_column, y_steps, y_limit,
    other, o_head, o_row, o_column, other_depth,
    batch, chunks, columns,
    add: tl.constexpr, causal: tl.constexpr, gelu: tl.constexpr, has_other: tl.constexpr, precision: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(2), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sequence, chunk = (row // chunks).to(tl.int64), row % chunks
    total = _product(
        x, x_batch, x_head, x_chunk, x_column, x_steps, x_limit, matrix, m_head, m_row, m_column,
        batch, chunks, depth, columns, causal, precision, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    if has_other:
        total += _product(
            y, y_batch, y_head, y_chunk, y_column, y_steps, y_limit, other, o_head, o_row, o_column,
            batch, chunks, other_depth, columns, False, precision, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
    inside = (row < batch * chunks)[:, None] & (column < columns)[None, :]
    inside = inside & (chunk[:, None] * out_steps + column[None, :] < out_limit)
    out += sequence * out_batch + head.to(tl.int64) * out_head + chunk.to(tl.int64) * out_chunk
    to = out[:, None] + (column.to(tl.int64) * out_column)[None, :]
    if add:
        total += tl.load(to, mask=inside, other=0.0)
    if gelu:
        total *= 0.5 + 0.5 * tl.erf(total * 0.7071067811865476)
    tl.store(to, total, mask=inside)


@triton.jit
def _correlate(
    out, out_head, out_row, out_column,
    x, x_batch, x_head, x_chunk, x_column, x_steps, x_limit,
    y, y_batch, y_head, y_chunk, y_column, y_steps, y_limit,
    batch, chunks, rows, columns,
    precision: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2).to(tl.int64)
    i, j = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=x.dtype.element_ty)
    for start in range(0, batch * chunks, DEPTH):
        k = start + tl.arange(0, DEPTH)
        sequence, chunk, present = (k // chunks).to(tl.int64), k % chunks, k < batch * chunks
        inside = present[None, :] & (i < rows)[:, None] & (chunk[None, :] * x_steps + i[:, None] < x_limit)
        from_x = x + head * x_head + (sequence * x_batch + chunk.to(tl.int64) * x_chunk)[None, :]
        left = tl.load(from_x + (i.to(tl.int64) * x_column)[:, None], mask=inside, other=0.0)
        inside = present[:, None] & (j < columns)[None, :] & (chunk[:, None] * y_steps + j[None, :] < y_limit)
        from_y = y + head * y_head + (sequence * y_batch + chunk.to(tl.int64) * y_chunk)[:, None]
        right = tl.load(from_y + (j.to(tl.int64) * y_column)[None, :], mask=inside, other=0.0)
        total += tl.dot(left, right, input_precision=precision)
    to = out + head * out_head + (i * out_row)[:, None] + (j * out_column)[None, :]
    tl.store(to, total, mask=(i < rows)[:, None] & (j < columns)[None, :])


@triton.jit
def _scan(
    states, added, leap, l_head, l_group, l_row, l_column, late, t_head, t_group, t_row, t_column, first, last,
    heads, chunks, groups, size, reverse: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    sequence, count = tl.program_id(0).to(tl.int64), groups * size
    head = sequence % heads
    g, i = tl.arange(0, GROUPS), tl.arange(0, SIZE)
    at = g[:, None] * size + i[None, :]
    inside = (g < groups)[:, None] & (i < size)[None, :]
    g3, i3, j3 = g[:, None, None], i[None, :, None], i[None, None, :]
    square = (g3 < groups) & (i3 < size) & (j3 < size)
    usual = tl.load(leap + head * l_head + g3 * l_group + i3 * l_row + j3 * l_column, mask=square, other=0.0)
    final = tl.load(late + head * t_head + g3 * t_group + i3 * t_row + j3 * t_column, mask=square, other=0.0)
    x = tl.load(first + sequence * count + at, mask=inside, other=0.0)
    for step in range(chunks):
        k = chunks - 1 - step if reverse else step
        place = (sequence * chunks + k) * count + at
        tl.store(states + place, x, mask=inside)
        matrix = tl.where(k == chunks - 1, final, usual)
        x = tl.sum(matrix * x[:, None, :], axis=2) + tl.load(added + place, mask=inside, other=0.0)
    tl.store(last + sequence * count + at, x, mask=inside)


@triton.jit
def _step(
    outputs, last, inputs, increment, tail, b, c, skip, left, right, state, heads, channels, groups, rank,
    has_tail: tl.constexpr, has_skip: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    sequence, count = tl.program_id(0).to(tl.int64), 2 * groups
    head, n = sequence % heads, tl.arange(0, COUNT)
    inside, u = n < count, tl.load(inputs + sequence)
    before = state + sequence * count
    x = tl.load(before + n, mask=inside, other=0.0)
    other = tl.load(before + (n ^ 1), mask=inside, other=0.0)
    other = tl.where(n % 2 == 0, -other, other)
    change = tl.load(b + head * count + n, mask=inside, other=0.0) * u
    for r in range(rank):
        at = (head * rank + r) * count + n
        inner = tl.sum(tl.load(right + at, mask=inside, other=0.0) * x)
        change -= tl.load(left + at, mask=inside, other=0.0) * inner
    p = head * count + n // 2 * 2  # of [[p, -q], [q, p]]
    if has_tail:
        change += tl.load(tail + p, mask=inside, other=0.0) * x
        change += tl.load(tail + p + 1, mask=inside, other=0.0) * other
    change += tl.load(increment + p, mask=inside, other=0.0) * x
    change += tl.load(increment + p + 1, mask=inside, other=0.0) * other
    after = x + change
    tl.debug_barrier()  # all of the state has been read, and `last` may be it
    tl.store(last + sequence * count + n, after, mask=inside)
    for r in range(channels):
        y = tl.sum(tl.load(c + (head * channels + r) * count + n, mask=inside, other=0.0) * after)
        if has_skip:
            y += tl.load(skip + r * heads + head) * u
        tl.store(outputs + (sequence // heads * channels + r) * heads + head, y)


def _operand(tensor: torch.Tensor, steps: int) -> tuple[torch.Tensor | int, ...]:
    """A signal `[batch, heads, length]` in chunks, or `[batch, heads, chunks, n]`: address, strides and limits."""
    if tensor.ndim == 3:
        return (
            tensor,
            tensor.stride(0),
            tensor.stride(1),
            tensor.stride(2) * steps,
            tensor.stride(2),
            steps,
            tensor.shape[2],
        )
    return tensor, *tensor.stride(), 0, tensor.shape[3]


def _rows(tensor: torch.Tensor, steps: int) -> tuple[int, int]:
    return tensor.shape[0], tensor.shape[2] if tensor.ndim == 4 else -(-tensor.shape[2] // steps)


def _precision(tensor: torch.Tensor) -> str:
    """Three products of shorter numbers are as exact as one of float32, on tensor cores."""
    has_tf32 = tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (8, 0)
    return "tf32x3" if has_tf32 and tensor.dtype == torch.float32 else "ieee"


def multiply(
    out: torch.Tensor,
    x: torch.Tensor,
    matrix: torch.Tensor,
    other: torch.Tensor | None,
    other_matrix: torch.Tensor | None,
    steps: int,
    add: bool,
    causal: bool,
    gelu: bool = False,
) -> None:
    batch, chunks = _rows(out, steps)
    columns = matrix.shape[2]
    if 0 in out.shape:
        return
    has_other = other is not None
    second, second_matrix = x if other is None else other, matrix if other_matrix is None else other_matrix
    grid = (triton.cdiv(batch * chunks, ROWS), triton.cdiv(columns, COLUMNS), out.shape[1])
    _multiply[grid](
        *_operand(out, steps), *_operand(x, steps), matrix, *matrix.stride(), matrix.shape[1],
        *_operand(second, steps), second_matrix, *second_matrix.stride(), second_matrix.shape[1],
        batch, chunks, columns, add, causal, gelu, has_other, _precision(x), ROWS, COLUMNS, DEPTH,
    )  # fmt: skip


def correlate(out: torch.Tensor, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    (heads, rows, columns), (batch, chunks) = out.shape, _rows(x, steps)
    if heads == 0:
        return
    if chunks == 0:
        batch, chunks = 0, 1  # the kernel divides by it
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS), heads)
    _correlate[grid](
        out, *out.stride(), *_operand(x, steps), *_operand(y, steps), batch, chunks,
        rows, columns, _precision(x), ROWS, COLUMNS, DEPTH,
    )  # fmt: skip


def scan(
    states: torch.Tensor,
    added: torch.Tensor,
    leap: torch.Tensor,
    last_leap: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    reverse: bool,
) -> None:
    (batch, heads, chunks, _), (_, groups, size, _) = states.shape, leap.shape
    if batch * heads:
        _scan[batch * heads,](
            states, added, leap, *leap.stride(), last_leap, *last_leap.stride(), first, last,
            heads, chunks, groups, size, reverse, triton.next_power_of_2(groups), triton.next_power_of_2(size),
        )  # fmt: skip


def step(
    outputs: torch.Tensor,
    last: torch.Tensor,
    inputs: torch.Tensor,
    increment: torch.Tensor,
    tail: torch.Tensor | None,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None,
    left: torch.Tensor | None,
    right: torch.Tensor | None,
    state: torch.Tensor,
) -> None:
    (batch, heads), (_, channels, groups, _) = inputs.shape, c.shape
    if batch * heads:
        rest, d, columns, rows = (inputs if part is None else part for part in (tail, skip, left, right))
        _step[batch * heads,](
            outputs, last, inputs, increment, rest, b, c, d, columns, rows, state, heads, channels, groups,
            0 if left is None else left.shape[1], tail is not None, skip is not None,
            triton.next_power_of_2(2 * groups),
        )  # fmt: skip


raw = SimpleNamespace(
    multiply=multiply,
    correlate=correlate,
    scan=scan,
    step=step,
    pole_sums_of=pole_sums,
    pole_sums_backward_of=pole_sums_backward,
)
