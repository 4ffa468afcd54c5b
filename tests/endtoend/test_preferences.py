"""Preference pairs from the file to flags, a reviewed corpus, and the choice of pairs."""

import csv
import json
import os
import random
from math import exp, log
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import pytest
from desks import Desk, lines
from pages import Page
from runs import assay, complaint, write_lines
from tiny_models import word_model

from pipeline import cli
from pipeline.api import expected, flag, open_run, select
from pipeline.errors import RunError
from pipeline.handover.answered import review_of
from pipeline.main_results import summarize
from pipeline.page.overview import overview
from pipeline.page.report import report_page
from pipeline.page.subject import Subject
from stages.ranking.middle import by_middle

WORDS = "red blue green the house sky sea is of what colour and has a long road near town".split()
N = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose better answer is the longer one; every sixth lies the wrong way round."""
    place = tmp_path_factory.mktemp("preferences")
    draw = random.Random(0)
    rows = []
    for i in range(N):
        both = [" " + " ".join(draw.choices(WORDS, k=k + draw.randrange(3))) for k in (10, 3)]
        chosen, rejected = both[::-1] if i % 6 == 5 else both
        prompt = " ".join(["what", "is", *draw.sample(WORDS, 3), "?"])
        row = {"id": f"p{i}", "prompt": prompt, "chosen": chosen, "rejected": rejected}
        rows.append({**row, "score_chosen": i, "source": ["web", "book", None][i % 3]})
    odd = [
        {**rows[0], "id": "same", "rejected": rows[0]["chosen"]},
        {**rows[0], "id": "empty", "rejected": " "},
        {**rows[0], "id": "long", "prompt": " ".join(draw.choices(WORDS, k=40))},
    ]
    raw = {
        "run": "run",
        "model": {
            "path": str(word_model(place / "model", [*WORDS, "?"], n_positions=32)),
            "head": "completion",
            "max_length": 32,
        },
        "corpus": {"path": write_lines(place / "rows.jsonl", [*rows, *odd]), "task": "preference"},
        "queries": {"path": write_lines(place / "queries.jsonl", rows[:4])},
        "ray": {"engine": "in_process"},
        "stages": {
            "preference_issues": {},
            "gradient": {"projection": {"dim": 64}},
            "tracin": {"top_k": None},
            "text_length": {},
            "near_duplicates": {},
            "selection_trial": {
                "by": "middle",
                "influence": "tracin",
                "steps": 2,
                "batch_size": 4,
                "draws": 1,
            },
        },
    }
    for name in ("corpus", "queries"):
        raw[name]["id"] = "id"
    (place / "run.yaml").write_text(json.dumps(raw))
    return place


@pytest.fixture(scope="module")
def ran(folder: Path) -> Any:
    place, before = folder / "run", Path.cwd()
    os.chdir(folder)
    try:
        said = assay("run", folder / "run.yaml")
    finally:
        os.chdir(before)
    return open_run(place), said


def test_rows_that_are_no_pairs_are_rejected_and_cuts_are_told(ran: Any) -> None:
    run, said = ran
    rejected = run.sql("SELECT source_id, reason FROM rejected ORDER BY 1").fetchall()
    assert rejected == [("empty", "empty rejected"), ("same", "chosen and rejected are the same")]
    assert "1 loses all of the answer" in " ".join(said.stderr.split())
    cut = run.sql(
        "SELECT source_id FROM answer_margins JOIN examples ON id = example_id AND "
        "role = 'example' WHERE loss IS NULL"
    ).fetchall()
    assert cut == [("long",)]
    status = run.sql("SELECT status, count(*) FROM diagnostics GROUP BY ALL ORDER BY 1").fetchall()
    assert status == [("no target", 1), ("ok", N + 4)]
    longest = run.sql("SELECT max(n_tokens) FROM text_lengths").fetchall()
    assert longest[0][0] > 32


def test_wrong_orders_are_flagged(ran: Any) -> None:
    run, said = ran
    rows = flag(run).df()
    names = ["example_id", "source_id", "prompt", "chosen", "rejected", "reason", "p_wrong"]
    assert list(rows.columns[:7]) == names
    found = set(rows["source_id"])
    wrong = {f"p{i}" for i in range(N) if i % 6 == 5}
    assert len(found & wrong) >= 7
    assert len(found - wrong) <= 1
    assert "Most suspicious pairs" in said.stdout
    # A pair without a margin is none of those that were judged.
    assert f"{len(rows)} of {N} pairs are flagged" in said.stdout
    assert overview(Subject(run)).headline.startswith(f"{len(rows)} of {N} orders")
    assert len(flag(run, top=100).df()) == N
    read = run.sql("SELECT prompt, chosen, rejected FROM preferences WHERE role = 'query'")
    queries = run.sql("SELECT prompt, chosen, rejected FROM queries").fetchall()
    assert sorted(read.fetchall()) == sorted(queries)


def test_a_trial_says_what_chosen_pairs_train(ran: Any) -> None:
    run, said = ran
    (trial,) = expected(run, keep="20%")["trials"]
    rows = {row["trained_on"]: row for row in trial["rows"]}
    assert list(rows) == ["chosen", "random", "all", "nothing"]
    assert (rows["nothing"]["loss"], rows["nothing"]["accuracy"]) == (pytest.approx(log(2)), 0.5)
    margins = run.sql("FROM trial_margins JOIN selection_trial USING (trained_on, draw, query_id)")
    for row in margins.df().itertuples():
        assert row.loss == pytest.approx(log(1 + exp(-row.margin)))
    for text in (said.stdout, assay("select", run.folder.path, "--keep", "20%").stderr):
        assert "rows chosen by middle" in text
        assert "orders learned" in text
        assert f"{trial['gain']:+.3f} of the loss of DPO" in text
    # What the trial orders pairs by is what select orders them by.
    scores, margins = (
        run.sql(f"FROM tables.{name} WHERE method = '{name_of}'").to_arrow_table()
        for name, name_of in (("attribution", "tracin"), ("answer_margin", "answer_margin"))
    )
    margins = margins.filter(pc.equal(margins["role"], "example"))
    ids = margins["id"].to_numpy()
    order = by_middle(margins, scores, ids, np.zeros(0, np.int64)).tolist()
    every = [row[0] for row in select(run, keep=N, keep_flagged=True).fetchall()]
    assert every == order[:N]


def test_a_set_of_pairs_is_told_as_people_read_it(ran: Any, capsys: Any) -> None:
    run, _ = ran
    ids = [row[0] for row in run.sql("SELECT query_id FROM queries LIMIT 3").fetchall()]
    found = run.explain(queries=ids, top=2)
    listed = [row for side in ("harmful", "helpful") for row in found["methods"][0][side]]
    said = {
        (row[0], f"{row[1].strip()}, not {row[2].strip()}")
        for row in run.sql("SELECT prompt, chosen, rejected FROM preferences").fetchall()
    }
    assert listed
    assert {(row["prompt"], row["answer"]) for row in [*listed, *found["queries"]]} <= said
    found.show()
    printed = capsys.readouterr().out
    assert listed[0]["prompt"][:20] in printed
    assert '"role"' not in printed


def test_pairs_are_chosen_from_the_middle_without_flagged_ones(ran: Any) -> None:
    run, _ = ran
    flagged = {row[0] for row in flag(run).fetchall()}
    every = select(run, keep=N).fetchall()
    shown = ["example_id", "source_id", "prompt", "chosen", "rejected", "value", "rank"]
    assert select(run, keep=N).columns == shown
    assert not flagged & {row[0] for row in every}
    assert len(every) == N - len(flagged)
    margins = dict(
        run.sql(
            "SELECT id, mean_margin FROM answer_margins WHERE role = 'example' AND loss IS NOT NULL"
        ).fetchall()
    )
    sums: dict[int, float] = {}
    for key, score in run.sql(
        "SELECT example_id, score FROM attributions WHERE method = 'tracin'"
    ).fetchall():
        sums[key] = sums.get(key, 0.0) + score

    def places(values: dict[int, float]) -> dict[int, float]:
        order = sorted(values, key=values.__getitem__)
        return {key: at / (len(order) - 1) for at, key in enumerate(order)}

    by = {"margin": places(margins), "influence": places(sums)}
    off = {name: {key: abs(at - 0.5) for key, at in own.items()} for name, own in by.items()}
    off["middle"] = {key: (off["margin"][key] + off["influence"][key]) / 2 for key in margins}
    for name, own in off.items():
        chosen = [row[0] for row in select(run, keep=12, by=name).fetchall()]
        expected = sorted((key for key in own if key not in flagged), key=lambda k: (own[k], k))
        assert chosen == expected[:12]
    assert [row[0] for row in every][:12] == [
        row[0] for row in select(run, keep=12, by="middle").fetchall()
    ]
    by_flags = [row[0] for row in select(run, keep=5, by="preference_issues").fetchall()]
    wrong = dict(run.sql("SELECT example_id, p_wrong FROM preference_issues").fetchall())
    assert [wrong[i] for i in by_flags] == sorted(wrong.values())[:5]
    kept = select(run, keep="200 tokens", by="margin").fetchall()
    assert 0 < len(kept) < N - len(flagged)
    with pytest.raises(RunError, match="found by='coarse'"):
        select(run, keep=5, by="coarse")


def test_a_review_turns_pairs_around_in_the_columns_of_the_source(
    ran: Any, folder: Path, tmp_path: Path
) -> None:
    run, _ = ran
    review, out = tmp_path / "review.csv", tmp_path / "out.jsonl"
    assay("flag", run.folder.path, "--review", review)
    with review.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["source_id", "decision", "prompt", "chosen", "rejected", "reason"]
    decisions = ["fix", "drop", *["accept"] * (len(rows) - 2)]
    with review.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {**row, "decision": what} for row, what in zip(rows, decisions, strict=True)
        )
    done = assay("apply", run.folder.path, review, "--to", tmp_path / "corrected", "--out", out)
    assert "Where answers changed places, score_chosen did not" in " ".join(done.stdout.split())
    before = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    expected = {row["id"]: row for row in before if row["id"] not in ("same", "empty")}
    fixed, dropped = rows[0]["source_id"], rows[1]["source_id"]
    del expected[dropped]
    row = expected[fixed]
    expected[fixed] = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    assert [json.loads(line) for line in out.read_text().splitlines()] == list(expected.values())
    corrected = open_run(tmp_path / "corrected")
    told = corrected.sql(
        "SELECT preferences.chosen FROM preferences JOIN examples ON id = example_id AND "
        f"role = 'example' WHERE source_id = '{fixed}'"
    ).fetchall()
    assert told == [(row["rejected"],)]
    judged = corrected.sql("SELECT count(*) FROM preference_issues").fetchall()
    assert judged == [(N - 1,)]
    corrected.write_corpus(tmp_path / "hub", run)
    told_of = {
        name: datasets.load_dataset(
            str(tmp_path / "hub"), name, split="train", cache_dir=str(tmp_path / "cache")
        )
        for name in ("corrected", "removed", "rejected")
    }
    (changed,), (removed,) = told_of["corrected"], told_of["removed"]
    assert (changed["id"], changed["chosen"]) == (fixed, row["rejected"])
    assert changed["label_before"] == "in the other order"
    assert (removed["id"], removed["reason"]) == (dropped, "dropped in a review")
    assert len(told_of["rejected"]) == 2


def test_pairs_are_explained_as_people_read_them(ran: Any) -> None:
    run, _ = ran
    said = assay("explain", run.folder.path, "--query", "p1", "--top", "2").stdout
    ((prompt, chosen, rejected),) = run.sql(
        "SELECT p.prompt, p.chosen, p.rejected FROM preferences AS p JOIN queries ON id = query_id "
        "AND role = 'query' WHERE source_id = 'p1'"
    ).fetchall()
    assert f"{prompt} | {chosen.strip()}, not {rejected.strip()}" in said
    assert '{"chosen"' not in said
    assert "expected a query of the run" in complaint("explain", run.folder.path, "--text", "a")


def test_stages_of_single_answers_refuse_pairs(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "run.yaml").read_text()) | {"run": str(tmp_path / "run")}
    path = folder / "other.yaml"
    for stage in ("answer_issues", "continuation"):
        path.write_text(json.dumps(raw | {"stages": {stage: {}}}))
        assert "task: preference" in complaint("plan", path)
    path.write_text(json.dumps(raw | {"stages": {"gradient": {"per": "token"}}}))
    assert "task: preference" in complaint("plan", path)


def test_the_viewer_swaps_answers(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    desk = Desk(run.folder.path, tmp_path / "review.csv")
    person = desk.person()
    row = person.next("flagged=1&decided=undecided")
    before = run.sql(
        f"SELECT chosen, rejected FROM preferences WHERE role = 'example' AND id = {row['id']}"
    ).fetchall()[0]
    words = Page(row["html"]).words
    assert all(answer.strip() in words for answer in before)
    assert person.decide(row["id"], "fix").json["made"] == 1
    (line,) = lines(desk.review)
    assert line["decision"] == "fix"
    assert "new_label" not in line
    assay("apply", run.folder.path, desk.review, "--to", tmp_path / "corrected")
    after = open_run(tmp_path / "corrected").sql(
        f"SELECT rejected, chosen FROM preferences WHERE role = 'example' AND id = {row['id']}"
    )
    assert after.fetchall() == [before]


def test_a_notebook_shows_pairs(ran: Any) -> None:
    run, _ = ran
    flagged = flag(run).df()
    shown = run.show("flags").data
    assert shown["chosen"][: len(flagged)].tolist() == flagged["chosen"].tolist()
    assert run.show("reasons").data["flagged"].sum() == len(flagged)
    words = Page(report_page(run)).words
    assert "20 pairs that are most likely in the wrong order" in words
    assert "probability that the chosen answer is the better one" in words
    assert "fix lets the two answers change places" in words
    assert "bad" not in words.partition("All rows")[0]
    assert sum(patch.get_height() for patch in run.show("scores").axes[0].patches) == N


def test_pairs_are_judged_in_an_annotation_tool(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    run.write_review(flag(run), tmp_path / "t.json", "label-studio")
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert {"prompt", "chosen", "rejected", "reason"} <= set(tasks[0]["data"])
    for task, choice in zip(tasks, ("swap", "accept", "drop"), strict=False):
        (prediction,) = task.pop("predictions")
        assert prediction["result"][0]["value"] == {"choices": ["swap"]}
        assert prediction["score"] > 0.5
        result = {**prediction["result"][0], "value": {"choices": [choice]}}
        task["annotations"] = [{"result": [result], "completed_by": 1}]
    (tmp_path / "e.json").write_text(json.dumps(tasks[:3]))
    review = review_of(lambda: run, tmp_path / "e.json")
    assert review is not None
    decisions = [json.loads(line)["decision"] for line in review.splitlines()]
    assert decisions == ["fix", "accept", "drop"]


def test_a_folder_of_pairs_says_why_others_are_left_out(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    run.write(select(run, keep=20), tmp_path / "pairs")
    removed = datasets.load_dataset(
        str(tmp_path / "pairs"), "removed", split="train", cache_dir=str(tmp_path / "cache")
    )
    flagged = {row["example_id"]: f"flagged: {row['reason']}" for row in _dicts(flag(run))}
    reasons = dict(zip(removed["example_id"], removed["reason"], strict=True))
    assert flagged.items() <= reasons.items()
    others = {reason for row, reason in reasons.items() if row not in flagged}
    assert "lower by middle than the rows that are kept" in others
    assert others <= {
        "lower by middle than the rows that are kept",
        "not judged by middle",
        "near duplicate of another row",
    }
    assert len(reasons) == N + 1 - 20
    n_unjudged = list(reasons.values()).count("not judged by middle")
    assert expected(run, keep=20)["n_unjudged"] == n_unjudged > 0


def _dicts(rows: Any) -> list[dict[str, Any]]:
    return [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]


def test_weights_are_never_those_of_random_rows(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = ran
    monkeypatch.setattr(cli, "is_worse_than_random", lambda _: True)
    told = json.loads(assay("select", run.folder.path, "--soft", "1", "--json").stdout)
    wanted = [row[0] for row in select(run, soft=1).fetchall()]
    assert [row["example_id"] for row in told] == wanted
    said = assay("select", run.folder.path, "--keep", "20%").stderr
    assert "These are random rows instead, as many" in " ".join(said.split())


def test_the_end_of_a_run_says_what_the_corpus_holds(ran: Any) -> None:
    run, said = ran
    facts = summarize(run)["corpus"]
    of_rows = run.sql("SELECT example_id, source FROM examples").fetchall()
    tokens = run.sql("SELECT sum(n_tokens) FROM text_lengths WHERE role = 'example'").fetchall()
    assert (facts["rows"], facts["tokens"], facts["by"]) == (N + 1, tokens[0][0], "source")
    best = {row[0] for row in select(run, keep="20%").fetchall()}
    for row in facts["sources"]:
        own = {i for i, name in of_rows if name == row["name"]}
        assert (row["rows"], row["chosen"]) == (len(own), len(own & best))
        assert row["able"] == len(own & {i[0] for i in select(run, keep="100%").fetchall()})
    told = f"{N + 1} rows with {tokens[0][0]:,} tokens on the longer side of each; 2 others could"
    assert told in " ".join(said.stdout.split())
    assert "select run --keep 20% --out chosen.jsonl" in said.stdout
