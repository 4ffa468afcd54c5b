"""What is said of flags that a review moved."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.applied import _flags


class Run:
    """A run of a task with so many flagged rows, without a review."""

    def __init__(self, task: str, n_flagged: int):
        self._task, self._n = task, n_flagged
        self.record, self.folder = {"config": "{}"}, SimpleNamespace(config="config.yaml")

    def task(self) -> str:
        return self._task

    def methods(self, view: str) -> list[str]:
        return [view]

    def sql(self, _: str) -> Any:
        return type("Found", (), {"fetchall": lambda _: [(self._n, 3.4)]})()


@pytest.mark.parametrize(
    ("task", "now", "decided", "said"),
    [
        ("classification", 38, {"fix": 2, "accept": 1}, ""),
        (
            "classification",
            5,
            {"fix": 2, "accept": 10, "drop": 3},
            " Of the 12 that were accepted or fixed 2 were wrong, which tells how many of the "
            "others are.",
        ),
        ("classification", 5, {"drop": 3}, " How many are wrong is estimated anew, from"),
        ("completion", 5, {"drop": 3}, " How many are wrong is estimated anew, from"),
        ("completion", 1, {"drop": 3, "accept": 36}, ""),
    ],
)
def test_flags_that_moved_more_than_was_mended_have_a_reason(
    task: str, now: int, decided: dict[str, int], said: str
) -> None:
    (told,) = _flags(Run(task, 40), Run(task, now), Counter(decided))
    noun = {"classification": "labels", "completion": "answers"}[task]
    start = f"{now} {noun} are flagged, 40 before; 3 are expected to be wrong."
    assert told.startswith(start + said)
    assert said or told == start
