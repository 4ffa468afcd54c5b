"""What engines say of tasks that fail for want of memory or room."""

import errno
import os

import pytest
from runs import check_grammar

from pipeline.config import parse_stage
from pipeline.engine import InProcess
from pipeline.errors import TaskError
from pipeline.node import Task
from pipeline.settings import Resources
from pipeline.task import Job, Worker
from stages.model.spec import ModelSpec
from stages.stage import Part


@pytest.mark.parametrize(
    ("error", "fragments"),
    [
        (MemoryError(), ["too little memory", "token_budget", "ray.stages.mine.memory_gb"]),
        (RuntimeError("CUDA out of memory. Tried"), ["too little memory", "token_budget"]),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ["No space left", "Make room"]),
    ],
)
def test_a_task_without_memory_or_room_says_what_to_change(
    error: Exception, fragments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_task(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(Worker, "run_task", run_task)
    stage = parse_stage("embedding", {}, ModelSpec("owner/name"), "test")
    job = Job("mine", stage, "store", {}, 1)
    task = Task(Part("example", 3), "key")
    with pytest.raises(TaskError, match="mine, example shard 3: ") as caught:
        next(InProcess().run_tasks(job, [task], Resources()))
    check_grammar(str(caught.value))
    for fragment in fragments:
        assert fragment in str(caught.value)
