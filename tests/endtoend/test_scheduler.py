"""What passes between a run and the engine that executes its tasks."""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import read_config
from pipeline.engine import InProcess
from pipeline.node import Task
from pipeline.run import execute_run
from pipeline.settings import Resources
from pipeline.task import Job
from storage.manifest import ShardRecord

NAMES_AND_COUNTS_BYTES = 100_000


class Weighing:
    """Runs in this process, and weighs everything that an engine is told and gives back."""

    def __init__(self) -> None:
        self.inner, self.weights = InProcess(), []

    def run_tasks(
        self, job: Job, tasks: Sequence[Task], resources: Resources, heard: Any = None
    ) -> Iterator[tuple[Task, list[ShardRecord]]]:
        self.weights.append(len(pickle.dumps(job)))
        for task, records in self.inner.run_tasks(job, tasks, resources, heard):
            self.weights.append(len(pickle.dumps((task, records))))
            yield task, records

    def close(self) -> None:
        self.inner.close()


def test_no_row_passes_through_the_scheduler(write_config: Any, tmp_path: Path) -> None:
    engine = Weighing()
    stages = {"ntk": {}, "freeshap": {"rounds": 4, "units_per_round": 2}}
    execute_run(read_config(write_config(tmp_path, stages=stages)), engine=lambda: engine)
    assert len(engine.weights) > 15
    assert max(engine.weights) < NAMES_AND_COUNTS_BYTES
