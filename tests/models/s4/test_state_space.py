"""S4's state space layer: both forms against the definition in float64."""

import itertools
import math

import pytest
import torch

from fusible import S4Config
from fusible.models.s4.recurrence import S4Recurrence
from fusible.models.s4.state_space import INVERSES, TRANSFORMS, S4StateSpace, long_convolution


pytest_plugins = ["support.kernel_fixture"]
pytestmark = pytest.mark.usefixtures("kernel_path")

HEADS = 4
OPTIONS = {
    "legs": {},
    "legs_l_max": {"l_max": 40},
    "legs_long": {"l_max": 5},
    "legt": {"init": "legt", "rank": 2},
    "legt_l_max": {"init": "legt", "rank": 2, "l_max": 64},
    "fout": {"init": "fout"},
    "lagt": {"init": "lagt", "rank": 3, "l_max": 16},
    "dplr_lin": {"init": "lin"},
    "several": {"init": ["legs", "fout"], "num_ssm": 2, "b_clip": None},
    "dplr_rate": {"l_max": 30, "rate": 0.5},
    "one_pair": {"state_size": 2},
    **{kind: {"mode": "diag", "init": kind} for kind in ("lin", "inv", "inv2", "quad", "rand", "real")},
    "diag_legs": {"mode": "diag", "init": "legs", "rate": 2},
    "diag_bilinear": {"mode": "diag", "disc": "bilinear", "tie_dt": False},
    "diag_zoh": {"mode": "diag", "init": "legt", "tie_dt": False, "num_ssm": 4},
    "dss": {"mode": "diag", "disc": "dss", "l_max": 37, "num_ssm": 2},
    "softplus": {"dt_transform": "softplus", "real_transform": "relu", "imag_transform": "softplus"},
    "sigmoid": {"mode": "diag", "dt_transform": "relu", "real_transform": "sigmoid", "imag_transform": "relu"},
    "none": {"mode": "diag", "dt_transform": "none", "real_transform": "none", "imag_transform": "exp"},
}


def make_layer(dtype=torch.float64, noise=0.1, **options) -> S4StateSpace:
    """With parameters that are not those of the start, and by default without an activation."""
    options = {"hidden_size": HEADS, "state_size": 8, "dt_min": 0.01, "hidden_act": "linear", **options}
    layer = S4StateSpace(S4Config(**options))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1 + noise * torch.randn_like(parameter))
    return layer.to(dtype)


def matrices(layer: S4StateSpace, head: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The definition, of one head: transition, input and outputs of the whole state, z beside its conjugate."""
    config, copy = layer.config, head % layer.config.num_ssm
    a, b = (
        -TRANSFORMS[config.real_transform](layer.A_real[copy])
        - 1j * TRANSFORMS[config.imag_transform](layer.A_imag[copy]),
        torch.view_as_complex(layer.B[copy]),
    )
    c = torch.view_as_complex(layer.C[:, head].contiguous())
    dt = (TRANSFORMS[config.dt_transform](layer.inv_dt[head]) * config.rate).expand(len(a))
    l_max = round((config.l_max or 0) / config.rate)
    a, b, c, dt = (torch.cat([x, x.conj()], dim=-1) for x in (a, b, c, dt))
    matrix = torch.diag(a)
    if config.mode == "dplr":
        for row in torch.view_as_complex(layer.P[:, copy].contiguous()):
            row = torch.cat([row, row.conj()])
            matrix = matrix - torch.outer(row, row.conj())
    step, eye = dt[:, None] * matrix, torch.eye(len(a))
    if config.disc == "bilinear":
        inverse = torch.linalg.inv(eye - step / 2)
        transition, b = inverse @ (eye + step / 2), inverse @ (dt * b)
    elif config.disc == "zoh":
        transition = torch.diag(step.diagonal().exp())
        b = b * (step.diagonal().exp() - 1) / a
    else:  # a softmax-like normalization over l_max steps, and the real part only
        transition = torch.diag(step.diagonal().exp())
        total = (torch.exp(step.diagonal() * l_max) - 1) * a
        b = b * (step.diagonal().exp() - 1) / 2 * total.conj() / (total.abs() ** 2 + 1e-7)
    if config.mode == "dplr" and l_max:
        c = c @ torch.linalg.inv(eye - torch.linalg.matrix_power(transition, l_max))
    return transition, b, c


def scan(u, x, transition, b, c):
    outputs = []
    for value in u.unbind(1):
        x = x @ transition.T + value[:, None] * b
        outputs.append((x @ c.T).real)
    return torch.stack(outputs, dim=1), x


@torch.no_grad()
def run_definition(layer, inputs, state=None):
    """`[batch, length, heads]` to `[batch, length, channels * heads]` and the state, one step after another."""
    batch, length, heads = inputs.shape
    config = layer.config
    y = torch.zeros(batch, length, config.channels, heads, dtype=torch.float64)
    states = []
    for head in range(heads):
        system = matrices(layer, head)

        half = torch.zeros(batch, config.state_size // 2, dtype=torch.complex128)
        if state is not None:
            half = torch.view_as_complex(state[:, head].contiguous())
        u = inputs[..., head]
        ahead, x = scan(u, torch.cat([half, half.conj()], dim=-1), *system)
        y[..., head] = ahead[..., : config.channels] + layer.D[:, head] * u[..., None]
        if config.bidirectional:
            back, _ = scan(u.flip(1), torch.zeros_like(x), *system)
            y[:, :-1, :, head] += back.flip(1)[:, 1:, config.channels :]
        states.append(torch.view_as_real(x[:, : config.state_size // 2].contiguous()))
    return y.flatten(2), torch.stack(states, dim=1)


def assert_equal(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(("channels", "bidirectional"), [(1, False), (2, False), (1, True), (2, True)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_both_forms_are_the_definition(options, channels, bidirectional):
    layer = make_layer(channels=channels, bidirectional=bidirectional, **options)
    for length in (37, 2, 1):
        inputs = torch.randn(2, length, HEADS, dtype=torch.float64)
        expected, _ = run_definition(layer, inputs)
        for form in (layer, layer.fuse()):
            outputs, state = form(inputs)
            assert_equal(outputs, expected)
            assert state is None


@pytest.mark.parametrize("real", [0.05, 0.5, 5.0, 30.0])
@torch.no_grad()
def test_growing_states_of_dss(real):
    """As the authors define it: the kernels of growing states are counted back from the last of the l_max steps."""
    layer = make_layer(mode="diag", disc="dss", l_max=37, real_transform="none", imag_transform="none")
    layer.A_real.copy_(torch.tensor([[-real, 0.4, -real / 3, 0.2]]))
    layer.inv_dt.fill_(math.log(0.1))
    a, b, c, _, dt = layer.system()
    steps, terms = a * dt, []
    for head, state in itertools.product(range(HEADS), range(4)):
        pole, step = a[head, state], steps[head, state]
        sign, last = (-1, 36) if pole.real > 0 else (1, 0)
        x = ((sign * step * 37).exp() - 1) * pole
        weight = b[head, state] * c[head, 0, state] * ((sign * step).exp() - 1) * x.conj() / (x.abs() ** 2 + 1e-7)
        terms.append((weight * (step * (torch.arange(37) - last)).exp()).real)
    expected = torch.stack(terms).unflatten(0, (HEADS, 4)).sum(1)
    if real == 30:
        for use in (lambda: layer.kernel(37), layer.fuse):
            with pytest.raises(ValueError, match=r"A_real goes down to -30: .* in l_max=37 steps"):
                use()
        return
    assert_equal(layer.kernel(37)[:, 0], expected)
    inputs = torch.randn(2, 37, HEADS, dtype=torch.float64)
    assert_equal(layer.fuse()(inputs)[0], layer(inputs)[0])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_states(options):
    """Passed in and out, in pieces of any length, in both forms."""
    layer = make_layer(channels=2, **options)
    inputs = torch.randn(2, 37, HEADS, dtype=torch.float64)
    start = torch.randn(2, HEADS, layer.B.shape[-2], 2, dtype=torch.float64)
    expected, last = run_definition(layer, inputs, start)
    actual, state = layer(inputs, start, return_state=True)
    assert_equal(actual, expected)
    assert_equal(state, last)
    whole, _ = layer(inputs)
    for form in (layer, layer.fuse()):
        state, outputs = None, []
        for piece in inputs.split([3, 1, 1, 20, 12], dim=1):
            output, state = form(piece, state, return_state=True)
            outputs.append(output)
        assert_equal(torch.cat(outputs, dim=1), whole)


@pytest.mark.parametrize("mode", ["diag", "dplr"])
@torch.no_grad()
def test_both_forms_own_their_activation(mode):
    """Of whole sequences, and of pieces of any length."""
    layer = make_layer(mode=mode, channels=2, hidden_act="gelu")
    inputs = torch.randn(2, 37, HEADS, dtype=torch.float64)
    y, _ = run_definition(layer, inputs)
    expected = y * torch.special.ndtr(y)
    for form in (layer, layer.fuse()):
        state, outputs = None, []
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                assert_equal(form(inputs)[0].detach(), expected)
        for piece in inputs.split([3, 1, 1, 20, 12], dim=1):
            output, state = form(piece, state, return_state=True)
            outputs.append(output)
        assert_equal(torch.cat(outputs, dim=1), expected)


@torch.no_grad()
def test_no_form_changes_the_state_that_it_is_given():
    layer = make_layer(hidden_act="silu")
    for form in (layer, layer.fuse()):
        state = torch.randn(2, HEADS, 4, 2, dtype=torch.float64)
        before, token = state.clone(), torch.randn(2, 1, HEADS, dtype=torch.float64)
        one, other = (form(token, state, return_state=True) for _ in range(2))
        assert torch.equal(state, before) and all(map(torch.equal, one, other))


@torch.no_grad()
def test_bidirectional_inference_form_with_gelu():
    layer = make_layer(bidirectional=True, hidden_act="gelu")
    inputs = torch.randn(2, 37, HEADS, dtype=torch.float64)
    y, _ = run_definition(layer, inputs)
    assert_equal(layer.fuse()(inputs)[0], y * torch.special.ndtr(y))


@torch.no_grad()
def test_a_state_of_one_form_is_that_of_the_other():
    layer = make_layer(init="legt", rank=2, dtype=torch.float64)
    inputs = torch.randn(2, 9, HEADS, dtype=torch.float64)
    start = torch.randn(2, HEADS, 4, 2, dtype=torch.float64)
    assert_equal(layer.fuse()(inputs, start)[0], layer(inputs, start)[0])


@pytest.mark.parametrize("noise", [0, 0.03])
@pytest.mark.parametrize("state_size", [4, 64, 256])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"l_max": 16384},
        {"init": "fout"},
        {"init": "legt", "rank": 2},
        {"init": "rand"},
        {"mode": "diag"},
        {"mode": "diag", "init": "legs", "disc": "bilinear"},
        {"mode": "diag", "init": "inv"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "legs",
)
@torch.no_grad()
def test_float32_keeps_its_digits_over_16384_steps(options, state_size, noise):
    """Impulse responses of the scan, and of the same in a piece and single steps, against the exact kernel's peaks."""
    options = {"hidden_size": 2, "state_size": state_size, "dt_min": 0.001, **options}
    layer = make_layer(torch.float32, noise, **options)
    layer.D.zero_()
    exact = layer.kernel(16384)[:, 0]
    peak, fused = exact.abs().amax(1, keepdim=True), layer.fuse()
    impulse = torch.zeros(1, 16384, 2)
    impulse[:, 0] = 1
    whole, _ = fused(impulse)
    assert ((whole[0].T - exact).abs() / peak).max() < 2e-6
    first, state = fused(impulse[:, :8000], return_state=True)
    steps = [first]
    for piece in impulse[:, 8000:8500].split(1, dim=1):
        output, state = fused(piece, state, return_state=True)
        steps.append(output)
    assert ((torch.cat(steps, dim=1)[0].T - exact[:, :8500]).abs() / peak).max() < 2e-6


@torch.no_grad()
def test_both_forms_in_float32_on_noise():
    layer = make_layer(torch.float32, 0.03, state_size=64, dt_min=0.001)
    inputs = torch.randn(1, 4096, HEADS)
    exact, _ = layer.double()(inputs.double())
    layer = layer.float()
    assert_equal(layer(inputs)[0], exact, 1e-6)
    assert_equal(layer.fuse()(inputs)[0], exact, 1e-5)


@torch.no_grad()
def test_silence_leaves_no_subnormal_states():
    """Which some processors take ten times as long for."""
    for mode in ("diag", "dplr"):
        fused = make_layer(torch.float32, mode=mode, dt_min=0.1).fuse()
        _, state = fused(torch.randn(1, 5, HEADS), return_state=True)
        for length in (9_000, *[1] * 3000):
            _, state = fused(torch.zeros(1, length, HEADS), state, return_state=True)
            assert not ((state != 0) & (state.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_have_their_inverses(name):
    values = torch.tensor([1e-3, 0.1, 0.9], dtype=torch.float64)
    torch.testing.assert_close(TRANSFORMS[name](INVERSES[name](values)), values)


@torch.no_grad()
def test_initial_values():
    layer = S4StateSpace(S4Config(hidden_size=500, mode="diag", num_ssm=2, init=["lin", "inv"]))
    dt = layer.inv_dt.exp()
    assert 0.001 <= dt.min() and dt.max() <= 0.1 and dt.log().mean().item() == pytest.approx(-4.6, abs=0.2)
    assert layer.A_imag[0, 0] == pytest.approx(1e-4) and layer.A_imag[0, 1] == pytest.approx(torch.pi)
    assert layer.C.std().item() == pytest.approx(0.5**0.5, rel=0.05)
    assert layer.D.std().item() == pytest.approx(1, rel=0.1)
    torch.manual_seed(0)
    free = S4StateSpace(S4Config(hidden_size=2, state_size=8))
    torch.manual_seed(0)
    tied = S4StateSpace(S4Config(hidden_size=2, state_size=8, l_max=50))
    torch.testing.assert_close(tied.kernel(50), free.kernel(50), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"l_max": 6}, {"l_max": 20, "init": "legt", "rank": 2}, {"mode": "diag"}])
def test_gradients(options):
    layer = make_layer(hidden_size=2, state_size=4, bidirectional=True, **options)
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in layer.named_parameters()), strict=True)
    inputs = torch.randn(1, 9, 2, dtype=torch.float64, requires_grad=True)

    def outputs(inputs, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (inputs,))[0]

    assert torch.autograd.gradcheck(outputs, (inputs, *values))


def test_gradients_of_both_forms_reach_inputs_and_states():
    layer = make_layer(state_size=4)
    inputs = torch.randn(1, 30, HEADS, dtype=torch.float64)
    weights = torch.randn(1, 30, HEADS, dtype=torch.float64)
    (layer(inputs)[0] * weights).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    first, state = layer(inputs[:, :13], return_state=True)
    second, _ = layer(inputs[:, 13:], state)
    (torch.cat([first, second], dim=1) * weights).sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_half_precision_keeps_the_parameters():
    layer = make_layer(torch.float32)
    inputs = torch.randn(2, 50, HEADS, dtype=torch.bfloat16)
    expected, _ = layer(inputs.float())
    for form in (layer.to(torch.bfloat16), layer.fuse().half(), layer.fuse()):
        assert {parameter.dtype for parameter in form.parameters()} == {torch.float32}
        outputs, _ = form(inputs)
        assert outputs.dtype == torch.bfloat16
        assert_equal(outputs.float(), expected, 1e-2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_equal(form(inputs.float())[0], expected, 1e-5)


def test_bidirectional_layers_have_no_state():
    layer = make_layer(bidirectional=True)
    for form in (layer, layer.fuse()):
        with pytest.raises(ValueError, match="bidirectional layer has no state"):
            form(torch.randn(1, 3, HEADS).double(), return_state=True)


@torch.no_grad()
def test_both_forms_compile():
    layer = make_layer(torch.float32, state_size=4)
    inputs = torch.randn(1, 9, HEADS)
    for form, *arguments in ((layer, inputs), (layer.fuse(), inputs, None, True)):
        compiled = torch.compile(form, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), form(*arguments))


def test_long_convolution_by_its_definition():
    inputs, kernel, ahead = (torch.randn(2, 3, 11, dtype=torch.float64) for _ in range(3))
    kernel, ahead = kernel.movedim(0, 1), ahead.movedim(0, 1)
    expected = torch.zeros(2, 3, 2, 11, dtype=torch.float64)
    for t, j in itertools.product(range(11), range(11)):
        if t - j >= 0:
            expected[..., t] += kernel[..., j] * inputs[:, :, None, t - j]
        if t + 1 + j < 11:
            expected[..., t] += ahead[..., j] * inputs[:, :, None, t + 1 + j]
    torch.testing.assert_close(long_convolution(inputs, kernel, ahead), expected)


@pytest.mark.parametrize("options", [{}, {"mode": "diag"}, {"bidirectional": True}, {"l_max": 9}])
@torch.no_grad()
def test_batches_of_nothing(options):
    layer = make_layer(channels=2, **options)
    for form in (layer, layer.fuse()):
        assert form(torch.zeros(0, 5, HEADS).double())[0].shape == (0, 5, 2 * HEADS)


def test_recurrence_says_what_it_is():
    fused = make_layer(mode="diag").fuse()
    assert isinstance(fused, S4Recurrence) and fused.extra_repr() == "heads=4, rank=0, bidirectional=False"
