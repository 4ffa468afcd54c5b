"""What the contract of a stage refuses when the class is made."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from stages.pairs.scores import FactorRows, PairScores
from stages.stage import Cost, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

TABLE = TableSpec("t", pa.schema([("id", pa.int64())]), ("id",))


class Whole(Stage, contract=True):
    """All that a stage must have."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        return (TABLE,)

    def compute(self, inputs: Inputs) -> Rows:
        yield from ()


def test_a_stage_needs_no_more_than_the_contract_asks_for() -> None:
    @dataclass(frozen=True)
    class Plain(Whole):
        own: int = 3

        def _helps(self) -> int:
            return self.own

    made = Plain()
    work = Work(n_examples=1, n_queries=1, n_tokens=1, n_classes=2, dim=1)
    assert (made.opens, made.asks, made.cost(work), made.seed) == ((), {}, Cost(), None)
    assert (made.model_ref, made.feature_dim, made.speaks_for, made.n_rounds) == (None,) * 3 + (1,)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("opnes", ("query",), "opens"),
        ("check_read", lambda self, writers: None, "check_reads"),
        ("cots", lambda self, work: Cost(), "cost"),
        ("outside_keys", frozenset(), "outside_key"),
        ("speak_for", property(lambda self: "label"), "speaks_for"),
        ("is_keeped", True, "is_kept"),
    ],
)
def test_a_misspelt_hook_is_an_error(name: str, value: Any, meant: str) -> None:
    with pytest.raises(TypeError, match=f"found {name}, which no contract knows.*mean {meant}"):
        type("Misspelt", (Whole,), {name: value, "__annotations__": {}})


def test_a_misspelt_class_variable_is_no_field() -> None:
    annotations = {"opnes": ClassVar[tuple[str, ...]]}
    with pytest.raises(TypeError, match="found opnes"):
        type("Misspelt", (Whole,), {"opnes": (), "__annotations__": annotations})


def test_hooks_of_a_capability_belong_to_it_alone() -> None:
    with pytest.raises(TypeError, match="found merge, which no contract knows"):
        type("Merging", (Whole,), {"merge": lambda self, parts: parts, "__annotations__": {}})


def test_what_must_be_said_is_asked_for() -> None:
    with pytest.raises(TypeError, match="found no version"):
        type("Nameless", (Stage,), {"__annotations__": {}})

    @dataclass(frozen=True)
    class Unfinished(PairScores):
        @property
        def reads(self) -> tuple[str, ...]:
            return ("embedding",)

        def queries(self, inputs: Inputs) -> FactorRows:
            raise AssertionError

    with pytest.raises(TypeError, match="abstract method '?examples"):
        Unfinished()
