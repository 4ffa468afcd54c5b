"""Rounds of a sampled stage, computed until its stopping rule is met.

The stopping rule of a stage (`Samples.watch`) looks at the rounds one by one, in their order. Which
rounds count hence depends on their rows alone, not on the number of workers; rounds that were
finished beyond them stay in the store, where a run with more rounds finds them. The one exception
is a limit in minutes: how long the rounds took is kept in the run's record once the rule is met, so
that the same run, executed again, has nothing to do.
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
    """How many rounds of a stage count, how long they took, and why no more were computed."""

    first: str
    """Shard key of round 0; rounds of a changed stage have another."""
    n_rounds: int = 0
    minutes: float = 0.0
    """Time spent on these rounds in all executions."""
    reason: str | None = None
    """Why the rule ended the rounds; None where all configured rounds count."""

    @classmethod
    def before(cls, node: Node, record: Mapping[str, Any]) -> "Outcome":
        """The outcome in the `record` of an earlier execution; empty for other rounds than its."""
        first = node.tasks[0].key
        return cls(**record) if record.get("first") == first else cls(first)

    def of(self, node: Node) -> Node:
        """The node with the tasks of the rounds that count alone."""
        tasks = node.tasks[: self.n_rounds]
        return dataclasses.replace(node, tasks=tasks, done=node.done & {t.key for t in tasks})


def until_enough(
    node: Node,
    rule: Any,
    last: Outcome,
    store: Store,
    run_missing: Callable[[], Iterator[tuple[Task, Records]]],
    keep: Callable[[Task, Records], None],
) -> Outcome:
    """The outcome of rounds that are computed, in order, until the stopping rule is met.

    Args:
        node: The sampled stage, a task for each configured round.
        rule: Its stopping rule, fresh (`stages.game.stopping.Watch`).
        last: The outcome of an earlier execution of the same rounds.
        store: Holds the rounds that are computed already.
        run_missing: Runs the missing rounds and yields each as it finishes; closed when no more
            are needed, which gives up those still at work.
        keep: Called with each round that was computed.
    """
    start = time.monotonic()
    table = node.stage.writes[0].name
    running: Iterator[tuple[Task, Records]] | None = None
    present = set(node.done)
    try:
        for index, task in enumerate(node.tasks):
            while task.key not in present:
                running = running if running is not None else run_missing()
                finished, records = next(running)
                keep(finished, records)
                present.add(finished.key)
            rule.add(store.read_shard(table, task.key))
            minutes = last.minutes + (time.monotonic() - start) / 60
            # Rounds that counted before count again: they took none of this execution's time.
            reason = rule.reason(minutes if index + 1 >= last.n_rounds else 0.0)
            if reason is not None:
                break
    finally:
        close = getattr(running, "close", None)
        if close is not None:
            close()
    return Outcome(last.first, index + 1, minutes, reason)
