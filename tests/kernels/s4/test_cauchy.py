"""S4's compiled `cauchy` against poles summed one by one in float64: values, all gradients, bad input."""

import sys

import pytest
import torch

from fusible.kernels.loading import import_variant
from support.kernel_cases.cauchy import SIZES, CauchyCases, assert_is_the_definition, definition, make, relative
from support.processes import run_script


pytest_plugins = ["support.kernel_fixture"]


class TestCases(CauchyCases):
    """Those that other builds and devices share."""


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_cauchy(kernel, sizes):
    assert_is_the_definition(kernel.cauchy, make(*sizes[:3]), sizes[3])


def test_any_number_of_states(kernel):
    for state in range(1, 97):
        assert_is_the_definition(kernel.cauchy, make(1, 1, state, heads=1), 11)


def test_cauchy_of_any_strides(kernel):
    inputs, outputs, poles = (tensor.detach() for tensor in make(2, 2, 6))
    views = inputs.mT.contiguous().mT, outputs.conj(), torch.stack([poles, poles], dim=1)[:, 1]
    expected = definition(inputs, outputs.conj(), poles, 50)
    assert relative(kernel.cauchy(*views, 50), expected) < 1e-12
    leaf = inputs.clone().requires_grad_()
    kernel.cauchy(leaf, outputs, poles, 50).sum().abs().backward()
    other = inputs.clone().requires_grad_()
    definition(other, outputs, poles, 50).sum().abs().backward()
    assert relative(leaf.grad, other.grad) < 1e-11


def test_results_do_not_depend_on_threads(kernel):
    arguments, results = make(1, 1, 8, heads=21), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            spectrum = kernel.cauchy(*arguments, 300, torch.float32)
            results.append([spectrum, *torch.autograd.grad(spectrum.abs().sum(), arguments)])
    finally:
        torch.set_num_threads(1)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


def test_operator_is_sound_and_compiles(kernel):
    arguments = make(1, 2, 5)
    operators = sys.modules[kernel.cauchy.__module__].ops
    for single in (True, False):
        torch.library.opcheck(operators.cauchy.default, (*arguments, 37, single))
    compiled = torch.compile(lambda *parts: kernel.cauchy(*parts, 37), fullgraph=True, backend="aot_eager")
    assert relative(compiled(*arguments), kernel.cauchy(*arguments, 37)) < 1e-14

    class Cauchy(torch.nn.Module):
        def forward(self, *arguments):
            return kernel.cauchy(*arguments, 37)

    detached = tuple(argument.detach() for argument in arguments)
    program = torch.export.export(Cauchy(), detached)
    assert relative(program.module()(*detached), kernel.cauchy(*detached, 37)) < 1e-14


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda i, o, w: (i, o, w, 0), ValueError),
        (lambda i, o, w: (i, o, w, 2**62), ValueError),
        (lambda i, o, w: (i[0], o, w, 9), ValueError),
        (lambda i, o, w: (i, o[:, :2], w, 9), ValueError),
        (lambda i, o, w: (i[:, :0], o, w, 9), ValueError),
        (lambda i, o, w: (i, o, w[:, :3], 9), ValueError),
        (lambda i, o, w: (i, o[..., :3], w, 9), ValueError),
        (lambda i, o, w: (i, o, w[:1], 9), ValueError),
        (lambda i, o, w: (i, o.to("meta"), w, 9), ValueError),
        (lambda i, o, w: (i.to(torch.complex64), o, w, 9), TypeError),
        (lambda i, o, w: (i, o, w.real, 9), TypeError),
        (lambda i, o, w: (i, o, w, 9, torch.bfloat16), TypeError),
    ],
)
def test_cauchy_refuses(kernel, change, error):
    arguments = change(*make(2, 1, 4))
    with pytest.raises(error):
        kernel.cauchy(*arguments)
    if error is ValueError and arguments[3] < 2**62 and not any(part.is_meta for part in arguments[:3]):
        operators = sys.modules[kernel.cauchy.__module__].ops
        with pytest.raises(RuntimeError):
            operators.cauchy(*arguments[:4], False)


def test_plain_variant_is_the_same_function(kernel_build):
    plain = import_variant(kernel_build / "torch-cpu")
    for sizes in SIZES[:5]:
        assert_is_the_definition(plain.cauchy, make(*sizes[:3]), sizes[3])


@pytest.mark.parametrize("instructions", ["avx2", "baseline"])
def test_other_instruction_sets_with_poisoned_memory(kernel_variant, instructions):
    run_script("cauchy_kernels.py", kernel_variant, FUSIBLE_S4_ISA=instructions, MALLOC_PERTURB_="165")
