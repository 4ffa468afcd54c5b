"""What went wrong with a task or a call, in words: its stage and part, and what to do."""

import dataclasses
from typing import Any

from pipeline.errors import TaskError, told
from pipeline.node import Task
from pipeline.task import Call
from stages.stage import StageError
from storage.schema import StorageError


def name_of(job: Any, task: Task | Call) -> str:
    """The stage of a task, or what a call is for."""
    return task.name if isinstance(task, Call) else str(job.instance)


def _place(job: Any, task: Task | Call) -> str:
    """The stage and part of a task, in words."""
    if isinstance(task, Call):
        return f"{task.name}, part {task.key}"
    part = task.part
    place = {
        "shard": f"{part.role} shard {part.index}",
        "query": f"query block {part.index}",
        "round": f"round {part.index}",
        "whole": "whole table",
    }[job.stage.split]
    if task.parts:
        place = f"merge {part.index} of level {task.level}"
    return f"{job.instance}, {place}"


def failed(job: Any, task: Task | Call, error: BaseException) -> Exception:
    """The error of a failed task, which names its stage and part; a call's own if it tells."""
    if isinstance(task, Call) and isinstance(error, StageError | StorageError):
        return error
    said = told(error) or f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return TaskError(
            f"{_place(job, task)}: found too little memory ({said}), expected room for the task. "
            + _smaller(job, task)
        )
    return TaskError(f"{_place(job, task)}: {said}")


def lost(job: Any, task: Task | Call, times: int, error: BaseException) -> TaskError:
    """The error of a task whose worker was lost each time."""
    is_memory = "memory" in f"{type(error).__name__} {line_of(error)}".lower()
    return TaskError(
        f"{_place(job, task)}: found that its worker was "
        + (f"killed for memory {times} times" if is_memory else f"lost {times} times")
        + f" ({line_of(error)}), expected it to finish. "
        + ("" if is_memory else "Most often the memory was too small, see the kernel's log. ")
        + _smaller(job, task)
    )


def _smaller(job: Any, task: Task | Call) -> str:
    """What to change where tasks need more memory than there is."""
    if isinstance(task, Call):
        return (
            "Give each worker more: set ray.default.memory_gb to what one needs, so that fewer "
            "work at once, or lower its workers."
        )
    fields = {f.name for f in dataclasses.fields(job.stage)}
    budget = f"lower stages.{job.instance}.token_budget, or " if "token_budget" in fields else ""
    advice = (
        f"{budget}give each worker more: set ray.stages.{job.instance}.memory_gb to what one "
        "needs, so that fewer work at once, or lower its workers; `assay plan` estimates a task's "
        "memory."
    )
    return advice[0].upper() + advice[1:]


def line_of(error: BaseException) -> str:
    """What Ray says of an error, in one line.

    The last of its lines tells the reason, but where memory is: there it is advice.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    at = next((n for n, line in enumerate(lines) if "low on memory" in line), -1)
    return " ".join(lines[at:][:1])[:300] or type(error).__name__
