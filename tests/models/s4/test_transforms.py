"""Forward-mode derivatives and transforms of torch.func through S4's operations, compiled or not."""

import pytest
import torch
from torch.autograd import forward_ad

from fusible import S4Config, S4Model
from fusible.kernels.loading import load_kernels
from fusible.models.s4.convolution import low_rank_kernel, vandermonde
from fusible.models.s4.scan import ssm_scan, ssm_step, ssm_step_
from support.model_tests.base import perturb_


pytest_plugins = ["support.kernel_fixture"]
pytestmark = pytest.mark.usefixtures("kernel_path")

HEADS, GROUPS, LENGTH = 3, 2, 70


def real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def make_operations():
    """Functions of one tensor, with the kernels that the fixture gives, and a tensor."""
    kernels, decay = load_kernels(), 0.3
    inputs, state = real(2, HEADS, LENGTH), real(2, HEADS, GROUPS, 2)
    transition, b, c = decay * real(HEADS, GROUPS, 2, 2), real(HEADS, GROUPS, 2), real(HEADS, 1, GROUPS, 2)
    left, right = real(HEADS, 1, GROUPS, 2) / 9, real(HEADS, 1, GROUPS, 2)
    rows = torch.randn(HEADS, 1, 4, dtype=torch.complex128)
    poles = torch.complex(-real(HEADS, 4).abs() - 0.1, real(HEADS, 4))
    dt = 0.1 + real(HEADS).abs()

    def in_place(x: torch.Tensor) -> torch.Tensor:
        outputs, after = torch.zeros_like(x[:, :1]).flatten(2)[..., :HEADS].clone(), x.clone()
        ssm_step_(outputs, after, inputs[:, None, :, 0], b / 9, None, b, c, None, left, right, kernels=kernels)
        return after

    return {
        "scan of inputs": (lambda x: ssm_scan(x, transition, b, c, state, kernels=kernels)[0], inputs),
        "scan of transitions": (lambda x: ssm_scan(inputs, x, b, c, state, kernels=kernels)[0], transition),
        "step": (lambda x: ssm_step(inputs[..., 0], b / 9, None, b, c, x, None, left, right, kernels)[0], state),
        "step in place": (in_place, state),
        "vandermonde": (lambda x: vandermonde(x, (poles / 3).exp(), LENGTH, kernels=kernels), rows),
        "vandermonde of bases": (lambda x: vandermonde(rows, x, LENGTH, kernels=kernels), (poles / 3).exp()),
        "cauchy": (lambda x: low_rank_kernel(poles, x[:, 0], rows, rows / 9, dt, LENGTH, kernels), rows),
        "cauchy of poles": (lambda x: low_rank_kernel(x, rows[:, 0], rows, rows / 9, dt, LENGTH, kernels), poles),
    }


@pytest.mark.parametrize("name", make_operations())
def test_derivatives_of_operations(name):
    """Against differences, and in reverse mode against autograd."""
    function, point = make_operations()[name]
    direction = torch.randn_like(point)
    with torch.no_grad():
        expected = (function(point + 1e-5 * direction) - function(point - 1e-5 * direction)) / 2e-5
        tolerance = {"rtol": 1e-6, "atol": 1e-6 * expected.abs().max().item()}
        torch.testing.assert_close(torch.func.jvp(function, (point,), (direction,))[1], expected, **tolerance)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(point, direction))).tangent
        torch.testing.assert_close(tangent, expected, **tolerance)
    if name != "step in place":  # which has no gradient
        leaf = point.clone().requires_grad_()
        (of_autograd,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
        of_func = torch.func.grad(lambda x: function(x).square().sum())(point)
        torch.testing.assert_close(of_func, of_autograd, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options", [{"mode": "diag"}, {"l_max": 12}, {"pool_sizes": [2]}], ids=["diag", "dplr", "unet"]
)
@torch.no_grad()
def test_derivatives_of_models(options):
    """In prompts and in single steps, by their inputs."""
    model = S4Model(S4Config(hidden_size=4, num_hidden_layers=1, state_size=4, **options)).double().eval()
    perturb_(model)
    values, direction = real(2, 9, 1), real(2, 9, 1)
    for form in (model, model.fuse()):

        def run(x: torch.Tensor, form: S4Model = form) -> torch.Tensor:
            first = form(input_values=x[:, :7], use_cache=True)
            second = form(input_values=x[:, 7:8], cache=first.cache)
            third = form(input_values=x[:, 8:], cache=second.cache)
            return torch.cat([first[0], second[0], third[0], form(input_values=x)[0]], dim=1)

        expected = (run(values + 1e-5 * direction) - run(values - 1e-5 * direction)) / 2e-5
        actual = torch.func.jvp(run, (values,), (direction,))[1]
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
