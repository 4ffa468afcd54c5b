"""What may be wrong with rows beside their labels: the view `issues`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import write_lines, write_run

from pipeline.api import datalab
from pipeline.errors import RunError
from pipeline.open_run import open_run
from pipeline.page.cautions import cautions
from pipeline.page.subject import Subject
from pipeline.page.twins import twins

EXAMPLES = [
    (10, "A good film", "good"),
    (11, " a  GOOD film ", "good"),
    (12, "a bad film", "bad"),
    (13, "a bad film", "good"),
    (14, "a bad film", "bad"),
    (15, "?! ...", "bad"),
    (16, "asked of, too", "good"),
    (17, "日本", "rare"),
    *((number, f"film number {number}", "good") for number in range(20, 60)),
]
QUERIES = [(1, "Asked of,\ttoo", "bad"), (2, "never seen", "good"), (3, "never seen", "good")]


def test_every_issue_of_a_row_is_listed(tmp_path: Path, assay: Any) -> None:
    def source(name: str, rows: list[tuple[int, str, str]]) -> dict[str, Any]:
        lines = [dict(zip(("id", "text", "label"), row, strict=True)) for row in rows]
        return {"path": write_lines(tmp_path / name, lines), "id": "id"}

    config = write_run(
        tmp_path,
        corpus=source("rows.jsonl", EXAMPLES),
        queries=source("queries.jsonl", QUERIES),
        stages={"bm25": {}},
        shard_size=7,
    )
    assay("run", config)
    found = open_run(tmp_path / "run").sql(
        "SELECT example_id, issue, other_id, other_role FROM issues ORDER BY ALL"
    )
    assert found.fetchall() == [
        (10, "duplicate", 11, "example"),
        (11, "duplicate", 10, "example"),
        (12, "duplicate with another label", 13, "example"),
        (13, "duplicate with another label", 12, "example"),
        (14, "duplicate with another label", 13, "example"),
        (15, "no words", None, None),
        (16, "also a query", 1, "query"),
        (17, "rare class", None, None),
    ]


NEARLY = [
    (1, "a rather good film about two brothers and the sea", "good"),
    (2, "A rather good film about two brothers, and the sea!", "good"),
    (3, "a rather good film about two sisters and the sea", "bad"),
    (4, "a rather good film about two sisters and  the sea", "good"),
    (5, "the same plot as in every other film of this director", "bad"),
    (6, "the same plot as in every other film by this director", "bad"),
    (7, "nothing like any of the other texts that are here", "bad"),
    (8, "who would have thought that it could end so well", "good"),
    (9, "asked in the very same words, without any change", "bad"),
]
ASKED = [
    (1, "who would have thought that it could end as well", "good"),
    (2, "asked in the very same words, without any change", "good"),
]


def test_near_duplicates_are_issues_once_their_stage_has_run(tmp_path: Path, assay: Any) -> None:
    def source(name: str, rows: list[tuple[int, str, str]]) -> dict[str, Any]:
        lines = [dict(zip(("id", "text", "label"), row, strict=True)) for row in rows]
        return {"path": write_lines(tmp_path / name, lines), "id": "id"}

    config = write_run(
        tmp_path,
        corpus=source("rows.jsonl", NEARLY),
        queries=source("queries.jsonl", ASKED),
        stages={"near_duplicates": {}},
        shard_size=4,
    )
    assay("run", config)
    run = open_run(tmp_path / "run")
    found = run.sql("SELECT example_id, issue, other_id, other_role FROM issues ORDER BY ALL")
    assert found.fetchall() == [
        (1, "near duplicate with another label", 3, "example"),
        (2, "near duplicate with another label", 3, "example"),
        (3, "duplicate with another label", 4, "example"),
        (4, "duplicate with another label", 3, "example"),
        (5, "near duplicate", 6, "example"),
        (6, "near duplicate", 5, "example"),
        (8, "near a query", 1, "query"),
        (9, "also a query", 2, "query"),
    ]
    clusters = run.sql("SELECT example_id, cluster FROM near_duplicates ORDER BY ALL").fetchall()
    assert clusters == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 5), (6, 5), (8, 8), (9, 9)]
    shown = twins(Subject(run))
    assert shown is not None
    assert [[row["example_id"] for row in group] for group in shown.groups] == [
        [1, 2, 3, 4],
        [5, 6],
    ]
    assert [(row["label"], row["other_label"]) for row in shown.pairs] == [
        ("good", "bad"),
        ("good", "bad"),
        ("bad", "good"),
    ]


def test_outliers_and_texts_that_are_cut_are_issues_once_their_stages_have_run(
    tmp_path: Path, assay: Any, encoder_folder: Path
) -> None:
    lines = [{"id": n, "text": "good film " * (1 + n % 5), "label": "good"} for n in range(40)]
    lines.append({"id": 90, "text": "bad", "label": "bad"})
    config = write_run(
        tmp_path,
        model={"path": str(encoder_folder), "max_length": 8},
        corpus={"path": write_lines(tmp_path / "rows.jsonl", lines), "id": "id"},
        stages={"outliers": {"fence": 0.0}, "text_length": {}},
    )
    assay("run", config)
    run = open_run(tmp_path / "run")

    def ids(sql: str) -> list[int]:
        return [row for (row,) in run.sql(f"{sql} ORDER BY 1").fetchall()]

    is_cut = ids("SELECT example_id FROM issues WHERE issue = 'longer than max_length'")
    # Two words a turn, beside [CLS] and [SEP].
    assert is_cut == [n for n in range(40) if 2 * (1 + n % 5) + 2 > 8]
    is_outlier = ids("SELECT example_id FROM issues WHERE issue = 'outlier'")
    assert is_outlier == ids("SELECT example_id FROM outliers WHERE outlier_score < 0.5")
    assert 0 < len(is_outlier) < 20


def test_a_row_that_a_review_dropped_has_no_issue(
    tmp_path: Path, assay: Any, encoder_folder: Path
) -> None:
    english = "the story of this film number {} is told with a lot of good and bad jokes"
    lines = [{"id": n, "text": english.format(n), "label": "good"} for n in range(60)]
    german = "Die Handlung dieses Films ist leider weder besonders neu noch wirklich spannend"
    lines += [
        {"id": 90, "text": f"{german}. " * 4, "label": "bad"},
        *({"id": n, "text": word, "label": "bad"} for n, word in ((91, "bad"), (92, "dull"))),
    ]
    config = write_run(
        tmp_path,
        model={"path": str(encoder_folder), "max_length": 32},
        corpus={"path": write_lines(tmp_path / "rows.jsonl", lines), "id": "id"},
        stages={"outliers": {"fence": 0.0}, "text_length": {}, "language": {}},
    )
    assay("run", config)
    asked = "SELECT issue, example_id FROM issues WHERE issue <> 'rare class' ORDER BY ALL"
    before = open_run(tmp_path / "run").sql(asked).fetchall()
    assert {("another language", 90), ("longer than max_length", 90)} <= set(before)
    assert {("outlier", 91), ("outlier", 92)} <= set(before)
    review = tmp_path / "review.csv"
    review.write_text("example_id,decision\n90,drop\n91,drop\n")
    assay("apply", tmp_path / "run", review, "--to", tmp_path / "new")
    run = open_run(tmp_path / "new")
    after = run.sql(asked).fetchall()
    assert after == [row for row in before if row[1] not in (90, 91)]
    found = twins(Subject(run))
    assert found is not None
    assert found.outliers is not None
    assert len(found.far) == 10
    assert not {row["example_id"] for row in found.far} & {90, 91}
    assert not [said for said in cautions(Subject(run)).found if "longer than the" in said.say]


def test_findings_in_the_columns_of_datalab(tmp_path: Path, assay: Any) -> None:
    rng = np.random.default_rng(0)
    kinds = np.arange(60) % 2
    vectors = rng.normal(size=(60, 4)) + 6 * np.stack([kinds, 1 - kinds, 0 * kinds, 0 * kinds], 1)
    vectors[7] = [0, 0, -60, 0]
    np.save(tmp_path / "v.npy", vectors.astype(np.float32))
    given = [["a", "b"][kind] for kind in kinds]
    given[4], given[9] = "b", "rare"
    texts = [" ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 40)) for _ in given]
    texts[21] = texts[20][:-1] + "!"
    texts[23] = texts[20]
    rows = [{"id": f"r{at}", "text": texts[at], "label": label} for at, label in enumerate(given)]
    corpus = {"path": write_lines(tmp_path / "c.jsonl", rows), "id": "id", "features": "v.npy"}
    stages: dict[str, Any] = {
        "kernel_regression": {"kernel": ["features"]},
        "label_issues": {},
        "outliers": {"features": "features"},
        "again": {"stage": "outliers", "features": "features", "fence": 3.0},
        "near_duplicates": {},
    }
    assay("run", write_run(tmp_path, corpus=corpus, stages=stages))
    run = open_run(tmp_path / "run")
    found = datalab(run, ["outliers"]).df().set_index("source_id")
    assert found.index.tolist() == [row["id"] for row in rows]
    assert found.columns.tolist() == [
        "example_id",
        *("is_label_issue", "label_score", "given_label", "predicted_label"),
        *("is_outlier_issue", "outlier_score"),
        *("is_near_duplicate_issue", "near_duplicate_score", "near_duplicate_sets"),
        "distance_to_nearest_neighbor",
        *("is_class_imbalance_issue", "class_imbalance_score"),
    ]
    assert found["given_label"].tolist() == given
    assert found.loc["r4", ["is_label_issue", "predicted_label"]].tolist() == [True, "a"]
    scores = dict(run.sql("SELECT example_id, label_score FROM label_issues").fetchall())
    assert found.set_index("example_id")["label_score"].to_dict() == scores
    assert found.index[found["is_outlier_issue"]].tolist() == ["r7"]
    assert found["outlier_score"].idxmin() == "r7"
    near = found[found["is_near_duplicate_issue"]]
    assert near.index.tolist() == ["r20", "r21", "r23"]
    ids = near["example_id"].tolist()
    for at, others in enumerate(near["near_duplicate_sets"]):
        assert sorted(others) == sorted(ids[:at] + ids[at + 1 :])
    assert near["near_duplicate_score"].tolist() == near["distance_to_nearest_neighbor"].tolist()
    assert near.loc["r23", "near_duplicate_score"] == 0
    assert set(found["near_duplicate_score"].drop(near.index)) == {1.0}
    rare = found[found["is_class_imbalance_issue"]]
    assert rare["class_imbalance_score"].to_dict() == {"r9": 1 / 60}
    # Of several instances none is taken without being asked for.
    with pytest.raises(RunError, match="expected one of again, outliers"):
        datalab(run)
    with pytest.raises(RunError, match=r"found the method outlier \(did you mean outliers\?\)"):
        datalab(run, ["again", "outlier"])


PROMPTS = ("How far is it?", " how  far\nis it?", "How far is that?", "", "How far is it ?")
ANSWERS = ("Two miles", "two  MILES ", "Three miles", "")


def bare(text: str) -> str:
    return " ".join(text.lower().split())


def several_answers(rows: list[tuple[str, str]]) -> list[tuple[int, int, int]]:
    """The definition: row, the first row with its prompt and another answer, how many answers."""
    found = []
    for at, (prompt, answer) in enumerate(rows):
        same = [i for i, row in enumerate(rows) if bare(row[0]) == bare(prompt) != ""]
        others = [i for i in same if bare(rows[i][1]) != bare(answer)]
        if others:
            found.append((at, others[0], len({bare(rows[i][1]) for i in same})))
    return found


OTHERS = (
    "SELECT example_id, other_id, n_answers FROM issues "
    "WHERE issue = 'same prompt with another answer' ORDER BY ALL"
)


@pytest.mark.parametrize("form", ["prompt_completion", "messages"])
def test_prompts_with_several_answers(form: str, tmp_path: Path, assay: Any) -> None:
    draw = np.random.default_rng(0)
    rows = [(str(draw.choice(PROMPTS)), str(draw.choice(ANSWERS[:3]))) for _ in range(15)]
    rows += [(f"asked once {at}", "Two miles") for at in range(3)]
    if form == "prompt_completion":
        lines = [{"id": i, "prompt": p, "completion": a} for i, (p, a) in enumerate(rows)]
    else:
        lines = [
            {
                "id": i,
                "messages": [
                    {"role": "user", "content": p},
                    {"role": "assistant", "content": a},
                ],
            }
            for i, (p, a) in enumerate(rows)
        ]
    corpus = {"path": write_lines(tmp_path / "c.jsonl", lines), "id": "id", "task": "completion"}
    assay("run", write_run(tmp_path, corpus=corpus, stages={"near_duplicates": {}}, shard_size=4))
    found = open_run(tmp_path / "run").sql(OTHERS).fetchall()
    assert found == several_answers(rows)
    assert len(found) > 8


def test_what_is_said_and_called_before_an_answer_is_its_prompt(tmp_path: Path, assay: Any) -> None:
    def call(city: str) -> dict[str, Any]:
        function = {"name": "weather", "arguments": {"city": city}}
        calls = [{"type": "function", "function": function}]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    def said(role: str, content: str) -> dict[str, Any]:
        return {"role": role, "content": content}

    asked, rain, sun = (
        said("user", "Is it raining?"),
        said("assistant", "It is."),
        said("assistant", "No."),
    )
    tools = [{"type": "function", "function": {"name": "weather"}}]
    conversations: list[tuple[list[dict[str, Any]], Any]] = [
        ([asked, rain], None),
        ([said("system", "Be brief."), asked, sun], None),
        ([asked, call("Oslo")], tools),
        ([asked, call("Rome")], tools),
        ([asked, call("Oslo"), said("tool", "wet"), rain], tools),
        ([asked, call("Rome"), said("tool", "wet"), sun], tools),
        ([asked, rain, asked, sun], None),
        # Not learned: the answer is the one before it.
        ([asked, sun, asked, {**sun, "train": False}], None),
    ]
    lines = [{"id": i, "messages": m, "tools": t} for i, (m, t) in enumerate(conversations)]
    corpus = {"path": write_lines(tmp_path / "c.jsonl", lines), "id": "id", "task": "completion"}
    assay("run", write_run(tmp_path, corpus=corpus, stages={"near_duplicates": {}}))
    found = open_run(tmp_path / "run").sql(OTHERS).fetchall()
    assert found == [(0, 7, 2), (2, 3, 2), (3, 2, 2), (7, 0, 2)]
