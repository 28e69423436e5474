"""The operations of S4 against their definitions in float64, their gradients and their memory."""

import math
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusible.models.s4.coefficients import Coefficients
from fusible.models.s4.convolution import cauchy, low_rank_kernel, real_fft, vandermonde
from fusible.models.s4.hippo import initial_state_space
from fusible.models.s4.scan import ssm_scan, ssm_step, ssm_step_


HEADS, STATE = 3, 4


def complex_leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128).requires_grad_()


def stable(*shape: int) -> torch.Tensor:
    return torch.polar(torch.empty(shape).double().uniform_(0.7, 1), torch.empty(shape).double().uniform_(-3, 3))


class Memory(TorchDispatchMode):
    """Peak of what all tensors made inside occupy, in bytes, and the elements of the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.sizes = Counter(), {}
        self.now = self.peak = self.largest = 0

    def _release(self, address: int) -> None:
        self.users[address] -= 1
        if self.users[address] == 0:
            self.now -= self.sizes[address]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                address = storage.data_ptr()
                if self.users[address] == 0:
                    self.sizes[address] = storage.nbytes()
                    self.now += storage.nbytes()
                self.users[address] += 1
                weakref.finalize(tensor, self._release, address)
                self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
                self.peak = max(self.peak, self.now)
        return outputs


@pytest.mark.parametrize("length", [1, 2, 3, 16, 37, 100])
class TestDefinitions:
    def test_vandermonde(self, length):
        v, base = complex_leaf(HEADS, 2, STATE), stable(HEADS, STATE).requires_grad_()
        expected = 2 * torch.einsum("hrn,hnl->hrl", v, base[..., None] ** torch.arange(length)).real
        torch.testing.assert_close(vandermonde(v, base, length), expected)
        assert torch.autograd.gradcheck(lambda *args: vandermonde(*args, length), (v, base))

    def test_cauchy(self, length):
        v = complex_leaf(HEADS, 2, STATE)
        w = (torch.randn(HEADS, STATE, dtype=torch.complex128) - 1.5).detach().requires_grad_()
        nodes = torch.exp(-2j * math.pi * torch.arange(length // 2 + 1, dtype=torch.float64) / length)
        expected = sum(
            (top[..., None] / (2 * (1 - nodes) - pole[:, None, :, None] * (1 + nodes))).sum(2)
            for top, pole in ((v, w), (v.conj(), w.conj()))
        )
        torch.testing.assert_close(cauchy(v, w, length), expected)
        assert torch.autograd.gradcheck(lambda *args: cauchy(*args, length), (v, w))

    @pytest.mark.parametrize(("groups", "size"), [(3, 2), (1, 5)])
    def test_scan(self, length, groups, size):
        transition = torch.randn(HEADS, groups, size, size, dtype=torch.float64)
        transition = (0.95 * torch.linalg.qr(transition).Q).requires_grad_()
        b, c, state, inputs = (
            torch.randn(*shape, dtype=torch.float64).requires_grad_()
            for shape in (
                (HEADS, groups, size),
                (HEADS, 2, groups, size),
                (2, HEADS, groups, size),
                (2, HEADS, length),
            )
        )
        y, last = ssm_scan(inputs, transition, b, c, state)
        x, expected = state, []
        for u in inputs.unbind(-1):
            x = torch.einsum("hgij,bhgj->bhgi", transition, x) + b * u[..., None, None]
            expected.append(torch.einsum("hcgi,bhgi->bch", c, x))
        torch.testing.assert_close(y, torch.stack(expected, dim=-1))
        torch.testing.assert_close(last, x)
        first, middle = ssm_scan(inputs[..., : length // 2 + 1], transition, b, c, state)
        if length > 1 and length // 2 + 1 < length:
            second, end = ssm_scan(inputs[..., length // 2 + 1 :], transition, b, c, middle)
            torch.testing.assert_close(torch.cat([first, second], dim=-1), y)
            torch.testing.assert_close(end, last)
        weights = torch.randn_like(y)
        arguments = (inputs, transition, b, c, state)
        actual = torch.autograd.grad((y * weights).sum() + last.sum(), arguments)
        reference = torch.autograd.grad((torch.stack(expected, dim=-1) * weights).sum() + x.sum(), arguments)
        torch.testing.assert_close(actual, reference)


@pytest.mark.parametrize("length", [1, 2, 3, 64, 999])
@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1.0, 1e5, 1e10])
def test_cauchy_of_extreme_poles(scale, length):
    """Those of the smallest and largest steps, to the last digits of each node's terms."""
    v = complex_leaf(HEADS, 2, STATE)
    w = (scale * torch.complex(-torch.rand(HEADS, STATE).double() - 0.1, torch.randn(HEADS, STATE).double())).detach()
    w.requires_grad_()
    # of half the angles, as 1 - z has no digits left beside z = 1, nor has 1 + z beside -1
    node = torch.arange(length // 2 + 1, dtype=torch.float64)
    sine, cosine = (node * (torch.pi / length)).sin(), ((length - 2 * node) * (torch.pi / 2 / length)).sin()
    turn = torch.complex(cosine, sine) / 2
    terms = [
        top[..., None] / (2j * sine - pole[:, None, :, None] * cosine) * turn
        for top, pole in ((v, w), (v.conj(), w.conj()))
    ]
    expected, actual = sum(terms).sum(2), cauchy(v, w, length)
    magnitude = sum(part.abs() for part in terms).sum(2)
    assert ((actual - expected).abs() < 1e-12 * magnitude).all()
    weights = torch.randn_like(expected) / magnitude.detach()
    gradients, reference = (torch.autograd.grad(values, (v, w), weights) for values in (actual, expected))
    for one, other in zip(gradients, reference, strict=True):
        assert (one - other).abs().max() < 1e-10 * other.abs().max()


@pytest.mark.parametrize(("size", "length"), [(1, 1), (1, 2), (4, 4), (5, 5), (3, 8), (4, 7)])
def test_real_fft(size, length):
    signal = torch.randn(2, size, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(real_fft(signal, length), torch.fft.fft(signal, n=length)[:, : length // 2 + 1])
    assert torch.autograd.gradcheck(lambda x: real_fft(x, length), signal)


def test_scan_of_many_chunks():
    transition = torch.tensor([[0.99, 0.1], [-0.1, 0.99]], dtype=torch.float64).mul(0.99)[None, None]
    b, c = torch.ones(1, 1, 2).double(), torch.tensor([[[[1.0, -2.0]]]]).double()
    inputs, x, expected = torch.randn(1, 1, 1000, dtype=torch.float64), torch.zeros(2).double(), []
    for u in inputs.flatten():
        x = transition[0, 0] @ x + u
        expected.append(x[0] - 2 * x[1])
    y, last = ssm_scan(inputs, transition, b, c, torch.zeros(1, 1, 1, 2))
    torch.testing.assert_close(y.flatten(), torch.stack(expected))
    torch.testing.assert_close(last.flatten(), x)
    single, _ = ssm_scan(inputs.float(), transition.float(), b.float(), c.float(), torch.zeros(1, 1, 1, 2))
    assert single.dtype == torch.float32 and (single - y).abs().max() < 1e-4


def dense_kernel(system, c, dt, length):
    """The definition, by matrices: `K[l] = C dA^l dB` bilinear, and C (I - dA^length) in the half that is stored."""
    a, b, c, p = (torch.cat([x, x.conj()], dim=-1) for x in (system.a, system.b, c, system.p))
    matrix = torch.diag_embed(a) - torch.einsum("rhn,rhm->hnm", p, p.conj())
    half = dt[:, None, None] / 2 * matrix
    identity = torch.eye(a.shape[-1])
    step = torch.linalg.solve(identity - half, identity + half)
    vector = torch.linalg.solve(identity - half, dt[:, None] * b)[..., None]
    kernel = []
    for _ in range(length):
        kernel.append((c @ vector)[..., 0].real)
        vector = step @ vector
    truncated = c - c @ torch.linalg.matrix_power(step, length)
    return torch.stack(kernel, dim=-1), truncated[..., : a.shape[-1] // 2]


@pytest.mark.parametrize(
    ("kind", "rank", "state_size", "length"),
    [
        ("legs", 1, 64, 1024),
        ("legs", 3, 8, 37),
        ("legt", 2, 64, 100),
        ("fout", 1, 16, 64),
        ("lagt", 1, 16, 1),
        ("lin", 2, 8, 50),
    ],
)
def test_low_rank_kernel(kind, rank, state_size, length):
    system = initial_state_space(kind, state_size, HEADS, rank)
    system = system._replace(a=torch.complex(system.a.real.clamp(max=-1e-4), system.a.imag))
    c, dt = complex_leaf(HEADS, 2, state_size // 2), torch.tensor([1e-3, 1e-2, 0.1], dtype=torch.float64)
    expected, truncated = dense_kernel(system, c.detach(), dt, length)
    kernel = low_rank_kernel(system.a, system.b, truncated, system.p.movedim(1, 0), dt, length)
    assert (kernel - expected).abs().max() < 1e-11 * expected.abs().max()


@pytest.mark.parametrize("rank", [1, 2])
def test_gradients_of_the_low_rank_kernel(rank):
    a, b, p, c = complex_leaf(2, 2), complex_leaf(2, 2), complex_leaf(2, rank, 2), complex_leaf(2, 1, 2)
    a = torch.complex(-a.real.detach().abs() - 0.1, a.imag.detach()).requires_grad_()
    dt = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: low_rank_kernel(*args, 9), (a, b, c, p, dt))


def test_kernel_of_parameters_in_single_precision_is_exact():
    """At length 16384, where nodes in single precision cost the authors' code 7e-4: the only error is the rounding."""
    heads, length = 2, 16384
    system = initial_state_space("legs", 64, heads)
    # in double precision, as the layer has them when it computes
    system = type(system)(*(part.to(torch.complex64).to(torch.complex128) for part in system))
    dt = torch.tensor([1e-4, 1e-2]).double()
    c = torch.randn(heads, 1, 32, dtype=torch.complex64).to(torch.complex128)
    expected, truncated = dense_kernel(system, c, dt, length)
    kernel = low_rank_kernel(system.a, system.b, truncated, system.p.movedim(1, 0), dt, length).float()
    assert (kernel - expected).abs().max() < 1e-7


def test_memory_is_linear_in_heads_and_length():
    """In float64, forward and backward; the states of all steps would be heads * state * length complex numbers."""
    heads, state, length = 16, 32, 8192
    base = stable(heads, state).requires_grad_()
    with Memory() as memory:
        vandermonde(complex_leaf(heads, 1, state), base, length).sum().backward()
    assert memory.largest <= 2 * heads * length and memory.peak < 6 * 8 * heads * length
    system = initial_state_space("legs", 2 * state, heads)
    a, b, p = (part.requires_grad_() for part in (system.a, system.b, system.p))
    dt = torch.full((heads,), 0.01, dtype=torch.float64, requires_grad=True)
    with Memory() as memory:
        low_rank_kernel(a, b, complex_leaf(heads, 1, state), p.movedim(1, 0), dt, length).sum().backward()
    assert memory.largest <= 4 * heads * length and memory.peak < 22 * 8 * heads * length
    transition = torch.view_as_real(torch.stack([stable(heads, state)] * 2, dim=-1)).requires_grad_()
    inputs = torch.randn(2, heads, length, dtype=torch.float64, requires_grad=True)
    b, c = torch.randn(heads, state, 2).double(), torch.randn(heads, 1, state, 2).double()
    with Memory() as memory:
        ssm_scan(inputs, transition, b, c, torch.zeros(2, heads, state, 2))[0].sum().backward()
    assert memory.largest <= 2 * 2 * heads * length and memory.peak < 12 * 8 * 2 * heads * length


def test_scan_with_gelu():
    transition = 0.95 * torch.linalg.qr(torch.randn(HEADS, STATE, 2, 2, dtype=torch.float64)).Q
    shapes = (HEADS, STATE, 2), (HEADS, 2, STATE, 2), (2, HEADS, STATE, 2)
    maps = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    inputs = torch.randn(2, HEADS, 99, dtype=torch.float64)
    arguments = [argument.requires_grad_() for argument in (inputs, transition, *maps)]
    y, last = ssm_scan(*arguments)
    activated, end = ssm_scan(*arguments, gelu=True)
    expected = y * torch.special.ndtr(y)
    torch.testing.assert_close((activated, end), (expected, last))
    actual, reference = (torch.autograd.grad(part.square().sum(), arguments) for part in (activated, expected))
    torch.testing.assert_close(actual, reference)


def test_operations_compile():
    v, base, w = torch.randn(2, 1, 4, dtype=torch.complex128), stable(2, 4), stable(2, 4) - 2
    scan = [torch.randn(*shape) for shape in ((1, 2, 70), (2, 2, 2, 2), (2, 2, 2), (2, 1, 2, 2), (1, 2, 2, 2))]
    for function, arguments in ((vandermonde, (v, base, 50)), (cauchy, (v, w, 50)), (ssm_scan, scan)):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), function(*arguments))


@torch.no_grad()
def test_many_steps_keep_their_digits():
    """What rounding took away from a transition counts in each of thousands of steps, for slow and fast modes."""
    turn = torch.exp(torch.tensor([[-1e-4 + 1e-3j, -1e-4 + 2j]], dtype=torch.complex128))
    exact = Coefficients(torch.view_as_real(turn - 1), None, torch.randn(1, 2, 2), torch.randn(1, 1, 2, 2), None, None)
    increment, tail, b, c, _, _ = system = exact.rounded(torch.float32)
    torch.testing.assert_close(system.in_precision(torch.float64).increment, exact.increment, rtol=0, atol=1e-14)
    first = torch.randn(1, 1, 2, 2)
    expected = torch.view_as_real(turn**5000 * torch.view_as_complex(first.double()))
    state, overwritten, outputs, nothing = first, first.clone(), torch.empty(1, 1, 1), torch.zeros(1, 1)
    for _ in range(5000):
        _y, state = ssm_step(nothing, increment, tail, b, c, state)
        ssm_step_(outputs, overwritten, nothing, increment, tail, b, c)
    for actual in (state, overwritten):
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5 * expected.abs().max().item())
