"""Stages that explanations and pages advise are planned on every corpus that they are named for."""

import dataclasses
import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from plans import Raw, corpus, plan

from pipeline.corpus import Corpus
from pipeline.errors import RunError
from pipeline.explain.explanation import explain
from pipeline.explain.interactive import interactive
from pipeline.explain.lacking import OF_VECTORS, PAIRWISE, advice
from pipeline.page.missing import LACKING, VECTORS
from pipeline.progress import Progress

HEADS = {"completion": "completion", "preference": "completion", "question_answering": "span"}
ADVISED = [
    *((task, f"{stage}: {{}}") for task, stage in PAIRWISE.items()),
    *((task, stage) for _, _, tasks, stage in LACKING for task in tasks),
]


@pytest.mark.parametrize(("task", "stage"), dict.fromkeys(ADVISED))
def test_what_is_advised_is_planned(raw: Raw, task: str, stage: str) -> None:
    raw["corpus"]["task"] = task
    raw["model"]["head"] = HEADS.get(task, "probe")
    over = corpus(task=task, classes=["a", "b"] if task == "classification" else [])
    assert plan({**raw, "stages": yaml.safe_load(stage)}, over).nodes


@pytest.mark.parametrize("stages", VECTORS.values())
def test_of_vectors_it_needs_no_model(raw: Raw, stages: tuple[str, ...]) -> None:
    del raw["model"]
    raw["corpus"] = {"path": "rows.csv", "features": "vectors.npy", "text": None}
    tables = corpus().tables
    facts = dataclasses.replace(tables["text"], details={"has_text": False})
    over = Corpus({**tables, "text": facts})
    assert plan({**raw, "stages": yaml.safe_load("\n".join(stages))}, over).nodes


def asked(task: str, n_queries: int = 1, has_text: bool = True) -> Any:
    return SimpleNamespace(
        task=lambda: task,
        facts=lambda table: {"has_text": has_text},
        sql=lambda _: SimpleNamespace(fetchall=lambda: [(n_queries > 0,)]),
    )


def test_the_cheapest_is_advised_and_queries_where_there_are_none() -> None:
    assert "Add `bm25: {}` under `stages:` and run again" in advice(asked("completion"))
    told = advice(asked("question_answering", n_queries=0))
    assert "`bm25: {}` under `stages:`, and `queries:` for it, and run" in told
    told = advice(asked("classification", has_text=False))
    assert f"such as similarity. Add `{OF_VECTORS}`" in told


def test_what_no_run_over_a_corpus_explains_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given: Any = {"query": None, "text": None, "text_b": None, "methods": (), "top": 1}
    with pytest.raises(RunError, match="task: classification, expected completion"):
        explain(asked("classification"), **given, progress=Progress(), prompt="a")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n"))
    with pytest.raises(RunError, match="in a corpus of preferences"):
        interactive(asked("preference"), (), 1, 1, is_json=False)
