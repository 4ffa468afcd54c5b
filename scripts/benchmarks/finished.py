"""Runs of assay, finished in this process, and what they cost stage by stage."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.progress import Progress


class Clock(Progress):
    """CPU-seconds and rows of every stage of a run that is executed in this process.

    Attributes:
        cpu_s: Per stage instance, all of it: loading, computing, writing.
        steady: Per stage instance (rows, CPU-seconds) without its first task, which loads the
            model; both are 0 where it has one task.
    """

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.steady: dict[str, tuple[int, float]] = {}
        self._start = self._first = 0.0

    def started(self, node: Any) -> None:
        """See `pipeline.progress.Progress`."""
        self._start = time.process_time()

    def advanced(self, node: Any, records: Sequence[Any]) -> None:
        """See `pipeline.progress.Progress`."""
        now = time.process_time()
        if node.instance not in self.steady:
            self.steady[node.instance], self._first = (0, 0.0), now
            return
        rows, _ = self.steady[node.instance]
        self.steady[node.instance] = (rows + records[0].rows, now - self._first)

    def finished(self, node: Any, seconds: float, notices: Sequence[str] = ()) -> None:
        """See `pipeline.progress.Progress`."""
        self.cpu_s[node.instance] = time.process_time() - self._start

    def rows_per_cpu_s(self, instance: str) -> float | None:
        """Of all tasks but the first; None where there is no other."""
        rows, cpu_s = self.steady[instance]
        return rows / cpu_s if rows else None


def run_config(raw: Mapping[str, Any], clock: Clock | None = None) -> Any:
    """The finished run of a configuration."""
    from pipeline import open_run
    from pipeline.config import parse_config
    from pipeline.run import execute_run

    return open_run(execute_run(parse_config(raw, "bench"), clock).path)


def accuracy(run: Any, method: str) -> float:
    """Share of the queries that an instance predicts correctly."""
    statement = (
        "SELECT avg((p.predicted = q.label)::INT) FROM predictions AS p "
        f"JOIN queries AS q ON q.query_id = p.id WHERE p.role = 'query' AND p.method = '{method}'"
    )
    return float(run.sql(statement).fetchall()[0][0])
