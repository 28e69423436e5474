"""Initial state spaces of S4, against the orthogonal polynomials that HiPPO matrices stand for."""

import pytest
import torch
from scipy.special import eval_laguerre, eval_legendre

from fusible.models.s4.hippo import (
    DIAGONALS,
    MEASURES,
    StateSpace,
    diagonal,
    diagonalize,
    hippo,
    initial_state_space,
    low_rank_correction,
)


def impulse(measure: str, state_size: int, time: float) -> torch.Tensor:
    matrix, b = hippo(measure, state_size)
    return torch.linalg.matrix_exp(time * matrix) @ b


@pytest.mark.parametrize("time", [0.0, 0.3, 1.7])
def test_impulse_responses_are_the_basis_functions(time):
    """Of the exponentially warped Legendre and of the Laguerre polynomials; exact for every finite size."""
    order = torch.arange(8, dtype=torch.float64)
    decay = torch.tensor(-time, dtype=torch.float64).exp()
    legendre = (
        (2 * order + 1).sqrt() * decay * torch.tensor([eval_legendre(i, 2 * decay.item() - 1) for i in range(8)])
    )
    torch.testing.assert_close(impulse("legs", 8, time), legendre)
    laguerre = torch.tensor([eval_laguerre(i, time) for i in range(8)], dtype=torch.float64) * decay.sqrt()
    torch.testing.assert_close(impulse("lagt", 8, time), laguerre)


def test_legt_forgets():
    """What left the window of length 2 that its polynomials span."""
    before, after = (impulse("legt", 64, time).norm() for time in (1.0, 4.0))
    assert after < 0.25 * before


def test_legt_by_its_definition():
    matrix, b = hippo("legt", 3)
    root = [1, 3**0.5, 5**0.5]
    signs = [[1, -1, 1], [1, 1, -1], [1, 1, 1]]
    expected = [[-0.5 * root[i] * root[k] * signs[i][k] for k in range(3)] for i in range(3)]
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(b, torch.tensor(root, dtype=torch.float64) / 2)


def test_fout_by_its_definition():
    matrix, b = hippo("fout", 6)
    skew = matrix + torch.outer(b, b)
    for pair in range(3):
        assert skew[2 * pair + 1, 2 * pair] == pytest.approx(torch.pi * pair)
    torch.testing.assert_close(skew, -skew.T)
    assert int(skew.count_nonzero()) == 4
    assert b.tolist() == pytest.approx([1, 0, 2**0.5, 0, 2**0.5, 0])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("state_size", [2, 4, 16, 64])
def test_correction_makes_the_matrix_normal(measure, state_size):
    matrix, _ = hippo(measure, state_size)
    rows = low_rank_correction(measure, state_size, 2)
    normal = matrix + rows.T @ rows
    symmetric = (normal + normal.T) / 2
    expected = {"legs": -0.5, "legt": 0, "lagt": 0, "fout": 0}[measure] * torch.eye(state_size, dtype=torch.float64)
    torch.testing.assert_close(symmetric, expected, atol=1e-9, rtol=0)


def resolvent(system: StateSpace, c: torch.Tensor, at: complex) -> torch.Tensor:
    """Transfer function of both halves of a system, read out by a real vector that is given in its basis."""
    a, b, p, c = (torch.cat([part, part.conj()], dim=-1) for part in (*system, c))
    matrix = torch.diag(a) - sum(torch.outer(row, row.conj()) for row in p)
    return c.conj() @ torch.linalg.solve(at * torch.eye(len(a)) - matrix, b)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("state_size", [4, 16, 64])
def test_diagonal_plus_low_rank_is_the_same_system(measure, state_size):
    matrix, b = hippo(measure, state_size)
    system = diagonalize(measure, state_size, rank=2, b_clip=None)
    for at in (0.3 + 0.7j, 1.0 + 40j):
        expected = b.to(torch.complex128) @ torch.linalg.solve(at * torch.eye(state_size) - matrix, b + 0j)
        torch.testing.assert_close(resolvent(system, system.b, at), expected)


def test_figures_of_the_authors():
    """Of their initialization; the sign of an eigenvector is theirs or not, which changes nothing."""
    system = diagonalize("legs", 4)
    torch.testing.assert_close(
        system.a, torch.tensor([-0.5 - 4.6033j, -0.5 - 0.5565j]) + 0j, atol=1e-4, rtol=0, check_dtype=False
    )
    torch.testing.assert_close(
        system.p, torch.tensor([[0.2030 + 1.8685j, 0.4570 + 0.5086j]]), atol=1e-4, rtol=0, check_dtype=False
    )
    torch.testing.assert_close(
        system.b, torch.tensor([0.2870 + 2j, 0.6462 + 0.7193j]), atol=1e-4, rtol=0, check_dtype=False
    )
    system = diagonalize("legs", 64)
    assert system.a.imag[[0, 1, 2, -1]].tolist() == pytest.approx([-1303.27, -433.03, -258.15, -0.2639], rel=2e-4)
    assert int((system.b.imag.abs() == 2).sum()) == 11
    assert diagonalize("legs", 64, b_clip=None).b.imag.abs().max().item() == pytest.approx(40.75, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "frequencies"),
    [
        ("lin", [0, torch.pi, 2 * torch.pi]),
        ("inv", [6 / torch.pi * 5, 6 / torch.pi, 6 / torch.pi * 0.2]),
        ("inv2", [6 / torch.pi * 5, 6 / torch.pi * 2, 6 / torch.pi]),
        ("quad", [1 / torch.pi, 9 / torch.pi, 25 / torch.pi]),
        ("real", [0, 0, 0]),
    ],
)
def test_diagonal_systems(kind, frequencies):
    system = diagonal(kind, 6)
    assert (-system.a.imag).tolist() == pytest.approx(frequencies)
    assert system.a.real.tolist() == ([-1, -2, -3] if kind == "real" else [-0.5] * 3)
    assert system.b.tolist() == [1, 1, 1]


def test_random_frequencies_are_log_normal():
    logs = (-diagonal("rand", 4000).a.imag).log()
    assert logs.mean().item() == pytest.approx(0, abs=0.1) and logs.std().item() == pytest.approx(1, abs=0.1)


def test_kinds_share_the_copies_in_contiguous_parts():
    system = initial_state_space(["legs", "fout"], 8, 6, rank=2)
    assert system.a.shape == system.b.shape == (6, 4) and system.p.shape == (2, 6, 4)
    for copy in range(6):
        single = diagonalize("legs" if copy < 3 else "fout", 8, 2)
        assert torch.equal(system.a[copy], single.a) and torch.equal(system.p[:, copy], single.p)
    assert initial_state_space("legt", 8, 1, rank=1, low_rank=False).a.shape == (1, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hippo("legz", 4), "Unknown measure 'legz'; known are legs"),
        (lambda: diagonal("linear", 4), "Unknown initialization 'linear'; known are legs, legt, fout, lagt, lin"),
        (lambda: initial_state_space("legt", 4, 1), "'legt' needs rank 2; it is 1"),
        (lambda: initial_state_space(["legs", "lin"], 4, 3), "3 state spaces cannot be shared equally"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_all_kinds_are_stable():
    for kind in MEASURES + DIAGONALS:
        assert initial_state_space(kind, 16, 1, rank=2).a.real.max() <= 0
