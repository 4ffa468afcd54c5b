"""Where the calls of an ingest are made: here, or by the workers of the run's engine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engine import Engine
from pipeline.progress import Progress
from pipeline.settings import Resources
from stages.corpus.pieces import in_turn

FEW = 4
"""Fewer calls than these are made here: sooner than a cluster has started."""
DOING = {"scan": "reading rows", "make_shards": "writing rows"}
"""What a person reads while the calls of a function are made."""


@dataclass(frozen=True)
class IngestCalls:
    """An `Each` (`stages.corpus.pieces`) that shows how many rows are done."""

    engine: Callable[[], Engine]
    """Gives the engine, where one is needed."""
    resources: Resources
    """Of one worker of a stage that names none; reading takes their memory and their number."""
    progress: Progress

    def __call__(
        self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yields the place of each item and the result, in the order of finishing."""
        if len(items) < FEW:
            results = in_turn(function, shared, items)
        else:
            one = Resources(memory_gb=self.resources.memory_gb, workers=self.resources.workers)
            results = self.engine().call_each("ingest", function, shared, items, one)
        doing = DOING.get(function.__name__)
        if doing is None or len(items) < FEW:
            yield from results
            return
        total, done = sum(item.n_rows for item in items), 0
        self.progress.counted(doing, 0, total)
        for at, result in results:
            done += items[at].n_rows
            self.progress.counted(doing, done, total)
            yield at, result
