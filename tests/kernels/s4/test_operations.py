"""S4's compiled operations against the torch definitions in float64: values, all gradients, bad input."""

import re
import runpy
import sys
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad

from fusible.kernels import build
from fusible.kernels.loading import import_variant
from fusible.models.s4 import convolution as ops_s4
from support.kernel_cases.scan import (
    NAMES,
    SINGLE,
    SIZES,
    STEP_NAMES,
    STEPS,
    ScanCases,
    assert_is_the_definition,
    assert_near,
    cast,
    definition,
    make,
    make_step,
    powers,
)
from support.processes import run_script


pytest_plugins = ["support.kernel_fixture"]


class TestCases(ScanCases):
    """Those that other builds and devices share."""


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


def test_scan_in_pieces(kernel):
    inputs, *maps, state, skip = make(2, 3, 2, 4, 2, 1100)
    y, last = kernel.ssm_scan(inputs, *maps, state, skip)
    pieces = []
    for piece in inputs.split([1, 36, 513, 550], dim=-1):
        part, state = kernel.ssm_scan(piece, *maps, state, skip)
        pieces.append(part)
    assert_near([torch.cat(pieces, dim=-1), state], [y, last], 1e-12)


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


def test_vandermonde_of_any_strides(kernel):
    coefficients, base = powers(2, 3, 6)
    views = coefficients.mT.contiguous().mT, torch.stack([base, base], dim=1)[:, 1].conj()
    for length in (5, 200):
        expected = ops_s4.vandermonde(coefficients, base.conj(), length)
        assert_near([kernel.vandermonde(*views, length)], [expected], 1e-12)
    # of a sum, the gradient has strides 0
    gradients = torch.autograd.grad(kernel.vandermonde(*views, 200).sum(), (coefficients, base))
    assert_near(gradients, torch.autograd.grad(expected.sum(), (coefficients, base)), 1e-11)


def test_operators_are_sound(kernel):
    operators = sys.modules[kernel.ssm_scan.__module__].ops
    for dtype, heads_innermost in ((torch.float32, False), (torch.float64, True)):
        inputs, *maps, state, skip = make(2, 3, 2, 4, 2, 37, dtype, heads_innermost)
        for last in (skip, None):
            torch.library.opcheck(operators.ssm_scan.default, (inputs, *maps, last, state, False))
            detached = [None if part is None else part.detach() for part in (inputs, *maps, last, state)]
            torch.library.opcheck(operators.ssm_scan.default, (*detached, True))
        for rank in (0, 2):
            arguments = cast(make_step(2, 3, 2, 4, rank), dtype)
            written = torch.empty(2, 2, 3, dtype=dtype), arguments.pop("state")
            torch.library.opcheck(operators.ssm_step_.default, (*written, *arguments.values()))
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


def forward_modes(function, point, direction):
    """The derivative by `torch.func`, and that by dual numbers."""
    yield lambda: torch.func.jvp(function, (point,), (direction,))[1]

    def of_duals():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(point, direction))).tangent

    yield of_duals


def functions_of_one(kernel):
    """Each function of the kernel repository, of one tensor, and a value of that."""
    inputs, *maps, state, skip = (part.detach() for part in make(2, 3, 1, 4, 2, 20))
    coefficients, base = (part.detach() for part in powers(2, 3, 4))
    u, *others, before, d, left, right = make_step(2, 3, 1, 4, 1).values()

    def step_in_place(x):
        outputs, after = x.new_zeros(2, 1, 3), x.clone()
        kernel.ssm_step_(outputs, after, u, *others, d, left, right)
        return after

    return {
        "ssm_scan": (lambda x: kernel.ssm_scan(x, *maps, state, skip)[0], inputs),
        "ssm_step": (lambda x: kernel.ssm_step(u, *others, x, d, left, right)[0], before),
        "ssm_step_": (step_in_place, before),
        "vandermonde": (lambda x: kernel.vandermonde(x, base, 20), coefficients),
        "cauchy": (lambda x: kernel.cauchy(x, coefficients, base - 1.5, 20), coefficients),
    }


@pytest.mark.parametrize("name", ["ssm_scan", "ssm_step", "ssm_step_", "vandermonde", "cauchy"])
def test_no_derivative_is_lost(kernel, kernel_build, name):
    """Compiled operations refuse those that they do not have; the plain variant's are those of differences."""
    function, point = functions_of_one(kernel)[name]
    direction = torch.randn_like(point)
    for derivative in forward_modes(function, point, direction):
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            derivative()
    leaf = point.clone().requires_grad_()
    if "step" in name:
        with pytest.raises(NotImplementedError, match=r"no gradient; .* torch\.no_grad"):
            function(leaf)
    else:
        value = function(leaf)
        with forward_ad.dual_level():
            weights = forward_ad.make_dual(torch.ones_like(value), torch.ones_like(value))
            with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
                torch.autograd.grad(value, leaf, weights)
    plain, _ = functions_of_one(import_variant(kernel_build / "torch-cpu"))[name]
    expected = (plain(point + 1e-5 * direction) - plain(point - 1e-5 * direction)) / 2e-5
    for derivative in forward_modes(plain, point, direction):
        torch.testing.assert_close(derivative(), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


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
    ("name", "change", "message"),
    [
        ("inputs", lambda part: part[0], "inputs must have at least 2 dimensions, not the shape [3]"),
        ("inputs", lambda part: part[:, :2], "inputs has shape [2, 2] instead of [2, 3]"),
        ("increment", lambda part: part[:, :1], "increment has shape [3, 1, 2] instead of [3, 4, 2]"),
        ("increment", lambda part: part[..., 0], "increment has shape [3, 4] instead of [3, 4, 2]"),
        ("tail", lambda part: part.double(), "tail has dtype Double instead of Float"),
        ("tail", lambda part: part[..., 0], "tail has shape [3, 4] instead of [3, 4, 2]"),
        ("b", lambda part: part[:1], "b has shape [1, 4, 2] instead of [3, 4, 2]"),
        ("c", lambda part: part[:, 0], "c must have 4 dimensions, not the shape [3, 4, 2]"),
        ("state", lambda part: part.half(), "state must be float32 or float64, not Half"),
        ("state", lambda part: part[..., :1], "state has shape [2, 3, 4, 1] instead of [2, 3, 4, 2]"),
        ("skip", lambda part: part[:, :1], "skip has shape [2, 1] instead of [2, 3]"),
        ("left", lambda part: None, "left and right go together"),
        ("left", lambda part: part[:, 0], "left must have 4 dimensions, not the shape [3, 4, 2]"),
        ("left", lambda part: part[:, :, :2], "left has shape [3, 1, 2, 2] instead of [3, 1, 4, 2]"),
        ("right", lambda part: part.expand(3, 2, 4, 2), "right has shape [3, 2, 4, 2] instead of [3, 1, 4, 2]"),
        *((name, lambda part: part.to("meta"), "must be on one device, not on cpu and meta") for name in STEP_NAMES),
    ],
)
def test_step_refuses(kernel, name, change, message):
    arguments = cast(make_step(2, 3, 2, 4, 1), torch.float32)
    arguments[name] = change(arguments[name])
    with pytest.raises(RuntimeError, match=re.escape(message)):
        kernel.ssm_step(**arguments)


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
    ],
)
def test_step_in_place_refuses_and_writes_nothing(kernel, change):
    arguments = cast(make_step(2, 3, 2, 4, 1), torch.float32) | {"outputs": torch.zeros(2, 2, 3)}
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
        ScanCases().test_scan_with_gelu(plain, sizes)
    for sizes in STEPS:
        ScanCases().test_step(plain, sizes)
        ScanCases().test_step_in_place(plain, sizes)
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
    run_script("scan_kernels.py", kernel_variant, FUSIBLE_S4_ISA=instructions, MALLOC_PERTURB_="165")
