"""The refit is the least-squares solution, and its numerical guards do what they say."""

from __future__ import annotations

import pytest
import torch

from optipfair_engine.errors import CalibrationError, InvalidOptionError
from optipfair_engine.solving import refit as R
from tests.numbers import assert_near

H, I, TOKENS = 6, 14, 200  # noqa: E741
KEPT = torch.tensor([0, 2, 3, 5, 8, 9, 12])


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """W, and correlated inputs X, so that what is removed can partly be said by what is kept."""
    torch.manual_seed(3)
    mixing = torch.randn(8, I) + 0.1 * torch.randn(8, I)
    x = torch.randn(TOKENS, 8) @ mixing + 0.2 * torch.randn(TOKENS, I)
    return torch.randn(H, I), x


def test_small_ridge_gives_the_lstsq_solution(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    w, x = problem
    expected = torch.linalg.lstsq(x[:, KEPT].double(), x.double() @ w.T.double()).solution.T
    for ridge in (0.0, 1e-9):
        assert_near(R.solve_least_squares(w, x.double().T @ x.double(), KEPT, ridge), expected, 1e-6)


def test_large_ridge_gives_the_old_weights(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    w, x = problem
    assert_near(R.solve_least_squares(w, x.T @ x, KEPT, 1e9), w[:, KEPT])


def test_keeping_all_inputs_keeps_the_weights(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    w, x = problem
    assert_near(R.solve_least_squares(w, x.T @ x, range(I), 0.1), w)


def test_solution_minimises_the_ridged_objective(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    w, x = problem
    gram, ridge = x.T @ x, 0.3
    d = R.ridge_diagonal(gram, "coordinate")[KEPT]
    solved = R.solve_least_squares(w, gram, KEPT, ridge, diagonal=R.ridge_diagonal(gram, "coordinate"))

    def objective(v: torch.Tensor) -> float:
        fit = (x.double() @ w.T.double() - x.double()[:, KEPT] @ v.T).square().sum()
        return float(fit + ridge * ((v - w[:, KEPT].double()).square() * d).sum())

    best = objective(solved)
    for _ in range(20):
        assert objective(solved + 1e-3 * torch.randn_like(solved)) > best


def test_refit_beats_no_refit_and_reports_its_error(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    w, x = problem
    fit, held = x[:150].T @ x[:150], x[150:].T @ x[150:]
    found = R.refit(w, fit, held, KEPT)
    measured = (x @ w.T - x[:, KEPT] @ found.weight.T).square().sum() / (x @ w.T).square().sum()
    assert found.error == pytest.approx(float(measured), rel=1e-3)
    assert found.error < 0.5 * R.output_error(w, fit + held, KEPT, w[:, KEPT])
    assert 0 < found.held_out_error < 1


@pytest.mark.parametrize("tokens", [2, 8, 20, 60, 400])
def test_ridge_is_no_worse_on_held_out_tokens_than_any_of_the_grid(tokens: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(tokens + 400, I), torch.randn(H, I)
    fit, held = x[:tokens].T @ x[:tokens], x[tokens:].T @ x[tokens:]
    ridge, error = R.choose_ridge(w, fit, held, KEPT)
    errors = {r: R.output_error(w, held, KEPT, R.solve_least_squares(w, fit, KEPT, r)) for r in R.RIDGES}
    assert error <= min(errors.values())
    if (
        tokens <= 20
    ):  # too few for 14 noisy inputs: the smallest ridge fits noise, and the held-out part says so
        assert ridge > min(R.RIDGES)
    chosen = R.output_error(w, held, KEPT, R.solve_least_squares(w, fit, KEPT, ridge))
    assert error == pytest.approx(chosen)


def test_median_is_not_moved_by_a_massive_activation() -> None:
    gram = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1e9]))
    assert R.ridge_diagonal(gram).unique().tolist() == [2.0]
    assert R.ridge_diagonal(gram, "coordinate").tolist() == [1.0, 2.0, 3.0, 1e9]


def test_dead_inputs_neither_break_the_solve_nor_get_weight(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    w, x = problem
    x[:, 3] = 0
    solved = R.solve_least_squares(w, x.T @ x, KEPT, 0.0)
    assert torch.isfinite(solved).all()
    others = KEPT[KEPT != 3]
    assert_near(solved[:, KEPT != 3], R.solve_least_squares(w, x.T @ x, others, 0.0))


@pytest.mark.parametrize("gram", [torch.zeros(I, I), torch.full((I, I), torch.nan)])
def test_useless_calibration_is_an_error(gram: torch.Tensor) -> None:
    with pytest.raises(CalibrationError):
        R.solve_least_squares(torch.ones(H, I), gram, KEPT)


def test_negative_ridge_is_refused(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(InvalidOptionError, match="negative"):
        R.solve_least_squares(problem[0], problem[1].T @ problem[1], KEPT, -1.0)
