"""Rounds of a Monte-Carlo method: computed until they are enough.

A stage that has a `watch` is asked, round by round in their order, whether the rounds so far are
enough. Which rounds count hence depends on their rows alone, not on the number of workers; what
was finished beyond them stays in the store, where more rounds find it. The one exception is a limit
in minutes: how long the rounds took is kept in the run's record once they are enough, so that the
same run, executed again, has nothing to do.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.node import Node, Task
from storage.manifest import ShardRecord
from storage.table import Store

Records = list[ShardRecord]


@dataclasses.dataclass
class Outcome:
    """Which rounds count, and what they took."""

    first: str
    """Key of round 0: other rounds have another."""
    n_rounds: int = 0
    minutes: float = 0.0
    """Spent on them in all executions."""
    reason: str | None = None
    """Why they are enough; None where all were wanted."""

    @classmethod
    def before(cls, node: Node, record: Mapping[str, Any]) -> "Outcome":
        """What an earlier execution came to with the same rounds."""
        first = node.tasks[0].key
        return cls(**record) if record.get("first") == first else cls(first)

    def of(self, node: Node) -> Node:
        """The stage with the rounds that count and no others."""
        tasks = node.tasks[: self.n_rounds]
        return dataclasses.replace(node, tasks=tasks, done=node.done & {t.key for t in tasks})


def until_enough(
    node: Node,
    watch: Any,
    before: Outcome,
    store: Store,
    perform: Callable[[], Iterator[tuple[Task, Records]]],
    found: Callable[[Task, Records], None],
) -> Outcome:
    """Looks at rounds in order and has missing ones computed, until those so far are enough.

    `perform` computes the missing rounds and yields them as they finish; what is still at work when
    no more are wanted is given up. `found` is told of each that is computed.
    """
    start = time.monotonic()
    table = node.stage.writes[0].name
    running: Iterator[tuple[Task, Records]] | None = None
    there = set(node.done)
    try:
        for index, task in enumerate(node.tasks):
            while task.key not in there:
                running = running if running is not None else perform()
                finished, records = next(running)
                found(finished, records)
                there.add(finished.key)
            watch.add(store.read_shard(table, task.key))
            minutes = before.minutes + (time.monotonic() - start) / 60
            # Rounds that counted before count again: they took none of this execution's time.
            reason = watch.reason(minutes if index + 1 >= before.n_rounds else 0.0)
            if reason is not None:
                break
    finally:
        close = getattr(running, "close", None)
        if close is not None:
            close()
    return Outcome(before.first, index + 1, minutes, reason)
