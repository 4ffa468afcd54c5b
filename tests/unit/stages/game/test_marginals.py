"""Marginals that need no computing are what the definition gives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages.game.game import Game
from stages.game.least_squares import RecursiveLeastSquares
from stages.game.marginals import block_gains, single_gains
from stages.game.regression import Blocks, Members, Regression, gains, join
from stages.game.utility import Judge, Utility, fitted

N, DIM, QUERIES = 400, 24, 90
MEMBERS, OTHERS = torch.arange(300), torch.arange(300, 396).view(-1, 8)

SMOOTH: tuple[Utility, ...] = ("cross_entropy", "margin")

Made = Callable[[int, float, bool, torch.dtype], tuple[Game, Regression]]


@pytest.fixture
def made() -> Made:
    """A game of so many classes and this damping, and its regression on 300 members."""

    def make(
        n_classes: int, damping: float, by_query: bool, dtype: torch.dtype
    ) -> tuple[Game, Regression]:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(n_classes, DIM, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, n_classes, (N + QUERIES,), generator=generator)
        rows = 0.3 * centres[labels] + torch.randn(N + QUERIES, DIM, generator=generator)
        rows = torch.nn.functional.normalize(rows, dim=1).to(dtype)
        rows[N - 5] = 0
        targets = torch.nn.functional.one_hot(labels[:N], n_classes).double() - 1 / n_classes
        judge = Judge(labels[N:], n_classes, temperature=0.7)
        queries = rows[N:] * judge.signs(dtype)[:, None]

        def regression() -> RecursiveLeastSquares:
            return RecursiveLeastSquares(
                lambda ids: rows[ids], queries, fitted(targets).to(dtype), damping
            )

        game = Game(N, regression, judge, DIM, by_query)
        fit = game.regression()
        fit.take(MEMBERS)
        return game, fit

    return make


def by_definition(game: Game, blocks: Blocks, utility: Utility) -> Tensor:
    """The differences of utilities, every output computed."""
    (gain,) = gains(join(blocks), blocks.outputs, [game.measure(utility)])
    return gain.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by_query", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 9])
# Of a small damping examples move many queries far, of a middling one some, of a large one none.
@pytest.mark.parametrize("damping", [1e-4, 0.3, 30.0])
def test_marginals_are_those_of_the_definition(
    n_classes: int, damping: float, by_query: bool, dtype: torch.dtype, made: Made
) -> None:
    game, fit = made(n_classes, damping, by_query, dtype)
    error = 3e-6 if dtype == torch.float32 else 1e-13
    found: list[Blocks | Members] = [fit.outside(OTHERS), fit.inside(MEMBERS[:64].view(-1, 8))]
    for blocks in found:
        alone = blocks.singles(slice(None))
        for utility in SMOOTH:
            gain = single_gains(game, blocks, utility)
            expected = by_definition(game, alone, utility)
            assert gain.shape == expected.shape
            torch.testing.assert_close(gain, expected, rtol=1e-5, atol=error)
        seen = blocks.without() if isinstance(blocks, Members) else blocks
        gain = block_gains(game, join(seen), seen.outputs)
        assert gain.abs().max() > 0 or damping > 1
        expected = by_definition(game, seen, "accuracy")
        torch.testing.assert_close(gain, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("numbers", [90 * 19, 90 * 25, 90 * 60])
@pytest.mark.parametrize("damping", [1e-4, 0.3, 30.0])
def test_a_last_part_that_is_not_full_has_no_more_rows(
    numbers: int, damping: float, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.game.marginals.NUMBERS", numbers)
    game, fit = made(9, damping, False, torch.float64)
    found: list[Blocks | Members] = [fit.outside(OTHERS), fit.inside(MEMBERS[:64].view(-1, 8))]
    for blocks in found:
        gain = single_gains(game, blocks, "cross_entropy")
        expected = by_definition(game, blocks.singles(slice(None)), "cross_entropy")
        assert gain.shape == expected.shape
        torch.testing.assert_close(gain, expected, rtol=1e-5, atol=1e-13)


def test_an_example_without_features_adds_nothing(made: Made) -> None:
    game, fit = made(9, 30.0, True, torch.float32)
    blocks = fit.outside(torch.tensor([[N - 5, N - 4]]))
    gain = single_gains(game, blocks, "cross_entropy")
    assert (gain[0] == 0).all()
    assert (gain[1] != 0).any()
    assert (block_gains(game, join(blocks), blocks.outputs)[0, 0] == 0).all()


def test_both_ways_are_taken(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    # The definition must not be what is compared with itself alone.
    def never(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("stages.game.marginals.gains", never)
    game, fit = made(9, 30.0, False, torch.float32)
    single_gains(game, fit.outside(OTHERS), "cross_entropy")
    blocks = fit.outside(OTHERS)
    block_gains(game, join(blocks), blocks.outputs)
    game, fit = made(2, 0.3, False, torch.float64)
    blocks = fit.outside(OTHERS)
    block_gains(game, join(blocks), blocks.outputs)
    few = game.regression()
    few.take(MEMBERS[:5])
    blocks = few.outside(OTHERS)
    with pytest.raises(ZeroDivisionError):
        block_gains(game, join(blocks), blocks.outputs)
    game, fit = made(9, 0.3, False, torch.float64)
    with pytest.raises(ZeroDivisionError):
        single_gains(game, fit.outside(OTHERS), "cross_entropy")
