"""Bad answers of a corpus of completions, from the file to the flags and the choice of rows."""

import csv
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
from desks import Desk, lines
from pages import Page
from runs import assay, write_lines
from tiny_models import word_model

from pipeline import api
from pipeline.api import expected, explain, flag, open_run, plan, select
from pipeline.errors import RunError
from pipeline.explain import prompt as prompts
from pipeline.explain.interactive import interactive
from pipeline.handover.answered import review_of
from pipeline.main_results import summarize
from pipeline.page.overview import overview
from pipeline.page.subject import Subject

WORDS = "red blue green the house sky sea is of what colour and has a long road near town".split()
N = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("answers")
    draw = random.Random(0)
    rows = [
        {
            "id": i,
            "prompt": " ".join(["what", "is", *draw.sample(WORDS, 3), "?"]),
            "completion": " " + " ".join(draw.choices(WORDS, k=8)),
            "source": ["web", "book", None][i % 3],
        }
        for i in range(N)
    ]
    rows[7]["completion"] = " ..."
    rows[20] |= {name: rows[4][name] for name in ("prompt", "completion")}
    rows[31]["prompt"] = rows[30]["prompt"].upper()
    raw = {
        "run": "run",
        "model": {
            "path": str(word_model(place / "model", [*WORDS, "?", "..."], n_positions=32)),
            "head": "completion",
            "max_length": 32,
        },
        "corpus": {"path": write_lines(place / "rows.jsonl", rows), "task": "completion"},
        "queries": {"path": write_lines(place / "queries.jsonl", rows[:3])},
        "ray": {"engine": "in_process"},
        "stages": {
            "answer_issues": {},
            "planted_answers": {"rows": 20},
            "query_relevance": {},
            "near_duplicates": {},
            "bm25": {},
            "selection_trial": {"steps": 2, "batch_size": 4, "draws": 1},
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
        said = assay("run", folder / "run.yaml").stdout
    finally:
        os.chdir(before)
    return open_run(place), said


def test_an_empty_answer_is_flagged_and_named(ran: Any) -> None:
    run, said = ran
    rows = flag(run).df()
    assert list(rows.columns[:6]) == "example_id source_id prompt answer reason p_wrong".split()
    (empty,) = rows[rows["reason"] == "empty"].to_dict("records")
    assert (empty["source_id"], empty["answer"], empty["p_wrong"]) == ("7", " ...", 1.0)
    assert rows["p_wrong"].is_monotonic_decreasing
    assert (rows["p_wrong"] > 0.5).all()
    assert "Most suspicious answers" in said
    assert "1 empty" in said
    every = flag(run, top=100).df()
    assert len(every) == N
    kinds = {"another answer", "off topic", "cut off", "garbled", "empty"}
    assert set(every["reason"]) <= kinds


def test_rows_with_one_prompt_and_two_answers_are_counted(ran: Any) -> None:
    run, said = ran
    found = run.sql(
        "SELECT e.source_id, o.source_id, n_answers FROM issues JOIN examples AS e USING "
        "(example_id) JOIN examples AS o ON o.example_id = other_id "
        "WHERE issue = 'same prompt with another answer' ORDER BY ALL"
    ).fetchall()
    # By chance two of the drawn prompts are the same.
    pairs = [("0", "17"), ("17", "0"), ("30", "31"), ("31", "30")]
    assert found == [(*pair, 2) for pair in pairs]
    told = "4 rows have the prompt of another row and another answer"
    assert told in " ".join(said.split())
    flagged = assay("flag", run.folder.path)
    assert told in " ".join(flagged.stderr.split())
    assert told not in " ".join(flagged.stdout.split())


def test_stages_without_rows_of_queries_have_no_task_for_them(ran: Any) -> None:
    run, _ = ran
    shards = dict(run.sql("SELECT instance, shards FROM runs WHERE shards IS NOT NULL").fetchall())
    n_examples = run.sql("SELECT count(DISTINCT shard) FROM examples").fetchall()[0][0]
    assert shards["planted_answers"] == shards["answer_issues"] == n_examples
    assert shards["answer_loss"] == n_examples + 1


def test_metrics_of_classes_name_the_stage_that_measures_a_choice(ran: Any) -> None:
    for metric in ("quantiles", "selection", "flags"):
        with pytest.raises(RunError, match=r"task: completion.*stage selection_trial"):
            api.evaluate(ran[0], metric)


def test_prompts_and_answers_are_read(ran: Any) -> None:
    run, _ = ran
    rows = run.sql(
        "SELECT c.answer, e.text_b FROM completions AS c JOIN examples AS e ON "
        "e.example_id = c.id AND c.role = 'example'"
    ).fetchall()
    assert len(rows) == N
    assert all(answer == text for answer, text in rows)


def test_the_choice_leaves_out_flagged_answers_and_near_duplicates(ran: Any) -> None:
    run, _ = ran
    flagged = {row[0] for row in flag(run).fetchall()}
    kept = [row[1] for row in select(run, keep=N).fetchall()]
    ids = [row[0] for row in select(run, keep=N).fetchall()]
    assert not flagged & set(ids)
    assert not {"4", "20"} <= set(kept)
    told = expected(run, keep=N)
    assert told["n_flagged"] == len(flagged)
    assert told["n_rows"] == N - len(flagged) - told["n_repeated"]
    assert told["n_unjudged"] == 0
    assert len(select(run, keep=N, keep_flagged=True).fetchall()) == N
    relevance = dict(run.sql("SELECT example_id, rank FROM query_relevance").fetchall())
    ranks = [relevance[i] for i in ids]
    assert ranks == sorted(ranks)
    dropped = [row[0] for row in select(run, drop=N - 5).fetchall()]
    assert dropped == ids[:5]
    shown = "example_id source_id prompt answer value rank"
    assert select(run, keep=5).columns == shown.split()
    answers = dict(run.sql("SELECT id, answer FROM completions WHERE role = 'example'").fetchall())
    assert all(row[3] == answers[row[0]] for row in select(run, keep=5).fetchall())
    few = [row[0] for row in select(run, keep=5).fetchall()]
    assert few == ids[:5]
    by_answers = [row[0] for row in select(run, keep=5, by="answer_issues").fetchall()]
    wrong = dict(run.sql("SELECT example_id, p_wrong FROM answer_issues").fetchall())
    assert [wrong[i] for i in by_answers] == sorted(wrong[i] for i in by_answers)
    with pytest.raises(RunError, match="found a quota of classes in a corpus without any"):
        select(run, quota={"a": 3})


def test_a_choice_is_written_as_the_source_has_it(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    out = tmp_path / "kept.jsonl"
    assay("select", run.folder.path, "--keep", "4", "--no-forecast", "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 4
    assert all({"id", "prompt", "completion"} <= set(row) for row in rows)


def test_answers_that_are_not_told_apart_are_named(ran: Any, tmp_path: Path) -> None:
    """Words at random: of another row's answer nothing tells that it is."""
    run, said = ran
    facts = "SELECT details FROM runs WHERE instance = 'answer_issues'"
    areas = json.loads(run.sql(facts).fetchall()[0][0])["areas"]
    assert areas["off topic"] < 0.7
    report = (api.report(run, tmp_path / "report.html")).read_text()
    for text in (said, assay("flag", run.folder.path).stderr, report):
        assert f"off topic ({areas['off topic']:.2f})" in " ".join(text.split())


def test_a_reviewed_answer_is_dropped_or_held_for_right(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    review, out = tmp_path / "review.csv", tmp_path / "out.jsonl"
    assay("flag", run.folder.path, "--review", review)
    with review.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = "source_id decision prompt answer reason p_wrong flagged example_id"
    assert list(rows[0]) == names.split()
    with review.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {**row, "decision": "accept" if row["source_id"] == "7" else "drop"} for row in rows
        )
    assay("apply", run.folder.path, review, "--to", tmp_path / "corrected", "--out", out)
    left = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    dropped = {row["source_id"] for row in rows} - {"7"}
    assert left == [i for i in range(N) if str(i) not in dropped]
    # An answer that was accepted is no longer flagged, though the stage judges as before.
    assert "7" not in [row[1] for row in select(run, keep=N).fetchall()]
    assert "7" in [row[1] for row in select(tmp_path / "corrected", keep="100%").fetchall()]
    corrected = open_run(tmp_path / "corrected")
    assert not summarize(corrected)["bad_answers"]
    listed = corrected.sql(summarize(corrected)["try"][0]).df()
    assert sum(listed["p_wrong"] > 0.5) == 1
    assert overview(Subject(corrected)).headline == f"None of {N - len(dropped)} answers looks bad"
    # What is dropped takes no place among those that are listed.
    most = flag(tmp_path / "corrected", top=5).df()
    assert len(most) == 5
    assert not set(most["source_id"]) & {row["source_id"] for row in rows}


def test_answers_are_judged_in_an_annotation_tool(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    run.write_review(flag(run, top=N), tmp_path / "tasks", "argilla")
    records = json.loads((tmp_path / "tasks" / "records.json").read_text())
    wrong = dict(run.sql("SELECT example_id, p_wrong FROM answer_issues").fetchall())
    for record in records:
        suggested = record["suggestions"]["decision"]
        p = wrong[int(record["id"])]
        assert suggested["value"] == ("drop" if p > 0.5 else "accept")
        assert suggested["score"] == pytest.approx(max(p, 1 - p), abs=1e-4)
        record["responses"] = {"decision": [{"value": suggested["value"], "user_id": "u"}]}
        record["status"] = "completed"
    (tmp_path / "records.json").write_text(json.dumps(records))
    review = review_of(lambda: run, tmp_path / "records.json")
    assert review is not None
    decided = [json.loads(line) for line in review.splitlines()]
    dropped = {int(row["example_id"]) for row in decided if row["decision"] == "drop"}
    assert dropped == {row[0] for row in flag(run).fetchall()}
    assert {row["decision"] for row in decided} == {"accept", "drop"}


def test_a_folder_of_chosen_answers_says_why_others_are_left_out(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    told = expected(run, keep=10)
    assert run.write(select(run, keep=10), tmp_path / "chosen") == 10
    removed = datasets.load_dataset(
        str(tmp_path / "chosen"), "removed", split="train", cache_dir=str(tmp_path / "cache")
    )
    reasons = [reason.partition(":")[0] for reason in removed["reason"]]
    assert reasons.count("flagged") == told["n_flagged"]
    assert reasons.count("near duplicate of another row") == told["n_repeated"] > 0
    rest = N - 10 - told["n_flagged"] - told["n_repeated"]
    assert reasons.count("lower by query_relevance than the rows that are kept") == rest


def test_a_trial_says_what_chosen_rows_train(ran: Any) -> None:
    run, said = ran
    rows = run.sql(
        "SELECT trained_on, count(DISTINCT query_id) AS n, any_value(n_rows) AS rows "
        "FROM selection_trial GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    names = ("all", "chosen", "nothing", "random")
    assert [row[:2] for row in rows] == [(name, 3) for name in names]
    (trial,) = expected(run, keep="20%")["trials"]
    losses = dict(
        run.sql("SELECT trained_on, avg(loss) FROM selection_trial GROUP BY 1").fetchall()
    )
    assert {row["trained_on"]: row["loss"] for row in trial["rows"]} == pytest.approx(losses)
    assert trial["gain"] == pytest.approx(losses["random"] - losses["chosen"])
    assert trial["gain_low"] < trial["gain"] < trial["gain_high"]
    for text in (said, assay("select", run.folder.path, "--keep", "20%").stderr):
        assert "rows chosen by query_relevance" in text
        assert "The chosen rows are " in text
        assert f"{trial['gain']:+.3f} nats a token" in text
    assert f"{trial['gain']:+.3f}" in overview(Subject(run)).tiles[-1].number


def test_the_same_share_of_each_value_of_a_column_is_chosen(ran: Any) -> None:
    run, _ = ran
    rows = select(run, keep=18, per="source", keep_flagged=True).df()
    kept = rows.merge(run.sql("SELECT example_id, source FROM examples").df(), on="example_id")
    assert kept["source"].value_counts(dropna=False).tolist() == [6, 6, 6]
    told = expected(run, quota={"web": 4, "book": "50%"}, per="source", keep_flagged=True)
    kept_of = {row["class"]: round(row["kept"] * told["n_rows"]) for row in told["classes"]}
    assert kept_of == {"web": 4, "book": 10, None: 0}
    with pytest.raises(RunError, match="expected values of source: "):
        select(run, quota={"tv": 4}, per="source")
    with pytest.raises(RunError, match="expected a column of the corpus .*: source"):
        select(run, keep=4, per="page")
    with pytest.raises(RunError, match="found a quota of classes in a corpus without any"):
        select(run, quota={"web": 4})


def test_a_prompt_is_answered_and_the_answer_explained(ran: Any) -> None:
    run, _ = ran
    found = explain(run, prompt="what is red ?", new_tokens=5)
    query = found["query"]
    assert (query["prompt"], query["text"]) == ("what is red ?", "what is red ?")
    assert query["answer"] == query["text_b"]
    assert 0 < len(query["answer"].split()) <= 5
    again = explain(run, text=query["text"], text_b=query["text_b"])
    assert again["methods"] == found["methods"]
    (bm25,) = found["methods"]
    assert bm25["helpful"]
    assert all(row["prompt"] == row["text"] for row in bm25["helpful"])
    said = assay("explain", run.folder.path, "--prompt", "what is red ?", "--new-tokens", 5).stdout
    assert said.startswith(f"what is red ? | {query['answer']}")
    assert "prompt" in said
    with pytest.raises(RunError, match="found 2 of query, text and prompt"):
        explain(run, query=0, prompt="what is red ?")


def test_prompts_are_explained_line_by_line(
    ran: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = ran
    opened: list[str] = []
    load = prompts.load_measurement
    monkeypatch.setattr(
        prompts, "load_measurement", lambda *given: opened.append("") or load(*given)
    )
    lines = "what is red ?\n" + "sky " * 40 + "\nwhat is blue ?\n\nwhat is green ?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    interactive(run, (), 2, 5, is_json=False)
    said = capsys.readouterr()
    asked = [line for line in said.out.splitlines() if line.startswith("what is")]
    first = explain(run, prompt="what is red ?", new_tokens=5)["query"]
    assert asked[0] == f"what is red ? | {first['answer']}"
    assert any(line.startswith("what is blue ? | ") for line in asked)
    assert not any(line.startswith("what is green ? | ") for line in asked)
    assert "found 32 tokens, expected at least 1 and fewer than max_length" in said.err
    assert len(opened) == 2  # Once for the lines, once for the explanation above.


def test_with_other_queries_the_planted_answers_stay(folder: Path, ran: Any) -> None:
    run, _ = ran
    raw = json.loads((folder / "run.yaml").read_text())
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    raw["run"], raw["store"] = "other", str(run.folder.path / "store")
    raw["queries"]["path"] = write_lines(folder / "others.jsonl", rows[30:34])
    raw["stages"] = {name: raw["stages"][name] for name in ("answer_issues", "planted_answers")}
    (folder / "other.yaml").write_text(json.dumps(raw))
    planned = {row["stage"]: row for row in plan(folder / "other.yaml")["stages"]}
    # The losses of the queries alone: nothing is planted in these, and nobody judges them.
    names = ("answer_issues", "answer_loss", "planted_answers")
    assert [planned[name]["tasks"] for name in names] == [0, 1, 0]
    assert assay("verify", run.folder.path).stdout.count("are as they were written") == 1


def test_a_report_shows_answers_as_people_read_them(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    page = api.report(run, tmp_path / "report.html", by=["source"]).read_text(encoding="utf-8")
    n = len(flag(run).df())
    assert f"{n} of {N} answers look" in page
    assert page.partition('id="rows"')[0].count('class="bubble answer"') == 20
    assert "⚑ flagged: empty" in page


def test_the_viewer_shows_conversations_and_takes_them_out(ran: Any, tmp_path: Path) -> None:
    run, _ = ran
    desk = Desk(run.folder.path, tmp_path / "review.csv", ("source",))
    person = desk.person()
    first = person.rows()["data"][0]
    assert first["flagged"]
    shown = Page(person.next()["html"]).words
    assert first["prompt"] in shown
    assert first["reason"] in shown
    for word, view in (("sky", "prompt"), ("road", "answer")):
        expected = run.sql(
            "SELECT count(*) FROM completions WHERE role = 'example' "
            f"AND contains(concat_ws(' ', prompt, answer), '{word}')"
        ).fetchall()[0][0]
        assert person.rows(f"words={word}")["recordsFiltered"] == expected, view
    none = person.rows("is.source==")["data"]
    assert {row["source"] for row in none} == {None}
    assert person.rows("is.source=%3D")["recordsFiltered"] == len(none) == N // 3
    assert person.decide(first["example_id"], "fix").status_code == 400
    assert person.decide(first["example_id"], "drop").json["file"] == 1
    (line,) = lines(desk.review)
    assert line["answer"] == first["answer"]
    assay("apply", run.folder.path, desk.review, "--to", tmp_path / "corrected")
    corrected = open_run(tmp_path / "corrected")
    gone = f"FROM examples WHERE example_id = {first['example_id']}"
    assert not corrected.sql(gone).fetchall()
    # What is told of texts stays in the tables; what is counted is of the rows that are left.
    before, after = (sum(summarize(r)["bad_answers"].values()) for r in (run, corrected))
    assert after == before - 1
    assert f"{after or 'None'} of {N - 1} " in overview(Subject(corrected)).headline
    queries = Page(person.get("/queries").text)
    assert "what is" in queries.words
    answered = explain(run, prompt="what is the sky ?")
    for _ in range(2):
        words = Page(person.get("/text?text=what+is+the+sky+%3F").text).words
        assert "what is the sky ?" in words
        assert answered["query"]["text_b"].strip()[:20] in words
