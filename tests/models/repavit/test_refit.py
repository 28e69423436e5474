"""The closed-form fit of one FFN, against least squares done otherwise."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusible.models.repavit import refit as refit_module
from fusible.models.repavit.feed_forward import ChannelIdleFeedForward
from fusible.models.repavit.refit import RefitStatistics, idle_without_data_, linearize_norm_, write_back_


WIDTH, HIDDEN = 6, 24


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, WIDTH))

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        return branch * self.weight


Scale.__name__ = "LayerScale"


def make_ffn(active: int, batch_norms: bool = False, bias: bool = True) -> ChannelIdleFeedForward:
    norms = [nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(HIDDEN)] if batch_norms else [nn.LayerNorm(WIDTH), nn.Identity()]
    linears = nn.Linear(WIDTH, HIDDEN, bias), nn.Linear(HIDDEN, WIDTH, bias)
    ffn = ChannelIdleFeedForward(norms[0], linears[0], nn.GELU(), norms[1], linears[1], active, Scale(), nn.Identity())
    return ffn.double().eval().requires_grad_(False)


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * torch.randn(4000, WIDTH).double() + 1, torch.randn(4000, WIDTH).double()


def fitted(ffn: ChannelIdleFeedForward, rows: tuple[torch.Tensor, torch.Tensor]):
    statistics = RefitStatistics(ffn)
    for parts in zip(rows[0].split(1500), rows[1].split(1500), strict=True):
        statistics.add(*parts)
    return statistics.refit(ffn.active_channels), statistics


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("active", [0, 8, 18])
def test_the_fit_is_the_least_squares_solution(active, bias, rows, monkeypatch):
    monkeypatch.setattr(refit_module, "RIDGE", 1e-12)
    ffn = make_ffn(active, bias=bias)
    inputs, targets = rows
    refit, _ = fitted(ffn, rows)
    normed = ffn.input_norm(inputs)
    hidden = F.gelu(ffn.fc1(normed))
    columns = [hidden[:, refit.active], normed, *([torch.ones(len(inputs), 1).double()] if bias else [])]
    features = torch.cat(columns, 1)
    best = features @ torch.linalg.pinv(features) @ targets  # normed channels add up to zero, so the rank is lower
    found = hidden[:, refit.active] @ refit.down.T + normed @ refit.linear.T + refit.bias
    torch.testing.assert_close(found, best, rtol=0, atol=1e-6)
    variance = (targets - bias * targets.mean(0)).square().sum()
    assert refit.error == pytest.approx(((targets - best).square().sum() / variance).item(), rel=1e-6)


def test_channels_that_a_line_explains_become_idle():
    """Biases put eight channels where GELU is a line, and eight where it is zero; those between stay active."""
    ffn = make_ffn(8)
    ffn.fc1.bias.copy_(torch.tensor([20.0, 0.0, -20.0]).repeat(8))
    refit, _ = fitted(ffn, (torch.randn(2000, WIDTH).double(), torch.randn(2000, WIDTH).double()))
    assert refit.active.tolist() == list(range(1, 24, 3))
    ffn = make_ffn(8)
    ffn.fc1.bias.copy_(torch.tensor([20.0, 0.0, -20.0]).repeat(8))
    before = ffn.fc1.weight.clone()
    idle_without_data_(ffn, torch.ones(WIDTH), torch.zeros(WIDTH))
    assert torch.equal(ffn.fc1.weight[:8], before[1::3])


def test_a_linear_part_of_low_rank_is_the_best_one(rows, monkeypatch):
    """No better one is found by solving for its two factors in turn."""
    monkeypatch.setattr(refit_module, "RIDGE", 1e-12)
    ffn = make_ffn(22)
    inputs = rows[0]
    normed = ffn.input_norm(inputs)
    # what the linear part of rank 2 has to approximate has rank 6
    targets = normed @ torch.randn(WIDTH, WIDTH).double() + 0.1 * rows[1]
    refit, _ = fitted(ffn, (inputs, targets))
    assert torch.linalg.matrix_rank(refit.linear) == 2
    known = torch.cat([F.gelu(ffn.fc1(normed))[:, refit.active], torch.ones(len(inputs), 1).double()], 1)
    factor = torch.randn(WIDTH, 2).double()
    for _ in range(300):
        solution = torch.linalg.lstsq(torch.cat([known, normed @ factor], 1), targets).solution
        left, rest = solution[-2:], targets - known @ solution[:-2]
        # the other factor: normed @ factor @ left closest to the rest
        factor = torch.linalg.lstsq(normed, rest).solution @ torch.linalg.pinv(left)
    solution = torch.linalg.lstsq(torch.cat([known, normed @ factor], 1), targets).solution
    error = (targets - torch.cat([known, normed @ factor], 1) @ solution).square().sum()
    variance = (targets - targets.mean(0)).square().sum()
    assert refit.error <= (error / variance).item() * (1 + 1e-6)


@pytest.mark.parametrize("case", ["old rows", "dependent rows", "low rank", "none idle", "batch norms", "no bias"])
def test_writing_back_changes_nothing(case, rows):
    active = {"low rank": 20, "none idle": 24}.get(case, 8)
    ffn = make_ffn(active, batch_norms=case == "batch norms", bias=case != "no bias")
    inputs, targets = rows
    if case == "dependent rows":
        ffn.fc1.weight[:, 0] = ffn.fc1.weight[:, 1]
    if case == "batch norms":
        linearize_norm_(ffn, nn.LayerNorm(WIDTH).double(), inputs.split(900))
    refit, statistics = fitted(ffn, rows)
    normed = ffn.input_norm(inputs)
    hidden = F.gelu(ffn.fc1(normed))[:, refit.active]
    expected = inputs + hidden @ refit.down.T + normed @ refit.linear.T + refit.bias
    old = ffn.fc1.weight.clone()
    write_back_(ffn, refit, statistics)
    torch.testing.assert_close(ffn(inputs), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(ffn.fuse()(inputs), expected, rtol=0, atol=1e-9)
    if case == "old rows":
        assert torch.equal(ffn.fc1.weight, old[torch.cat([refit.active, refit.idle])])
    if case == "dependent rows":
        assert torch.linalg.cond(ffn.fc1.weight[active:]) < 1 + 1e-9
    if case == "batch norms":
        seen = torch.cat([hidden, ffn.fc1(ffn.input_norm(inputs))[:, active:]], 1)
        torch.testing.assert_close(ffn.hidden_norm.running_mean, seen.mean(0))
        torch.testing.assert_close(ffn.hidden_norm.running_var, seen.var(0, correction=0))


def test_a_batch_norm_in_place_of_a_layer_norm(rows, monkeypatch):
    """It is each channel's line through the LayerNorm's values; `fc1` reads the best affine map of all channels."""
    monkeypatch.setattr(refit_module, "RIDGE", 1e-12)
    ffn, norm = make_ffn(8, batch_norms=True), nn.LayerNorm(WIDTH).double().requires_grad_(False)
    norm.weight.copy_(torch.linspace(-1, 2, WIDTH))
    inputs = rows[0] @ torch.randn(WIDTH, WIDTH).double()
    normed = norm(inputs)
    ones = torch.ones(len(inputs), 1).double()
    best = torch.cat([inputs, ones], 1)
    expected = F.linear(best @ torch.linalg.lstsq(best, normed).solution, ffn.fc1.weight, ffn.fc1.bias)
    linearize_norm_(ffn, norm, inputs.split(1000))
    for channel in range(WIDTH):
        line = torch.cat([inputs[:, channel, None], ones], 1)
        on_line = line @ torch.linalg.lstsq(line, normed[:, channel, None]).solution
        torch.testing.assert_close(ffn.input_norm(inputs)[:, channel], on_line[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ffn.fc1(ffn.input_norm(inputs)), expected, rtol=0, atol=1e-6)


def test_slopes_without_data():
    """An idle channel's line is the regression of GELU on normal numbers."""
    ffn = make_ffn(0)
    gamma, beta = torch.linspace(0.5, 1.5, WIDTH).double(), torch.linspace(-1, 1, WIDTH).double()
    inputs = torch.randn(400_000, WIDTH, generator=torch.Generator().manual_seed(0)).double() * gamma + beta
    hidden = ffn.fc1(inputs)
    lines = []
    for channel in hidden.T:
        line = torch.stack([channel, torch.ones_like(channel)], 1)
        lines.append(line @ torch.linalg.lstsq(line, F.gelu(channel)[:, None]).solution)
    expected = ffn.fc2(torch.cat(lines, 1))
    idle_without_data_(ffn, gamma, beta)
    assert (ffn.fc2(ffn.fc1(inputs)) - expected).abs().max() < 0.02
