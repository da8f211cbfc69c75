"""OBS equals the exact greedy choice on tiny problems, and its curve is what refits really give."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from optipfair_engine.errors import CalibrationError, InvalidOptionError
from optipfair_engine.solving import obs
from optipfair_engine.solving.inverse import inverse_of, narrow_inverse_of
from optipfair_engine.solving.obs import eliminate
from optipfair_engine.solving.refit import output_error, ridge_diagonal, ridged, solve_least_squares
from tests.numbers import assert_near

H, I, TOKENS = 5, 12, 300  # noqa: E741


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    x = torch.randn(TOKENS, 7) @ torch.randn(7, I) + 0.3 * torch.randn(TOKENS, I)
    return torch.randn(H, I), x.T @ x


def _refit_error(w: torch.Tensor, gram: torch.Tensor, kept: list[int], ridge: float) -> float:
    return output_error(w, gram, kept, solve_least_squares(w, gram, kept, ridge))


def test_single_removals_are_the_exact_greedy_choice(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    w, gram = problem
    kept = list(range(I))
    for _ in range(8):
        errors = {j: _refit_error(w, gram, [i for i in kept if i != j], 0.0) for j in kept}
        kept.remove(min(errors, key=lambda j: errors[j]))
        found = eliminate(w, gram, 0.0, block_size=1, smallest=len(kept))
        assert found.kept(len(kept)).tolist() == kept


@pytest.mark.parametrize("ridge", [0.0, 1e-2, 0.5])
@pytest.mark.parametrize("block", [1, 4])
def test_errors_equal_those_of_the_refits(
    problem: tuple[torch.Tensor, torch.Tensor], ridge: float, block: int
) -> None:
    w, gram = problem
    found = eliminate(w, gram, ridge, block_size=block)
    for width in range(I - block, 0, -block):
        expected = _refit_error(w, gram, found.kept(width).tolist(), ridge)
        assert float(found.errors[I - width]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_curve_of_a_given_order_is_that_of_its_refits(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    w, gram = problem
    order = torch.randperm(I)
    curve = eliminate(w, gram, 0.0, order=order).errors.flip(0)
    for width in range(1, I):
        expected = _refit_error(w, gram, order[I - width :].tolist(), 0.0)
        assert float(curve[width]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert float(curve[I]) == 0.0
    assert float(curve[0]) == pytest.approx(1.0, rel=1e-6)


def test_sets_are_nested_and_errors_grow(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = eliminate(*problem, 1e-3, block_size=4)
    sets = [set(found.kept(width).tolist()) for width in range(I + 1)]
    assert all(small < large for small, large in pairwise(sets))
    assert torch.all(found.errors.diff() > -1e-9)


def test_obs_beats_a_norm_after_refit(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    w, gram = problem
    norm = (w.norm(dim=0) * gram.diagonal().sqrt()).topk(6).indices.sort().values
    by_obs = eliminate(w, gram, 0.0, block_size=1, smallest=6).kept(6)
    assert _refit_error(w, gram, by_obs.tolist(), 0.0) < _refit_error(w, gram, norm.tolist(), 0.0)


def test_stopping_early_refuses_widths_below(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = eliminate(*problem, 1e-2, smallest=6)
    assert len(found.kept(6)) == 6
    with pytest.raises(InvalidOptionError, match="width must be in"):
        found.kept(5)


def test_equal_inputs_go_from_the_lower_index_up() -> None:
    found = eliminate(torch.ones(2, 4), torch.eye(4), 0.0, block_size=1)
    assert found.order.tolist() == [0, 1, 2, 3]


def plain_elimination(w: torch.Tensor, gram: torch.Tensor, ridge: float, block: int) -> torch.Tensor:
    """The order by the definition: after each block the inverse of what remains, and the refit by it."""
    scale = ridge_diagonal(gram, "coordinate")
    matrix, dense = ridged(gram, ridge, scale), w.double()
    left, order = torch.arange(len(gram)), []
    while len(left):
        inverse = torch.linalg.inv(matrix[left][:, left])
        now = dense @ matrix[:, left] @ inverse
        score = now.square().sum(0) / inverse.diagonal()
        chosen = torch.sort(score, stable=True).indices[:block]
        order.append(left[chosen])
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[chosen] = False
        left = left[stays]
    return torch.cat(order)


@pytest.mark.parametrize(("size", "block", "seed"), [(40, 1, 0), (130, 1, 1), (300, 4, 2), (520, 7, 3)])
def test_updates_that_wait_change_no_order(size: int, block: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * size, size // 3, generator=generator) @ torch.randn(
        size // 3, size, generator=generator
    )
    x = (x + torch.randn(2 * size, size, generator=generator)) * torch.randn(size, generator=generator).exp()
    w, gram = torch.randn(9, size, generator=generator), x.T @ x
    found = eliminate(w, gram, 1e-2, block_size=block, scale="coordinate")
    assert found.order.tolist() == plain_elimination(w, gram, 1e-2, block).tolist()


@pytest.mark.parametrize("size", [1, 255, 256, 700, 1100])
def test_the_inverse_is_one(size: int) -> None:
    x = torch.randn(2 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    matrix = x.T @ x / size + 0.01 * torch.eye(size, dtype=torch.float64)
    inverse = inverse_of(matrix.clone)
    assert torch.equal(inverse, inverse.T)
    assert_near(inverse @ matrix, torch.eye(size, dtype=torch.float64))


def test_a_rank_deficient_matrix_gets_jitter_and_a_negative_one_is_refused() -> None:
    assert bool(torch.isfinite(inverse_of(lambda: torch.ones(300, 300, dtype=torch.float64))).all())
    with pytest.raises(CalibrationError, match="not positive"):
        inverse_of(lambda: -torch.eye(300, dtype=torch.float64))


def layer(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer with strong and weak directions, whose inputs have unequal energies."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(2 * size, size // 4, generator=generator) @ torch.randn(
        size // 4, size, generator=generator
    )
    x = (x + torch.randn(2 * size, size, generator=generator)) * torch.randn(size, generator=generator).exp()
    return torch.randn(size // 8, size, generator=generator), x.T @ x


def test_the_curve_of_a_large_layer_in_float32_is_that_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    size = obs.NARROW_SIZE
    w, gram = layer(size)
    narrow = eliminate(w, gram, 1e-2, scale="coordinate").errors
    monkeypatch.setattr(obs, "NARROW_SIZE", size + 1)
    exact = eliminate(w, gram, 1e-2, scale="coordinate").errors
    start = size // 50  # before it, errors are rounding
    assert float((narrow / exact - 1)[start:].abs().max()) < 1e-4


def test_a_narrow_inverse_is_one() -> None:
    x = torch.randn(1400, 700, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    energies = torch.linspace(-5, 5, 700, dtype=torch.float64).exp()
    matrix = x.T @ x * energies.outer(energies)
    inverse = narrow_inverse_of(matrix.clone)
    assert inverse.dtype == torch.float32 and torch.equal(inverse, inverse.T)
    exact = torch.linalg.inv(matrix)
    scale = exact.diagonal().sqrt()
    assert float(((inverse.double() - exact) / scale / scale[:, None]).abs().max()) < 1e-5
