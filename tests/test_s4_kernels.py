"""S4's compiled operations against the torch definitions in float64: values, all gradients, bad input."""

import os
import re
import runpy
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

from fusible import ops_s4, scan_s4
from fusible.kernels import build
from fusible.kernels_s4 import import_variant


pytest_plugins = ["kernel_fixture"]

# batch, heads, channels, groups, size, length
SIZES = [
    (2, 3, 1, 1, 2, 1),
    (2, 3, 2, 3, 2, 2),
    (3, 17, 1, 5, 2, 37),
    (1, 2, 1, 32, 2, 1000),
    (2, 2, 2, 9, 2, 512),
    (2, 3, 1, 96, 1, 545),
    (2, 2, 2, 1, 64, 600),
    (2, 3, 1, 1, 7, 40),
    (1, 2, 1, 1, 33, 64),
    (2, 2, 1, 4, 3, 33),
    (1, 2, 1, 2, 2, 16384),
]
SINGLE = 2e-5  # of norms, in float32: terms of both signs are larger than their sums
NAMES = ("inputs", "transition", "b", "c", "state", "skip")


def make(batch, heads, channels, groups, size, length, dtype=torch.float64, heads_innermost=False, skip=True):
    """Arguments of `ssm_scan`, with stable transitions."""
    transition = 0.98 * torch.linalg.qr(torch.randn(heads, groups, size, size, dtype=torch.float64)).Q
    inputs = torch.randn(batch, heads, length, dtype=dtype)
    if heads_innermost:
        inputs = inputs.mT.contiguous().mT
    arguments = [
        inputs,
        transition,
        torch.randn(heads, groups, size, dtype=torch.float64),
        torch.randn(heads, channels, groups, size, dtype=torch.float64),
        torch.randn(batch, heads, groups, size, dtype=dtype),
    ]
    if skip:
        arguments.append(torch.randn(channels, heads, dtype=torch.float64))
    return [argument.requires_grad_() for argument in arguments]


def definition(inputs, transition, b, c, state, skip=None):
    y, last = scan_s4.ssm_scan(inputs.double(), transition, b, c, state.double())
    return (y if skip is None else y + skip[..., None] * inputs.double()[:, None]), last


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


@torch.no_grad()
def assert_near(actual, expected, tolerance):
    for name, one, other in zip(("y", "last", *NAMES), actual, expected, strict=False):
        assert one.shape == other.shape
        assert relative(one, other) < tolerance, name


def assert_is_the_definition(function, arguments, tolerance):
    """Outputs and gradients of all arguments, with respect to both outputs."""
    outputs, expected = function(*arguments), definition(*arguments)
    weights = [torch.randn_like(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, arguments, weights)
    reference = torch.autograd.grad(expected, arguments, [weight.double() for weight in weights])
    assert_near([*outputs, *gradients], [*expected, *reference], tolerance)
    for gradient, argument in zip(gradients, arguments, strict=True):
        assert gradient.dtype == argument.dtype


@pytest.mark.parametrize("heads_innermost", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scan(kernel, sizes, heads_innermost):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, SINGLE)):
        arguments = make(*sizes, dtype, heads_innermost, skip=heads_innermost)
        assert_is_the_definition(kernel.ssm_scan, arguments, tolerance)
        y, last = kernel.ssm_scan(*arguments)
        assert y.dtype == last.dtype == dtype
        if heads_innermost:
            assert y.flatten(1, 2).mT.is_contiguous()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scan_with_gelu(kernel, sizes):
    for dtype, tolerance, heads_innermost in (
        (torch.float64, 1e-12, False),
        (torch.float64, 1e-12, True),
        (torch.float32, SINGLE, False),
        (torch.float32, SINGLE, True),
    ):
        arguments = make(*sizes, dtype, heads_innermost)
        y, last = definition(*arguments)
        expected = torch.nn.functional.gelu(y)
        with torch.no_grad():
            assert_near(kernel.ssm_scan(*arguments, gelu=True), [expected, last], tolerance)
    actual, _ = kernel.ssm_scan(*arguments, gelu=True)
    weights = torch.randn_like(actual)
    gradients, reference = (torch.autograd.grad(y, arguments, weights.to(y.dtype)) for y in (actual, expected))
    assert_near([actual, last, *gradients], [expected, last, *reference], SINGLE)


@torch.no_grad()
def test_gelu_of_any_number(kernel):
    """By a system that passes its inputs on."""
    sizes = torch.cat([torch.logspace(-40, 4, 89, dtype=torch.float64), torch.linspace(0, 40, 321).double()])
    for dtype, tolerance in ((torch.float64, 1e-15), (torch.float32, 5e-7)):
        values = torch.cat([sizes, -sizes, torch.tensor([float("nan"), float("inf"), -float("inf")])]).to(dtype)
        zeros = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        state, skip = torch.zeros(len(values), 1, 1, 1, dtype=dtype), torch.ones(1, 1, dtype=torch.float64)
        y, _ = kernel.ssm_scan(values[:, None, None], zeros, zeros[0], zeros, state, skip, gelu=True)
        *finite, nan, above, below = y.double().flatten()
        exact = values[:-3].double()
        errors = (torch.stack(finite) - torch.nn.functional.gelu(exact)).abs() / exact.abs().clamp(min=1)
        assert errors.max() < tolerance
        assert nan.isnan() and below.isnan() and not above.isfinite()


def test_operator_with_gelu_has_no_gradient(kernel):
    inputs, *maps, state, skip = make(2, 3, 2, 4, 2, 37)
    operators = sys.modules[kernel.ssm_scan.__module__].ops
    with pytest.raises(NotImplementedError, match="A scan with GELU has no gradient"):
        operators.ssm_scan(inputs, *maps, skip, state, True)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_scan_of_any_number_of_states(kernel, size):
    for groups in range(1, 97, 5):
        assert_is_the_definition(kernel.ssm_scan, make(1, 2, 1, groups, size, 35), 1e-12)


def test_scan_of_any_strides(kernel):
    inputs, transition, b, c, state = make(2, 4, 2, 3, 2, 70, skip=False)
    wide = torch.randn(2, 8, 3, 140, dtype=torch.float64)
    others = [
        transition.detach().mT.contiguous().mT,
        torch.stack([b, b], dim=1)[:, 0],
        c.detach().movedim(1, 3).contiguous().movedim(3, 1),
        state.detach().expand(2, 4, 3, 2),
    ]
    for view in (wide[:, ::2, 1, ::2], wide[:, :4, 0, :70].mT.contiguous().mT, wide[:1, :4, 2, :70].expand(2, 4, 70)):
        y, last = kernel.ssm_scan(view, *others)
        assert_near([y, last], definition(view, *(other.contiguous() for other in others)), 1e-12)
    # of a sum, the gradient has strides 0
    kernel.ssm_scan(inputs, transition, b, c, state)[0].sum().backward()
    expected = torch.autograd.grad(definition(inputs, transition, b, c, state)[0].sum(), inputs)
    assert_near([inputs.grad], expected, 1e-12)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_step(kernel, sizes):
    inputs, *maps, state, skip = (argument.detach() for argument in make(*sizes[:5], 1))
    for extra in (None, skip):
        expected = definition(inputs, *maps, state, extra)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, SINGLE)):
            arguments = step_arguments(dtype, inputs[..., 0], *maps, state, extra)
            for tail in (arguments[2], None):
                y, last = kernel.ssm_step(*arguments[:2], tail, *arguments[3:])
                assert y.dtype == last.dtype == dtype
                assert_near([y, last], [expected[0][..., 0], expected[1]], tolerance)
    arguments = step_arguments(torch.float64, inputs[..., 0], *maps, state, skip)
    strided = [torch.stack([part] * 2, dim=-1)[..., 0] for part in arguments]
    assert_near(kernel.ssm_step(*strided), kernel.ssm_step(*arguments), 1e-14)


def step_arguments(dtype, inputs, transition, b, c, state, skip):
    """Of `ssm_step`, with what rounding the increment takes away."""
    exact = transition - torch.eye(transition.shape[-1], dtype=torch.float64)
    increment = exact.to(dtype)
    parts = (inputs, increment, exact - increment, b, c, state, skip)
    return [None if part is None else part.to(dtype) for part in parts]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_step_in_place_of_some_heads(kernel, sizes):
    """The first heads of a state and then the others, in another order than inputs and outputs."""
    batch, heads, channels, groups, size, _ = sizes
    inputs, *maps, state, skip = (argument.detach() for argument in make(batch, heads + 3, *sizes[2:5], 1))
    order = torch.randperm(heads + 3)
    expected, last = definition(inputs[:, order], *maps, state, skip[:, order])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, SINGLE)):
        u, increment, tail, b, c, x, d = step_arguments(dtype, inputs.mT.contiguous(), *maps, state, skip)
        x, y = x.clone().view(batch, heads + 3, -1, 1), torch.empty(batch, 1, channels * (heads + 3), dtype=dtype)
        for part in (slice(0, 3), slice(3, None)):
            parts = [tensor[part] for tensor in (increment, tail, b, c)]
            kernel.ssm_step_(y, x, u, *parts, d, order, part.start)
        assert_near([y.view(batch, channels, -1)[:, :, order], x.view_as(last)], [expected[..., 0], last], tolerance)


@pytest.mark.parametrize("groups", [1, 5, 32])
def test_step_of_rotations(kernel, groups):
    """Of blocks `[[p, -q], [q, p]]`, p and q do as well."""
    inputs, _, *others = (argument.detach() for argument in make(2, 3, 2, groups, 2, 1))
    p, q = torch.randn(2, 3, groups, dtype=torch.float64) / 2
    blocks = torch.stack([p, -q, q, p], dim=-1).unflatten(-1, (2, 2))
    expected, last = definition(inputs, blocks, *others)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, SINGLE)):
        u, increment, tail, *parts = step_arguments(dtype, inputs[..., 0], blocks, *others)
        for rest in (tail[..., 0], None):
            actual = kernel.ssm_step(u, increment[..., 0], rest, *parts)
            assert_near(actual, [expected[..., 0], last], tolerance)


def test_many_steps_keep_their_digits(kernel):
    """A transition of slow modes, rounded to float32, would be off by more after thousands of steps."""
    turn = torch.exp(torch.tensor([-1e-4 + 1e-3j, -1e-4 + 2j], dtype=torch.complex128))
    blocks = torch.stack([torch.view_as_real(turn), torch.view_as_real(turn * 1j)], dim=-1)
    state = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    maps = [blocks[None], torch.randn(1, 2, 2).double(), torch.randn(1, 1, 2, 2).double()]
    y, _ = definition(torch.zeros(1, 1, 5000, dtype=torch.float64), *maps, state)
    u, increment, tail, b, c, x, _ = step_arguments(torch.float32, torch.zeros(1, 1), *maps, state, None)
    actual = torch.empty(1, 1, 1)
    for map_, rest in ((increment, tail), (increment[..., 0], tail[..., 0])):
        moved = x.clone()
        for _ in range(5000):
            kernel.ssm_step_(actual, moved, u, map_, rest, b, c)
        assert relative(actual, y[..., -1]) < 2e-5


def test_scan_in_pieces(kernel):
    inputs, *maps, state, skip = make(2, 3, 2, 4, 2, 1100)
    y, last = kernel.ssm_scan(inputs, *maps, state, skip)
    pieces = []
    for piece in inputs.split([1, 36, 513, 550], dim=-1):
        part, state = kernel.ssm_scan(piece, *maps, state, skip)
        pieces.append(part)
    assert_near([torch.cat(pieces, dim=-1), state], [y, last], 1e-12)


def test_scan_without_sequences_or_heads(kernel):
    arguments = make(0, 3, 2, 4, 2, 40)
    y, last = kernel.ssm_scan(*arguments)
    assert y.shape == (0, 2, 3, 40) and last.shape == (0, 3, 4, 2)
    for gradient in torch.autograd.grad(y.sum() + last.sum(), arguments):
        assert not gradient.any()
    y, _ = kernel.ssm_scan(*make(2, 0, 2, 4, 2, 40))
    assert y.shape == (2, 2, 0, 40)


@pytest.mark.parametrize(
    ("radius", "angle"),
    [(1 - 1e-7, 1e-6), (1.0, 3.1415926), (1e-30, 1.0), (0.0, 0.0)],
    ids=["slow", "fast", "dead", "0"],
)
def test_scan_of_extreme_steps(kernel, radius, angle):
    inputs, _, b, c, state, skip = make(1, 2, 1, 3, 2, 4000, torch.float32)
    turn = radius * torch.exp(1j * torch.tensor(angle, dtype=torch.float64))
    block = torch.stack([torch.stack([turn.real, -turn.imag]), torch.stack([turn.imag, turn.real])])
    transition = block.expand(2, 3, 2, 2).clone().requires_grad_()
    assert_is_the_definition(kernel.ssm_scan, [inputs, transition, b, c, state, skip], 2e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scan_keeps_what_is_not_finite_in_its_place(kernel, value):
    arguments = [argument.detach() for argument in make(2, 3, 1, 4, 2, 700, torch.float32)]
    clean, _ = kernel.ssm_scan(*arguments)
    arguments[0][1, 2, 645] = value
    y, last = kernel.ssm_scan(*arguments)
    assert not y[1, 0, 2, 645:].isfinite().any() and not last[1, 2].isfinite().all()
    y[1, 0, 2, 645:] = clean[1, 0, 2, 645:]
    assert relative(y, clean) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_of_half_precision(kernel, dtype):
    inputs, *maps, state, skip = make(2, 3, 1, 4, 2, 100, torch.float32)
    y, last = kernel.ssm_scan(inputs.to(dtype), *maps, state, skip)
    expected, _ = kernel.ssm_scan(inputs.to(dtype).float(), *maps, state, skip)
    assert y.dtype == last.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))


def test_results_do_not_depend_on_threads(kernel):
    arguments = make(3, 40, 2, 4, 2, 300, torch.float32)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, last = kernel.ssm_scan(*arguments)
            results.append([y, last, *torch.autograd.grad(y.sum() + last.sum(), arguments)])
    finally:
        torch.set_num_threads(1)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert torch.equal(one, other)


def powers(heads, rows, state):
    base = torch.polar(torch.empty(heads, state).double().uniform_(0.8, 1), torch.randn(heads, state).double() * 2)
    coefficients = torch.randn(heads, rows, state, dtype=torch.complex128)
    return coefficients.requires_grad_(), base.requires_grad_()


@pytest.mark.parametrize(
    ("length", "state"), [*product([1, 2, 37, 64, 1000, 5000], [1, 5, 32, 96]), (16384, 4)], ids=str
)
def test_vandermonde(kernel, length, state):
    arguments = powers(3, 2, state)
    expected = ops_s4.vandermonde(*arguments, length)
    weights = torch.randn_like(expected)
    reference = torch.autograd.grad(expected, arguments, weights)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, SINGLE)):
        actual = kernel.vandermonde(*arguments, length, dtype)
        assert actual.dtype == dtype
        gradients = torch.autograd.grad(actual, arguments, weights.to(dtype))
        assert_near([actual, *gradients], [expected, *reference], tolerance)


@pytest.mark.parametrize(
    "values",
    [(0, 1, -1), (1e-30, 1e-200j, 1 - 1e-9), (1 - 1e-7 + 1e-6j, -0.9999999 + 5e-8j, 0.6 + 0.8j)],
    ids=["0, 1", "dead", "slow, fast"],
)
def test_vandermonde_of_extreme_steps(kernel, values):
    coefficients, _ = powers(1, 1, 3)
    base = torch.tensor([values], dtype=torch.complex128, requires_grad=True)
    actual, expected = kernel.vandermonde(coefficients, base, 200), ops_s4.vandermonde(coefficients, base, 200)
    weights = torch.randn_like(actual)
    gradients, reference = (torch.autograd.grad(k, (coefficients, base), weights) for k in (actual, expected))
    assert_near([actual, *gradients], [expected, *reference], 1e-12)


def test_vandermonde_of_any_strides(kernel):
    coefficients, base = powers(2, 3, 6)
    views = coefficients.mT.contiguous().mT, torch.stack([base, base], dim=1)[:, 1].conj()
    for length in (5, 200):
        expected = ops_s4.vandermonde(coefficients, base.conj(), length)
        assert_near([kernel.vandermonde(*views, length)], [expected], 1e-12)
    # of a sum, the gradient has strides 0
    gradients = torch.autograd.grad(kernel.vandermonde(*views, 200).sum(), (coefficients, base))
    assert_near(gradients, torch.autograd.grad(expected.sum(), (coefficients, base)), 1e-11)


def test_vandermonde_without_heads_and_with_what_is_not_a_number(kernel):
    arguments = powers(0, 2, 3)
    empty = kernel.vandermonde(*arguments, 10)
    assert empty.shape == (0, 2, 10)
    assert [g.shape for g in torch.autograd.grad(empty.sum(), arguments)] == [a.shape for a in arguments]
    coefficients, base = (part.detach() for part in powers(2, 2, 3))
    clean = kernel.vandermonde(coefficients, base, 100)
    for place in range(2):
        changed = [coefficients.clone(), base.clone()]
        changed[place][1, ..., 2] = float("nan")
        actual = kernel.vandermonde(*changed, 100)
        assert actual[1, :, 1:].isnan().all() and torch.equal(actual[0], clean[0])


def test_operators_are_sound(kernel):
    operators = sys.modules[kernel.ssm_scan.__module__].ops
    for dtype, heads_innermost in ((torch.float32, False), (torch.float64, True)):
        inputs, *maps, state, skip = make(2, 3, 2, 4, 2, 37, dtype, heads_innermost)
        for last in (skip, None):
            torch.library.opcheck(operators.ssm_scan.default, (inputs, *maps, last, state, False))
            detached = [None if part is None else part.detach() for part in (inputs, *maps, last, state)]
            torch.library.opcheck(operators.ssm_scan.default, (*detached, True))
            detached = [detached[0][..., 0], *detached[1:4], detached[5], detached[4]]
            *arguments, before, extra = step_arguments(dtype, *detached)
            written = torch.empty(2, 2, 3, dtype=dtype), before.clone()
            for order in (torch.tensor([2, 0, 1]), None):
                torch.library.opcheck(operators.ssm_step_.default, (*written, *arguments, extra, order, 0))
    for single in (True, False):
        torch.library.opcheck(operators.vandermonde.default, (*powers(2, 2, 5), 70, single))


def test_functions_compile_and_export(kernel):
    arguments = make(2, 3, 2, 4, 2, 37, torch.float32, heads_innermost=True)
    assert_is_the_definition(torch.compile(kernel.ssm_scan, fullgraph=True, backend="aot_eager"), arguments, SINGLE)
    activated = torch.compile(partial(kernel.ssm_scan, gelu=True), fullgraph=True, backend="aot_eager")
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            assert_near(activated(*arguments), kernel.ssm_scan(*arguments, gelu=True), 1e-6)
    coefficients, base = powers(2, 1, 3)
    compiled = torch.compile(lambda v, x: kernel.vandermonde(v, x, 50), fullgraph=True, backend="aot_eager")
    assert_near([compiled(coefficients, base)], [kernel.vandermonde(coefficients, base, 50)], 1e-12)

    class Scan(torch.nn.Module):
        def forward(self, *arguments):
            return kernel.ssm_scan(*arguments)

    length = torch.export.Dim("length", min=2, max=4096)
    detached = tuple(argument.detach() for argument in arguments)
    program = torch.export.export(Scan(), detached, dynamic_shapes=(({2: length}, *[None] * 5),))
    longer = [argument.detach() for argument in make(2, 3, 2, 4, 2, 99, torch.float32, heads_innermost=True)]
    assert_near(program.module()(*longer), kernel.ssm_scan(*longer), 1e-6)


def test_second_derivatives_are_refused(kernel):
    arguments = make(1, 2, 1, 2, 2, 20)
    (gradient,) = torch.autograd.grad(kernel.ssm_scan(*arguments)[0].sum(), arguments[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.update(inputs=a["inputs"][..., :0]), ValueError, "must not be zero"),
        (lambda a: a.update(inputs=a["inputs"][0]), ValueError, "batch, heads, length"),
        (lambda a: a.update(inputs=a["inputs"].long()), TypeError, "real floating point"),
        (lambda a: a.update(inputs=a["inputs"][:, :2]), ValueError, "transition has shape"),
        (lambda a: a.update(transition=a["transition"].half()), TypeError, "float32 or float64"),
        (lambda a: a.update(transition=a["transition"][..., :1]), ValueError, "transition has shape"),
        (lambda a: a.update(b=a["b"].float()), TypeError, "b has dtype"),
        (lambda a: a.update(b=a["b"][:, :2]), ValueError, "b has shape"),
        (lambda a: a.update(c=a["c"][..., :1]), ValueError, "c has shape"),
        (lambda a: a.update(c=a["c"].to("meta")), ValueError, "c is on meta"),
        (lambda a: a.update(state=a["state"][:1]), ValueError, "state has shape"),
        (lambda a: a.update(skip=a["skip"][:1]), ValueError, "skip has shape"),
    ],
)
def test_scan_refuses(kernel, change, error, message):
    arguments = dict(zip(NAMES, make(2, 3, 2, 4, 2, 37), strict=True))
    change(arguments)
    with pytest.raises(error, match=message):
        kernel.ssm_scan(**arguments)
    if any(argument.is_meta for argument in arguments.values()):
        return
    operators = sys.modules[kernel.ssm_scan.__module__].ops
    with pytest.raises(RuntimeError):
        operators.ssm_scan(*(arguments[name] for name in ("inputs", "transition", "b", "c", "skip", "state")), False)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, lambda part: part[0], "inputs must have at least 2 dimensions, not the shape [3]"),
        (0, lambda part: part[:, :2], "inputs has shape [2, 2] instead of [2, 3]"),
        (1, lambda part: part[:, :1], "increment [3, 1, 2, 2]: a head's state would be 2 numbers"),
        (1, lambda part: part[..., 0], "tail has shape [3, 4, 2, 2] instead of [3, 4, 2]"),
        (1, lambda part: part[:, 0, 0, 0], "increment must have 3 or 4 dimensions, not the shape [3]"),
        (2, lambda part: part.double(), "tail has dtype Double instead of Float"),
        (2, lambda part: part[..., 0], "tail has shape [3, 4, 2] instead of [3, 4, 2, 2]"),
        (3, lambda part: part[:1], "b has shape [1, 4, 2] instead of [3, 4, 2]"),
        (4, lambda part: part[:, 0], "c must have 4 dimensions, not the shape [3, 4, 2]"),
        (5, lambda part: part.half(), "state must be float32 or float64, not Half"),
        (6, lambda part: part[:, :1], "skip has shape [2, 1] instead of [2, 3]"),
        *((n, lambda part: part.to("meta"), "must be on one device, not on cpu and meta") for n in range(7)),
    ],
)
def test_step_refuses(kernel, number, change, message):
    inputs, *others = (part.detach() for part in make(2, 3, 2, 4, 2, 1))
    arguments = step_arguments(torch.float32, inputs[..., 0], *others)
    arguments[number] = change(arguments[number])
    with pytest.raises(RuntimeError, match=re.escape(message)):
        kernel.ssm_step(*arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": lambda part: part[..., :1]},
        {"outputs": lambda part: part.to("meta")},
        {"outputs": lambda part: part.mT.contiguous().mT},
        {"outputs": lambda part: part.double()},
        {"state": lambda part: part[:, :2].clone()},
        {"state": lambda part: part[:1].expand_as(part)},
        {"state": lambda part: part.mT.contiguous().mT},
        {"inputs": lambda part: part.mT.contiguous()},
        {"order": lambda part: part.int()},
        {"order": lambda part: part[:2]},
        {"order": lambda part: part + 1},
        {"order": lambda part: part - 1},
        {"first": lambda part: 1},
        {"first": lambda part: -1},
    ],
)
def test_step_in_place_refuses_and_writes_nothing(kernel, change):
    inputs, *others = (part.detach() for part in make(2, 3, 2, 4, 2, 1))
    u, increment, tail, b, c, state, skip = step_arguments(torch.float32, inputs[..., 0], *others)
    arguments = {"outputs": torch.zeros(2, 2, 3), "state": state.clone(), "inputs": u, "increment": increment}
    arguments |= {"tail": tail, "b": b, "c": c, "skip": skip, "order": torch.arange(3), "first": 0}
    for name, function in change.items():
        arguments[name] = function(arguments[name])
    before = arguments["state"].clone()
    with pytest.raises(RuntimeError):
        kernel.ssm_step_(**arguments)
    assert torch.equal(arguments["state"], before)
    assert arguments["outputs"].is_meta or not arguments["outputs"].any()


def test_vandermonde_refuses(kernel):
    coefficients, base = powers(2, 1, 3)
    for arguments, error, message in [
        ((coefficients, base, 0), ValueError, "length must be between 1 and 4294967296, not 0"),
        ((coefficients, base, 2**62), ValueError, "length must be between 1 and 4294967296, not 4611"),
        ((coefficients[0], base, 5), ValueError, r"coefficients must be \[heads, rows, state\]"),
        ((coefficients, base[:, :2], 5), ValueError, r"base has shape \[2, 2\] instead of \[2, 3\]"),
        ((coefficients, base.to("meta"), 5), ValueError, "base is on meta, but the first argument on cpu"),
        ((coefficients.to("meta"), base, 5), ValueError, "base is on cpu, but the first argument on meta"),
        ((coefficients.to(torch.complex64), base, 5), TypeError, "coefficients has dtype torch.complex64"),
        ((coefficients, base, 5, torch.float16), TypeError, "float32 or float64, not torch.float16"),
    ]:
        with pytest.raises(error, match=message):
            kernel.vandermonde(*arguments)


def test_plain_variant_is_the_same_function(kernel_build):
    plain = import_variant(kernel_build / "torch-cpu")
    for sizes in SIZES[2:7]:
        assert_is_the_definition(plain.ssm_scan, make(*sizes), 1e-12)
        test_scan_with_gelu(plain, sizes)
        test_step_in_place_of_some_heads(plain, sizes)
    arguments = powers(2, 2, 5)
    for length in (1, 2, 37, 1000):
        assert_near([plain.vandermonde(*arguments, length)], [ops_s4.vandermonde(*arguments, length)], 1e-11)


def test_tests_that_come_with_the_kernels(kernel, monkeypatch):
    monkeypatch.setitem(sys.modules, "s4_kernels", kernel)
    tests = runpy.run_path(str(build.ROOT / "tests" / "test_s4_kernels.py"))
    found = [test for name, test in tests.items() if name.startswith("test_")]
    assert len(found) == 2
    for test in found:
        test()


@pytest.mark.parametrize("instructions", ["avx2", "baseline"])
def test_other_instruction_sets_with_poisoned_memory(kernel_variant, instructions):
    environment = os.environ | {"FUSIBLE_S4_ISA": instructions, "MALLOC_PERTURB_": "165", "PYTHONPATH": "tests"}
    result = subprocess.run(
        [sys.executable, __file__, kernel_variant],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def main(variant: Path) -> None:
    """What the test above runs in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernels = import_variant(variant)
    for sizes in SIZES:
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, SINGLE)):
            assert_is_the_definition(kernels.ssm_scan, make(*sizes, dtype), tolerance)
        test_scan_with_gelu(kernels, sizes)
        test_step(kernels, sizes)
        test_step_in_place_of_some_heads(kernels, sizes)
    for groups in (1, 5, 32):
        test_step_of_rotations(kernels, groups)
    for length in (1, 1000):
        test_vandermonde(kernels, length, 5)
    test_gelu_of_any_number(kernels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
