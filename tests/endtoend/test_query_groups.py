"""Queries of several tasks, each of which has the same say in what is chosen."""

import random
from pathlib import Path
from typing import Any

import pytest
from runs import write_lines
from tiny_models import word_model

from pipeline.api import expected, plan, run
from pipeline.errors import ConfigFileError

WORDS = "red blue green dog cat bird tree stone river hill".split()
TASKS = ["sums", "sums", "verbs", None, "sums", "", "sums"]
"""Of the queries; sums are most of them, and two have none."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place: Path = tmp_path_factory.mktemp("groups")
    draw = random.Random(0)
    rows = [
        {"prompt": " ".join(draw.sample(WORDS, 3)), "completion": " " + draw.choice(WORDS)}
        for _ in range(48)
    ]
    queries = [{**row, "task": task} for row, task in zip(rows[::7], TASKS, strict=True)]
    return {
        "run": str(place / "run"),
        "model": {"path": str(word_model(place / "model", WORDS)), "head": "completion"},
        "corpus": {"path": write_lines(place / "rows.jsonl", rows), "task": "completion"},
        "queries": {"path": write_lines(place / "queries.jsonl", queries)},
        "ray": {"engine": "in_process"},
        "stages": {
            "query_relevance": {"per": "task", "share": 0.375},
            "alike": {"stage": "query_relevance"},
            "selection_trial": {
                **{"per": "task", "steps": 1, "batch_size": 2, "draws": 1},
                **{"issues": None, "duplicates": None},
            },
        },
    }


def test_each_task_takes_as_many_rows(raw: dict[str, Any]) -> None:
    done = run(raw)
    counts = (
        "SELECT q.task, count(*) FROM query_relevance AS r JOIN queries AS q ON "
        "q.query_id = r.query_id WHERE is_taken AND r.method = {} GROUP BY ALL ORDER BY ALL"
    )
    taken = dict(done.sql(counts.format("'query_relevance'")).fetchall())
    assert taken == {"sums": 6, "verbs": 6, "": 3, None: 3}
    # The trial is told of the choice that it tried, and of no other.
    (trial,) = expected(done, keep="20%", method="query_relevance")["trials"]
    assert trial["per"] == "task"
    assert expected(done, keep="20%", method="alike")["trials"] == []


def test_what_the_queries_lack_is_refused_before_anything_is_computed(
    raw: dict[str, Any],
) -> None:
    for name, column in (("query_relevance", "Task"), ("selection_trial", "prompt")):
        stages = {"a": {"stage": name, "per": column}}
        with pytest.raises(ConfigFileError, match=r"stages.a: found per: .*: task\. Correct"):
            plan({**raw, "stages": stages})
    one = {"queries": {**raw["queries"], "split": "train[:1]"}, "stages": {"selection_trial": {}}}
    with pytest.raises(ConfigFileError, match="selection_trial: found 1 query, expected at least"):
        plan({**raw, **one})
    stages = {"selection_trial": {"by": "answer_issues", "per": "task"}}
    with pytest.raises(ConfigFileError, match=r"found per: task with by: answer_issues"):
        plan({**raw, "stages": stages})
