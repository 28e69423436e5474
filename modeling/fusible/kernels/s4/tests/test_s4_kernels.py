"""The kernel as its users load it; the whole comparison with S4's definitions is among fusible's tests."""

import s4_kernels
import torch


def test_scan_is_the_recurrence() -> None:
    transition = torch.tensor([[0.9, 0.3], [-0.3, 0.9]]).expand(3, 4, 2, 2).contiguous()
    b, c, state, inputs = torch.randn(3, 4, 2), torch.randn(3, 1, 4, 2), torch.randn(2, 3, 4, 2), torch.randn(2, 3, 70)
    y, last = s4_kernels.ssm_scan(inputs, transition, b, c, state)
    for step in range(70):
        state = torch.einsum("hgij,bhgj->bhgi", transition, state) + b * inputs[:, :, step, None, None]
        torch.testing.assert_close(y[:, 0, :, step], (c[:, 0] * state).sum((-2, -1)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, state, atol=1e-4, rtol=1e-4)


def test_vandermonde_is_a_sum_of_powers() -> None:
    base = torch.polar(torch.full((3, 4), 0.95), torch.randn(3, 4)).to(torch.complex128)
    coefficients = torch.randn(3, 2, 4, dtype=torch.complex128)
    expected = 2 * torch.einsum("hrn,hnl->hrl", coefficients, base[..., None] ** torch.arange(70)).real
    torch.testing.assert_close(s4_kernels.vandermonde(coefficients, base, 70), expected)
