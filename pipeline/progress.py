"""Progress of a run on stderr: what was read, what is reused, what is computed, time left."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from pipeline.terminal import LINES

if TYPE_CHECKING:  # `assay --help` imports this module, and should not pay for pyarrow and NumPy.
    from pipeline.corpus import Corpus
    from pipeline.node import Node
    from pipeline.plan import Plan
    from storage.manifest import ShardRecord

SECONDS_BETWEEN_LINES = 10
UNITS = {"shard": "shards", "query": "blocks", "round": "rounds", "whole": "task"}


class Progress:
    """Hears how far long work is, and ignores it. `Screen` shows it; a test may keep it."""

    def say(self, text: str) -> None:
        """Hears a sentence that a person should read."""

    def planned(self, plan: "Plan") -> None:
        """Hears the plan of a run, before any of it is computed."""

    def reused(self, lines: Sequence[tuple[str, str]]) -> None:
        """Hears that a run has nothing to do, and the lines of its plan: text and style."""

    def started(self, node: "Node") -> None:
        """Hears that the tasks of a stage begin."""

    def advanced(self, node: "Node", records: "Sequence[ShardRecord]") -> None:
        """Hears that a task of the stage is finished, and the records of its shards."""

    def within(self, node: "Node", key: str, done: int, total: int) -> None:
        """Hears that `done` of `total` steps of the stage's task with this key are done."""

    def finished(self, node: "Node", seconds: float, notices: Sequence[str] = ()) -> None:
        """Hears that the stage's tables are whole, and the notices that its tasks recorded."""

    def stepped(self, name: str, done: int, total: int) -> None:
        """Hears that `done` of `total` steps of work outside a run are done; the first time 0."""

    def counted(self, name: str, done: int, total: int) -> None:
        """Hears that `done` of `total` rows of the sources are done; the first time 0."""


class Screen(Progress):
    """Progress for people, on stderr: bars on a terminal, lines elsewhere."""

    def __init__(self, opening: str | None = None) -> None:
        """Shows bars where stderr is a terminal, elsewhere a line per stage and every ten seconds.

        `opening` is a first line, printed when the screen is entered.
        """
        self._opening = opening
        self._console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.fields[done]:>7}/{task.total:.0f} {task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar: TaskID | None = None
        self._done = 0
        self._within: dict[str, float] = {}
        """The share that is done of each task at work whose stage says so, by the task's key."""
        self._begun = self._last_line = 0.0

    def __enter__(self) -> "Screen":
        if self._opening is not None:
            self.say(self._opening)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def planned(self, plan: "Plan") -> None:
        """Prints what was read, what was rejected, and how many tasks are to do and reused."""
        self.reused(plan_lines(plan))
        self._bars.start()

    def reused(self, lines: Sequence[tuple[str, str]]) -> None:
        """Prints the lines of a plan."""
        for text, style in lines:
            self.say(text, style=style)

    def started(self, node: "Node") -> None:
        """Puts a bar for the stage on the screen."""
        self._begin(node.instance, len(node.missing), _unit(node))

    def advanced(self, node: "Node", records: "Sequence[ShardRecord]") -> None:
        """Moves the bar by one task; without a terminal, prints a line every ten seconds."""
        for record in records:
            self._within.pop(record.key, None)
        self._advance(node.instance, len(node.missing), _unit(node))

    def within(self, node: "Node", key: str, done: int, total: int) -> None:
        """Moves the bar by a part of a task; without a terminal, prints a line as `advanced`."""
        if done < total:
            self._within[key] = done / total
            self._advance(node.instance, len(node.missing), _unit(node), 0)

    def finished(self, node: "Node", seconds: float, notices: Sequence[str] = ()) -> None:
        """Removes the bar and prints a line with the time, and one for each notice."""
        self._end()
        if node.missing:
            n, n_all = len(node.missing), len(node.tasks)
            what = f"{n} of {n_all} tasks" if n_all > 1 else "1 task"
            self.say(f"{node.instance}: {what} in {seconds:.1f} s")
        for notice in notices:
            self.say(f"{node.instance}: {notice}", style="yellow")

    def stepped(self, name: str, done: int, total: int) -> None:
        """Shows how many steps of work outside a run are done; the call with 0 starts it."""
        if done == 0:
            self._bars.start()
            self._begin(name, total, "steps")
            return
        self._advance(name, total, "steps")
        if done == total:
            self._end()
            self.say(
                f"{name}: {count_text(total, 'step')} in {time.monotonic() - self._begun:.1f} s"
            )

    def counted(self, name: str, done: int, total: int) -> None:
        """Shows how many rows are done; the call with 0 starts it, and that with all ends it."""
        if done == 0:
            self._bars.start()
            self._begin(name, total, "rows")
        elif done < total:
            self._advance(name, total, "rows", done - self._done)
        else:
            self._end()
            seconds = seconds_text(time.monotonic() - self._begun)
            self.say(f"{name}: {total:,} rows in {seconds}")

    def _begin(self, name: str, total: int, unit: str) -> None:
        self._done, self._within = 0, {}
        self._begun = self._last_line = time.monotonic()
        if total:
            self._bar = self._bars.add_task(name, total=total, done=0, unit=unit)

    def _advance(self, name: str, total: int, unit: str, steps: int = 1) -> None:
        self._done += steps
        done = self._done + sum(self._within.values())
        if self._within:
            unit = f"{unit}, {done / total:.0%}"
        if self._bar is not None:
            self._bars.update(self._bar, completed=done, done=self._done, unit=unit)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._begun) / done * (total - done) if done else None
            time_left = f", {seconds_text(left)} left" if left is not None else ""
            self.say(f"{name}: {self._done} of {total} {unit}{time_left}")

    def _end(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None

    def say(self, text: str, style: str = "dim") -> None:
        """Prints a line that stays."""
        self._console.print(Text(text.translate(LINES), style=style))


def plan_lines(plan: "Plan") -> list[tuple[str, str]]:
    """What a person should read of a plan, as lines of text, each with its style."""
    corpus = plan.corpus
    lines = [
        f"{count_text(corpus.rows('label', 'example'), 'example')} and "
        f"{count_text(corpus.rows('text', 'query'), 'query', 'queries')} in "
        f"{count_text(len(corpus.tables['text'].shards), 'shard')}, {_task_text(corpus)}"
    ]
    if unlabelled := corpus.unlabelled_queries:
        lines.append(
            f"{count_text(unlabelled, 'query has', 'queries have')} no label: values of examples "
            "are measured without them"
        )
    said = [(line, "dim") for line in lines]
    if rejected := corpus.tables["rejected"].rows:
        said.append(
            (
                f"{count_text(rejected, 'row')} could not be used; see the view `rejected` for the "
                "reasons",
                "yellow",
            )
        )
    tasks = sum(len(node.tasks) for node in plan.nodes)
    missing = sum(len(node.missing) for node in plan.nodes)
    names = " -> ".join(node.instance for node in plan.nodes)
    most = "at most " if any(n.missing and n.stop_rule() for n in plan.nodes) else ""
    said.append(
        (
            f"{names}: {most}{count_text(missing, 'task')} to do, "
            f"{tasks - missing} {'is' if tasks - missing == 1 else 'are'} done already",
            "dim",
        )
    )
    return said + [(note, "yellow") for note in plan.notes]


def _unit(node: "Node") -> str:
    """The noun for a stage's tasks; where it merges, some compute shards and some combine them."""
    from stages.capabilities import Merges

    unit = "tasks" if isinstance(node.stage, Merges) else UNITS[node.stage.split]
    return unit.removesuffix("s") if len(node.missing) == 1 else unit


def _task_text(corpus: "Corpus") -> str:
    """What the corpus teaches, such as the names of its classes."""
    if corpus.task == "classification":
        names = corpus.classes
        return f"{count_text(len(names), 'class', 'classes')}: {', '.join(names[:12])}"
    return {
        "regression": "targets of a regression",
        "completion": "texts to complete",
        "preference": "pairs of answers",
        "question_answering": "texts with questions",
    }[corpus.task]


def count_text(n: int, one: str, many: str | None = None) -> str:
    """A number of things in words, such as `1 task` and `2 tasks`."""
    return f"{n} {one if n == 1 else many or f'{one}s'}"


def seconds_text(seconds: float) -> str:
    """A time in words, such as `3 min`."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
