"""The mechanism alone, on modules small enough to check by hand."""

import pytest
import torch
from torch import nn

from fusible import Fusible, fuse_
from fusible.core.fusion import make_linear
from fusible.models.repavit.feed_forward import as_affine
from support.model_tests.base import perturb_, relative_error


class Doubled(Fusible):
    """`2 * linear(x)`; its fused form is one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.linear(x)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        return make_linear(2 * self.linear.weight, 2 * self.linear.bias)


def test_fuse_walks_the_tree():
    model = nn.Sequential(Doubled(), nn.Sequential(nn.ReLU(), Doubled()), nn.ModuleDict({"last": Doubled()})["last"])
    inputs = torch.randn(4, 3)
    expected = model(inputs)
    assert fuse_(model) is model
    assert [type(module).__name__ for module in (model[0], model[1][1], model[2])] == ["Linear"] * 3
    torch.testing.assert_close(model(inputs), expected)


def test_a_fusible_itself_is_returned_fused():
    module = Doubled()
    fused = fuse_(module)
    assert type(fused) is nn.Linear
    torch.testing.assert_close(fused(torch.eye(3)), module(torch.eye(3)))


def test_nothing_to_fuse_raises():
    with pytest.raises(ValueError, match="Sequential has no training form left to fuse; it is fused already"):
        fuse_(nn.Sequential(nn.Linear(2, 2)))


def test_fuse_must_be_defined():
    with pytest.raises(TypeError, match="fuse"):
        type("Unfinished", (Fusible,), {})()


def test_make_linear():
    state = torch.get_rng_state()
    weight, bias = torch.arange(6.0).view(2, 3), torch.ones(2)
    linear = make_linear(weight, bias)
    assert torch.equal(torch.get_rng_state(), state)
    assert (linear.in_features, linear.out_features) == (3, 2)
    assert torch.equal(linear(torch.eye(3)), weight.T + 1)
    assert make_linear(weight).bias is None


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nn.LayerNorm, lambda n: nn.Identity()])
def test_as_affine(make):
    """What the norm is after its normalization: all of it for a frozen BatchNorm."""
    norm = make(5).double().eval()
    perturb_(norm)
    inputs = torch.randn(7, 5, dtype=torch.float64)
    scale, shift = as_affine(norm, torch.zeros(5))
    normed = nn.functional.layer_norm(inputs, (5,)) if isinstance(norm, nn.LayerNorm) else inputs
    assert relative_error(normed * scale + shift, norm(inputs)) < 1e-12
    assert scale.dtype == shift.dtype == torch.float64


def test_as_affine_refuses_other_modules():
    with pytest.raises(TypeError, match="GroupNorm has no affine form"):
        as_affine(nn.GroupNorm(1, 5), torch.zeros(5))
