"""S4's compiled `cauchy` against poles summed one by one in float64."""

import math

import pytest
import torch

from fusible.models.s4.convolution import low_rank_kernel
from fusible.models.s4.hippo import initial_state_space


# rank, channels, state, length
SIZES = [
    (0, 1, 1, 1),
    (1, 1, 5, 2),
    (1, 2, 1, 3),
    (2, 3, 7, 37),
    (1, 1, 32, 1000),
    (3, 2, 96, 129),
    (1, 1, 4, 16384),
]
SINGLE = 2e-5  # of norms


def make(rank: int, channels: int, state: int, heads: int = 2) -> list[torch.Tensor]:
    """Inputs, outputs and poles of dissipative systems."""
    inputs = torch.randn(heads, 1 + rank, state, dtype=torch.complex128)
    outputs = torch.cat([torch.randn(heads, channels, state, dtype=torch.complex128), inputs[:, 1:].conj()], dim=1)
    poles = torch.complex(-0.01 - 0.5 * torch.rand(heads, state).double(), 3 * torch.randn(heads, state).double())
    return [tensor.requires_grad_() for tensor in (inputs, outputs, poles)]


def definition(inputs: torch.Tensor, outputs: torch.Tensor, poles: torch.Tensor, length: int) -> torch.Tensor:
    """Sums over states and their conjugates at each node, and one inverse for all rows of the low-rank part."""
    nodes = torch.exp(-2j * math.pi * torch.arange(length // 2 + 1, dtype=torch.float64) / length)
    pairs = torch.cat([inputs, inputs.conj()], dim=-1), torch.cat([outputs, outputs.conj()], dim=-1)
    poles = torch.cat([poles, poles.conj()], dim=-1)[..., None]
    table = torch.einsum("han,hbn,hnk->hkab", *pairs, 1 / (2 * (1 - nodes) - poles * (1 + nodes)))
    channels, factor = outputs.shape[1] - inputs.shape[1] + 1, (1 + nodes)[:, None, None]
    inverse = torch.linalg.inv(torch.eye(inputs.shape[1] - 1) + factor * table[:, :, 1:, channels:])
    correction = factor * table[:, :, :1, channels:] @ inverse @ table[:, :, 1:, :channels]
    return 2 * (table[:, :, :1, :channels] - correction)[:, :, 0].mT


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def assert_is_the_definition(function, arguments, length, tolerance=1e-11, single=SINGLE):
    expected = definition(*arguments, length)
    weights = torch.randn_like(expected)
    reference = torch.autograd.grad(expected, arguments, weights)
    for dtype, limit in ((torch.float64, tolerance), (torch.float32, single)):
        actual = function(*arguments, length, dtype)
        assert actual.dtype == dtype.to_complex() and actual.shape == expected.shape
        gradients = torch.autograd.grad(actual, arguments, weights.to(actual.dtype))
        for name, one, other in zip(
            ("spectrum", "inputs", "outputs", "poles"), (actual, *gradients), (expected, *reference), strict=True
        ):
            assert relative(one, other) < limit, (name, dtype)


class CauchyCases:
    """Comparisons for any build of the kernels, `kernel`, a module or what stands for one."""

    def test_quotients_beside_a_pole_are_exact(self, kernel):
        """Float32 alone would miss the pole by its distance from the axis."""
        inputs, outputs, _ = make(0, 1, 1)
        poles = torch.tensor([[-1e-5 + 2.5j], [-1e-3 + 130j]], dtype=torch.complex128, requires_grad=True)
        assert_is_the_definition(kernel.cauchy, [inputs, outputs, poles], 4096, tolerance=1e-9, single=1e-5)

    @pytest.mark.parametrize("dt", [1e-8, 1e-4, 1e-3, 1e5], ids=str)
    def test_kernels_of_extreme_steps(self, kernel, dt):
        system = initial_state_space("legs", 64, 2, 1, True, 2.0)
        c, p = torch.randn(2, 1, 32, dtype=torch.complex128), system.p.movedim(0, 1)
        arguments = [dt * torch.cat([system.b[:, None], p], dim=1), torch.cat([c, p.conj()], dim=1), dt * system.a]
        expected = torch.fft.irfft(definition(*arguments, 1024), n=1024)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
            actual = torch.fft.irfft(kernel.cauchy(*arguments, 1024, dtype), n=1024)
            assert (actual - expected).abs().max() < tolerance * expected.abs().max()
        steps = torch.full((2,), dt, dtype=torch.float64)
        in_torch = low_rank_kernel(system.a, system.b, c, p, steps, 1024)
        assert (in_torch - expected).abs().max() < 1e-12 * expected.abs().max()

    def test_without_heads_and_with_what_is_not_a_number(self, kernel):
        arguments = make(1, 1, 4, heads=0)
        spectrum = kernel.cauchy(*arguments, 10)
        assert spectrum.shape == (0, 1, 6)
        assert [g.shape for g in torch.autograd.grad(spectrum.abs().sum(), arguments)] == [a.shape for a in arguments]
        inputs, outputs, poles = (tensor.detach() for tensor in make(1, 1, 4))
        clean = kernel.cauchy(inputs, outputs, poles, 10)
        for place in range(3):
            changed = [tensor.clone() for tensor in (inputs, outputs, poles)]
            changed[place][1, ..., 2] = math.nan
            spectrum = kernel.cauchy(*changed, 10)
            assert spectrum[1].isnan().all() and torch.equal(spectrum[0], clean[0])
