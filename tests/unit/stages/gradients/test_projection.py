from typing import Any

import pytest

from stages.gradients.projection import Projection
from stages.model.layers import Shape
from stages.stage import ConfigError


@pytest.mark.parametrize("name", ["inputs", "outputs", "dim"])
@pytest.mark.parametrize("bad", [0, -1])
def test_lengths_must_be_positive(name: str, bad: int) -> None:
    with pytest.raises(ConfigError, match=f"found {name}: {bad}, expected a positive number"):
        Projection(**{name: bad})


def test_principal_directions_cannot_be_fewer_than_none() -> None:
    with pytest.raises(ConfigError, match="found principal: -1, expected 0 or more"):
        Projection(principal=-1)


@pytest.mark.parametrize(
    ("projection", "length"),
    [
        ({"inputs": 3, "outputs": 3, "dim": None}, 15),
        ({"inputs": 3, "outputs": 3, "dim": 14}, 14),
        ({"inputs": 3, "outputs": 3, "dim": 16}, 15),
        ({"inputs": 2, "outputs": 4, "dim": None}, 12),
        ({"inputs": None, "outputs": None, "dim": None}, 30),
        ({"inputs": None, "outputs": 1, "dim": None}, 9),
    ],
    ids=str,
)
def test_lengths_are_not_stretched(projection: dict[str, Any], length: int) -> None:
    # A layer of 4 inputs and 5 outputs, one of 5 and 2.
    assert Projection(**projection).length([Shape(4, 5), Shape(5, 2)]) == length
