"""S4's compiled scans, steps and sums of powers against the torch definitions in float64."""

import os
from itertools import product

import pytest
import torch

from fusible.models.s4 import convolution, scan


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
    y, last = scan.ssm_scan(inputs.double(), transition, b, c, state.double())
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


# batch, heads, channels, groups, rank
STEPS = [(2, 3, 1, 1, 0), (3, 17, 1, 5, 1), (1, 2, 1, 32, 1), (2, 2, 2, 9, 2), (2, 3, 1, 48, 3), (1, 2, 2, 32, 0)]
STEP_NAMES = ("inputs", "increment", "tail", "b", "c", "state", "skip", "left", "right")


def make_step(batch, heads, channels, groups, rank):
    """Arguments of `ssm_step` by name, float64, whose tail is small; U and V only for a rank."""

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64)

    low_rank = [draw(heads, rank, groups, 2) / groups if rank else None for _ in range(2)]
    shape = heads, groups, 2
    parts = draw(batch, heads), draw(*shape) / 2, draw(*shape) * 1e-3, draw(*shape), draw(heads, channels, groups, 2)
    return dict(zip(STEP_NAMES, (*parts, draw(batch, *shape), draw(channels, heads), *low_rank), strict=True))


def step_definition(inputs, increment, tail, b, c, state, skip, left, right):
    """By dense matrices, `x <- (I + D - U V^T) x + b u`."""
    exact = increment if tail is None else increment + tail
    outputs, after = [], []
    for head in range(len(exact)):
        matrix = torch.block_diag(*(torch.stack([torch.stack([p, -q]), torch.stack([q, p])]) for p, q in exact[head]))
        matrix = matrix + torch.eye(len(matrix), dtype=matrix.dtype)
        if left is not None:
            matrix = matrix - left[head].flatten(1).T @ right[head].flatten(1)
        x = state[:, head].flatten(1) @ matrix.T + inputs[:, head, None] * b[head].flatten()
        outputs.append(x @ c[head].flatten(1).T + (0 if skip is None else skip[:, head] * inputs[:, head, None]))
        after.append(x.view_as(state[:, head]))
    return torch.stack(outputs, dim=-1), torch.stack(after, dim=1)


def cast(arguments, dtype):
    return {name: None if part is None else part.to(dtype) for name, part in arguments.items()}


def powers(heads, rows, state):
    base = torch.polar(torch.empty(heads, state).double().uniform_(0.8, 1), torch.randn(heads, state).double() * 2)
    coefficients = torch.randn(heads, rows, state, dtype=torch.complex128)
    return coefficients.requires_grad_(), base.requires_grad_()


class ScanCases:
    """Comparisons for any build of the kernels, `kernel`, a module or what stands for one."""

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_scan_with_gelu(self, kernel, sizes):
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
    def test_gelu_of_any_number(self, kernel):
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

    @pytest.mark.parametrize("sizes", STEPS, ids=str)
    def test_step(self, kernel, sizes):
        whole = make_step(*sizes)
        for arguments in (whole, whole | {"skip": None}, whole | {"tail": None}):
            expected = step_definition(**arguments)
            for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, SINGLE)):
                results = kernel.ssm_step(*cast(arguments, dtype).values())
                assert {result.dtype for result in results} == {dtype}
                assert_near(results, expected, tolerance)
        strided = [None if part is None else torch.stack([part] * 2, dim=-1)[..., 0] for part in whole.values()]
        assert_near(kernel.ssm_step(*strided), kernel.ssm_step(*whole.values()), 1e-14)

    @pytest.mark.parametrize("sizes", STEPS, ids=str)
    def test_step_in_place(self, kernel, sizes):
        whole = make_step(*sizes)
        y, last = step_definition(**whole)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, SINGLE)):
            arguments = cast(whole, dtype)
            u, state = arguments.pop("inputs"), arguments.pop("state").clone()
            outputs = torch.empty(len(u), 1, y[0].numel(), dtype=dtype)
            kernel.ssm_step_(outputs, state, u[:, None], *arguments.values())
            assert_near([outputs.view_as(y), state], [y, last], tolerance)

    @torch.no_grad()
    def test_many_steps_keep_their_digits(self, kernel):
        """A transition of slow modes, rounded to float32, would be off by more after thousands of steps."""
        if "FUSIBLE_KERNEL_BUILD" in os.environ:
            return  # of `kernels/sanitize.py`: its checks keep products from being added before they are rounded
        turn = torch.exp(torch.tensor([-1e-4 + 1e-3j, -1e-4 + 2j], dtype=torch.complex128))
        arguments = make_step(1, 1, 1, 2, 0) | {"inputs": torch.zeros(1, 1), "skip": None}
        exact = torch.view_as_real(turn - 1)[None]
        increment = exact.float()
        expected = torch.view_as_real(torch.view_as_complex(arguments["state"]) * turn**5000)
        arguments |= {"increment": increment, "tail": exact - increment}
        _, increment, tail, b, c, x, *_ = cast(arguments, torch.float32).values()
        actual = torch.empty(1, 1, 1)
        for _ in range(5000):
            kernel.ssm_step_(actual, x, torch.zeros(1, 1), increment, tail, b, c)
        assert relative(x, expected) < 2e-5

    @torch.no_grad()
    def test_silence_leaves_no_subnormal_numbers(self, kernel):
        """Which cost some processors ten times as much, for as long as nothing is heard."""
        half = dict(zip(STEP_NAMES, [torch.zeros(1, 2), torch.full((2, 20, 2), -0.5), None], strict=False))
        half["increment"][..., 1] = 0
        half |= {"b": torch.ones(2, 20, 2), "c": torch.ones(2, 1, 20, 2), "state": torch.ones(1, 2, 20, 2)}
        for _ in range(200):
            y, half["state"] = kernel.ssm_step(*half.values())
        smallest = torch.finfo(torch.float32).tiny
        # what is smaller is zero, and a change that is as small does nothing
        assert {*half["state"].abs().unique().tolist(), *y.abs().unique().tolist()} <= {0.0, smallest, 40 * smallest}
        transition = torch.eye(2).expand(2, 20, 2, 2) / 2
        state = torch.ones(1, 2, 20, 2)
        for length in (130, 4, 200):
            y, state = kernel.ssm_scan(torch.zeros(1, 2, length), transition, half["b"], half["c"], state)
            assert not ((0 < state.abs()) & (state.abs() < smallest)).any() and not y[..., 127:].any()

    def test_scan_without_sequences_or_heads(self, kernel):
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
    def test_scan_of_extreme_steps(self, kernel, radius, angle):
        inputs, _, b, c, state, skip = make(1, 2, 1, 3, 2, 4000, torch.float32)
        turn = radius * torch.exp(1j * torch.tensor(angle, dtype=torch.float64))
        block = torch.stack([torch.stack([turn.real, -turn.imag]), torch.stack([turn.imag, turn.real])])
        transition = block.expand(2, 3, 2, 2).clone().requires_grad_()
        assert_is_the_definition(kernel.ssm_scan, [inputs, transition, b, c, state, skip], 2e-5)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_scan_keeps_what_is_not_finite_in_its_place(self, kernel, value):
        arguments = [argument.detach() for argument in make(2, 3, 1, 4, 2, 700, torch.float32)]
        clean, _ = kernel.ssm_scan(*arguments)
        arguments[0][1, 2, 645] = value
        y, last = kernel.ssm_scan(*arguments)
        assert not y[1, 0, 2, 645:].isfinite().any() and not last[1, 2].isfinite().all()
        y[1, 0, 2, 645:] = clean[1, 0, 2, 645:]
        assert relative(y, clean) < 1e-6

    @pytest.mark.parametrize(
        ("length", "state"), [*product([1, 2, 37, 64, 1000, 5000], [1, 5, 32, 96]), (16384, 4)], ids=str
    )
    def test_vandermonde(self, kernel, length, state):
        arguments = powers(3, 2, state)
        expected = convolution.vandermonde(*arguments, length)
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
    def test_vandermonde_of_extreme_steps(self, kernel, values):
        coefficients, _ = powers(1, 1, 3)
        base = torch.tensor([values], dtype=torch.complex128, requires_grad=True)
        actual, expected = (
            kernel.vandermonde(coefficients, base, 200),
            convolution.vandermonde(coefficients, base, 200),
        )
        weights = torch.randn_like(actual)
        gradients, reference = (torch.autograd.grad(k, (coefficients, base), weights) for k in (actual, expected))
        assert_near([actual, *gradients], [expected, *reference], 1e-12)

    def test_vandermonde_without_heads_and_with_what_is_not_a_number(self, kernel):
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
