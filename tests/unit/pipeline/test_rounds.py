"""Which rounds count: those up to the first reason to stop, whoever computed them and when."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from pipeline.node import Node, Task
from pipeline.rounds import Outcome, until_enough
from stages.stage import Part


@dataclasses.dataclass
class Spec:
    name: str = "numbers"


class Stage:
    writes = (Spec(),)


class Shelf:
    """A store whose shards hold their round's number."""

    def read_shard(self, table: str, key: str) -> pa.Table:
        return pa.table({"round": [int(key)]})


class Until:
    """Enough at a round, or when minutes have passed."""

    def __init__(self, last: int, minutes: float = 1e9):
        self.last, self.minutes, self.seen = last, minutes, list[int]()

    def add(self, rounds: pa.Table) -> None:
        self.seen += rounds["round"].to_pylist()

    def reason(self, minutes: float) -> str | None:
        return "enough" if self.seen[-1] >= self.last or minutes >= self.minutes else None


def node(n_rounds: int, done: set[int]) -> Node:
    tasks = tuple(Task(Part("", r), str(r)) for r in range(n_rounds))
    return Node("numbers", Stage(), {}, {}, tasks, {}, frozenset(str(r) for r in done))


def run(of: Node, watch: Until, order: list[int], before: Outcome | None = None) -> Any:
    found: list[int] = []
    closed: list[bool] = []

    def perform() -> Iterator[tuple[Task, list[Any]]]:
        try:
            for r in order:
                yield of.tasks[r], []
        finally:
            closed.append(True)

    outcome = until_enough(
        of,
        watch,
        before or Outcome.before(of, {}),
        Shelf(),  # type: ignore[arg-type]
        perform,
        lambda task, records: found.append(task.part.index),
    )
    return outcome, found, closed


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [2, 0, 1, 5, 3, 4], [5, 4, 3, 2, 1, 0]])
def test_the_order_in_which_rounds_finish_does_not_matter(order: list[int]) -> None:
    of, watch = node(6, set()), Until(3)
    outcome, _, closed = run(of, watch, order)
    assert watch.seen == [0, 1, 2, 3]
    assert (outcome.n_rounds, outcome.reason) == (4, "enough")
    assert [task.key for task in outcome.of(of).tasks] == ["0", "1", "2", "3"]
    assert closed == [True]


def test_rounds_that_are_there_are_not_computed_again() -> None:
    outcome, found, closed = run(node(6, {0, 1, 2, 3}), Until(3), [4, 5])
    assert (outcome.n_rounds, found, closed) == (4, [], [])
    outcome, found, _ = run(node(6, {0, 2}), Until(3), [1, 3, 4, 5])
    assert (outcome.n_rounds, found) == (4, [1, 3])


def test_all_rounds_count_where_no_rule_holds() -> None:
    outcome, found, _ = run(node(3, set()), Until(9), [0, 1, 2])
    assert (outcome.n_rounds, outcome.reason, found) == (3, None, [0, 1, 2])


def test_minutes_of_an_earlier_execution_count() -> None:
    of = node(9, {0, 1, 2, 3, 4})
    before = Outcome("0", 4, 5.0, "enough")
    outcome, found, _ = run(of, Until(99, minutes=5.0), [5, 6, 7, 8], before)
    assert (outcome.n_rounds, found) == (4, [])
    assert outcome.minutes == pytest.approx(5.0, abs=0.01)
    more, found, _ = run(of, Until(6, minutes=50.0), [5, 6, 7, 8], before)
    assert (more.n_rounds, found) == (7, [5, 6])


def test_other_rounds_begin_anew() -> None:
    record = dataclasses.asdict(Outcome("0", 4, 5.0, "enough"))
    assert Outcome.before(node(3, set()), record).n_rounds == 4
    assert Outcome.before(node(3, set()), {**record, "first": "x"}) == Outcome("0")
