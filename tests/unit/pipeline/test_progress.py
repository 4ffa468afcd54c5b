import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline import progress as screen


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (42, "42 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_seconds_are_rounded_for_people(seconds, text):
    assert screen.seconds_text(seconds) == text


def test_progress_is_told_line_by_line_without_a_terminal(monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    shown = screen.Screen()
    shown._console = Console(file=io.StringIO(), width=100)
    tasks = tuple(range(8))
    node = SimpleNamespace(
        instance="ntk", missing=tasks, tasks=tasks, stage=SimpleNamespace(split="shard")
    )
    shown.started(node)
    for _ in range(4):
        shown.advanced(node, [])
    shown.finished(node, 22.0)
    told = shown._console.file.getvalue().splitlines()
    assert told == [
        "ntk: 2 of 8 shards, 33 s left",
        "ntk: 4 of 8 shards, 22 s left",
        "ntk: 8 of 8 tasks in 22.0 s",
    ]


def test_notices_are_shown_once_a_stage_is_finished():
    shown = screen.Screen()
    shown._console = Console(file=io.StringIO(), width=100)
    node = SimpleNamespace(
        instance="ntk", missing=(1,), tasks=(1,), stage=SimpleNamespace(split="shard")
    )
    shown.finished(node, 1.0, ["a batch of 32 rows did not fit in memory; halved (in 3 tasks)"])
    assert shown._console.file.getvalue().splitlines() == [
        "ntk: 1 task in 1.0 s",
        "ntk: a batch of 32 rows did not fit in memory; halved (in 3 tasks)",
    ]


@pytest.mark.parametrize(("rule", "count"), [(None, "3 tasks"), ("a rule", "at most 3 tasks")])
def test_rounds_that_a_rule_may_not_need_are_called_the_most(rule, count):
    shown = screen.Screen()
    shown._console = Console(file=io.StringIO(), width=100)
    tables = {"text": SimpleNamespace(shards=[1]), "rejected": SimpleNamespace(rows=0)}
    corpus = SimpleNamespace(
        rows=lambda table, role: 5, tables=tables, unlabelled_queries=0, task="completion"
    )
    node = SimpleNamespace(
        instance="freeshap", tasks=range(4), missing=range(3), stop_rule=lambda: rule
    )
    shown.planned(SimpleNamespace(corpus=corpus, nodes=[node], notes=()))
    told = shown._console.file.getvalue().splitlines()
    assert told[1] == f"freeshap: {count} to do, 1 is done already"


def test_parts_of_a_long_task_are_told(monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 22.0, 33.0])
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    shown = screen.Screen()
    shown._console = Console(file=io.StringIO(), width=100)
    node = SimpleNamespace(
        instance="ig", missing=(1, 2), tasks=(1, 2), stage=SimpleNamespace(split="query")
    )
    shown.started(node)
    shown.within(node, "first", 0, 4)
    shown.within(node, "first", 1, 4)
    shown.within(node, "first", 4, 4)
    shown.advanced(node, [SimpleNamespace(key="first")])
    shown.within(node, "second", 1, 2)
    told = shown._console.file.getvalue().splitlines()
    assert told == [
        "ig: 0 of 2 blocks, 12%, 77 s left",
        "ig: 1 of 2 blocks, 22 s left",
        "ig: 1 of 2 blocks, 75%, 11 s left",
    ]


def test_control_characters_of_a_label_are_shown_and_never_sent():
    shown = screen.Screen()
    shown._console = Console(file=io.StringIO(), width=100)
    shown.say("2 classes: a\x1b[2Jb, \x9bc")
    assert shown._console.file.getvalue() == "2 classes: a␛[2Jb, \\x9bc\n"
