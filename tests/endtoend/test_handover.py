"""What goes to other tools and comes back: reviews in Label Studio and Argilla, hub folders."""

import csv
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import DatasetCard
from runs import CLASSES, assay, complaint, write_lines, write_run

from pipeline.api import apply, open_run, select
from pipeline.errors import RunError
from pipeline.handover.answered import review_of
from stages.corpus.review import read_review

Answer = Callable[[Path, list[list[str]]], Path]
"""Writes what a tool exports when people chose these for the first rows; gives where."""


@pytest.fixture(scope="module")
def run(judged: Path) -> Path:
    """The folder of a run over hostile texts and class names."""
    return judged


@pytest.fixture(scope="module")
def tasks(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tasks of both tools: `ls.json` and `ls.xml`, and `argilla/`."""
    folder = tmp_path_factory.mktemp("tasks")
    for form, name in (("label-studio", "ls.json"), ("argilla", "argilla")):
        given = ("--format", form, "--review", folder / name)
        said = assay("flag", run, "--top", "12", *given).stderr
        assert "12 rows" in said
    return folder


def label_studio(folder: Path, chosen: list[list[str]]) -> Path:
    """An export of the format JSON, with an annotation per person and one that was skipped."""
    exported = json.loads((folder / "ls.json").read_text())
    for number, task in enumerate(exported):
        (prediction,) = task.pop("predictions")
        people = chosen[number] if number < len(chosen) else []
        task["id"] = number
        task["annotations"] = [
            {
                "completed_by": {"id": person, "email": f"p{person}@x"},
                "was_cancelled": False,
                "result": [{**prediction["result"][0], "value": {"choices": [choice]}}],
            }
            for person, choice in enumerate(people)
        ]
        task["annotations"].append({"was_cancelled": True, "result": prediction["result"]})
    return _saved(folder / "export.json", exported)


def json_min(folder: Path, chosen: list[list[str]]) -> Path:
    """An export of the format JSON_MIN: a row per annotation, with its data beside it."""
    rows = []
    for number, task in enumerate(json.loads((folder / "ls.json").read_text())):
        people: list[str | None] = [*chosen[number]] if chosen[number:] else [None]
        for person, choice in enumerate(people):
            row = {**task["data"], "id": number, "annotation_id": person, "annotator": person}
            rows.append(row if choice is None else {**row, "decision": choice})
    return _saved(folder / "min.json", rows)


def argilla(folder: Path, chosen: list[list[str]]) -> Path:
    """A folder of `Dataset.to_disk`, with a draft in a record that is not completed."""
    records = json.loads((folder / "argilla" / "records.json").read_text())
    for record, people in zip(records, [*chosen, *[[]] * len(records)], strict=False):
        given = [{"value": c, "user_id": f"u{at}"} for at, c in enumerate(people)]
        draft = [{"value": "drop", "user_id": "u9"}]
        record["responses"] = {"decision": given or draft}
        record["status"] = "completed" if given else "pending"
    (folder / "answered").mkdir(exist_ok=True)
    _saved(folder / "answered" / "records.json", records)
    return folder / "answered"


def _saved(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


TOOLS = pytest.mark.parametrize("answer", [label_studio, json_min, argilla])


def test_tasks_say_what_the_run_would_choose(run: Path, tasks: Path) -> None:
    made = json.loads((tasks / "ls.json").read_text())
    listed = open_run(run).flag(top=12).df()
    p_wrong = dict(open_run(run).sql("SELECT example_id, p_wrong FROM label_issues").fetchall())
    choices = [c.attrib["value"] for c in ET.parse(tasks / "ls.xml").iter("Choice")]
    # A class is called like the choice that drops a row.
    assert choices == [CLASSES[0].replace("\u202e", "\\u202e"), "drop", "drop row"]
    texts = [t.attrib for t in ET.parse(tasks / "ls.xml").iter("Text")]
    assert {t["valueType"] for t in texts} == {"text"}
    assert all(t["value"].removeprefix("$") in made[0]["data"] for t in texts)
    assert [int(task["data"]["example_id"]) for task in made] == listed["example_id"].tolist()
    for task, row in zip(made, listed.to_dict("records"), strict=True):
        (prediction,) = task["predictions"]
        assert prediction["result"][0]["value"]["choices"] == [
            choices[CLASSES.index(row["suggested_label"])]
        ]
        wrong = p_wrong[row["example_id"]]
        differs = row["suggested_label"] != row["given_label"]
        assert prediction["score"] == pytest.approx(wrong if differs else 1 - wrong, abs=1e-4)
        assert task["meta"]["source_id"] == row["source_id"]
        assert not {"\0", "\x1b", "\u202e"} & set(json.dumps(task, ensure_ascii=False))
        assert not any(code in json.dumps(task) for code in (r"\u0000", r"\u001b"))
    records = json.loads((tasks / "argilla" / "records.json").read_text())
    settings = json.loads((tasks / "argilla" / ".argilla" / "settings.json").read_text())
    options = settings["questions"][0]["settings"]["options"]
    assert [option["value"] for option in options] == choices
    assert [r["fields"]["text"] for r in records] == [t["data"]["text"] for t in made]
    assert not any(field["settings"]["use_markdown"] for field in settings["fields"])


@TOOLS
def test_answers_become_a_review(run: Path, tasks: Path, answer: Answer, tmp_path: Path) -> None:
    listed = open_run(run).flag(top=12).df()
    given = listed["given_label"].tolist()
    shown = {name: name.replace("\u202e", "\\u202e") for name in CLASSES}
    other = {CLASSES[0]: CLASSES[1], CLASSES[1]: CLASSES[0]}
    chosen = [
        [shown[other[given[0]]]],
        [shown[given[1]]] * 2,
        ["drop row"],
        [shown[other[given[3]]]] * 3,
    ]
    path = answer(tasks, chosen)
    review = review_of(lambda: open_run(run), path)
    assert review is not None
    rows = [json.loads(line) for line in review.splitlines()]
    assert [row["decision"] for row in rows] == ["fix", "accept", "drop", "fix", *[""] * 8]
    assert [int(row["example_id"]) for row in rows] == listed["example_id"].tolist()
    (tmp_path / "r.jsonl").write_bytes(review)
    read = read_review(str(tmp_path / "r.jsonl"), "classification", tuple(CLASSES))
    assert read.values[0] == CLASSES.index(other[given[0]])


def test_an_export_is_applied(run: Path, tasks: Path, tmp_path: Path) -> None:
    listed = open_run(run).flag(top=12).df()
    suggested = listed["suggested_label"].str.replace("\u202e", "\\u202e").tolist()
    path = label_studio(tasks, [[suggested[0]], ["drop row"]])
    done = apply(run, path, tmp_path / "new")
    labels = dict(done.sql("SELECT example_id, label_name FROM examples").fetchall())
    assert labels[listed["example_id"][0]] == listed["suggested_label"][0]
    assert listed["example_id"][1] not in labels
    assert len(labels) == 79
    again = done.flag(top=79, is_all=True).df()
    assert set(again["decision"].dropna()) == {"fix"}


@TOOLS
def test_people_who_disagree_are_told(run: Path, tasks: Path, answer: Answer) -> None:
    path = answer(tasks, [["drop"], ["drop", "drop row", "drop"]])
    with pytest.raises(RunError, match=r"task 2 \(example_id \d+\): found answers that differ, "):
        review_of(lambda: open_run(run), path)
    with pytest.raises(RunError, match=r"found the choice 'maybe', expected one of <b>yes</b>"):
        review_of(lambda: open_run(run), answer(tasks, [["maybe"]]))
    with pytest.raises(RunError, match=r"'drop rwo' \(did you mean drop row\?\), expected"):
        review_of(lambda: open_run(run), answer(tasks, [["drop rwo"]]))


def test_tasks_of_other_rows_are_refused(run: Path, tasks: Path, tmp_path: Path) -> None:
    path = label_studio(tasks, [["drop row"]])
    exported = json.loads(path.read_text())

    def refused(change: Callable[[list[Any]], None]) -> str:
        changed = json.loads(json.dumps(exported))
        change(changed)
        return complaint("apply", run, _saved(tmp_path / "e.json", changed))

    said = refused(lambda rows: rows[0]["data"].update(content="0" * 16))
    assert "task 1 (example_id" in said
    assert "found another row under this id" in said
    assert "found no such row in" in refused(lambda rows: rows[0]["data"].update(example_id="x"))
    own = exported[0]["data"]["example_id"]
    said = refused(lambda rows: rows[0]["data"].update(example_id=f"{own}0"))
    assert f"found no such row (did you mean {own}?) in" in said
    assert "found the same example_id as in task 1" in refused(lambda rows: rows.append(rows[0]))
    assert "found no content, expected" in refused(lambda rows: rows[0]["data"].pop("content"))
    undecided = refused(lambda rows: [row.update(annotations=[]) for row in rows])
    assert "found no decision" in undecided
    assert not list(run.parent.glob("run-corrected*"))


def test_rows_without_texts_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_run(run)
    rows = opened.flag()
    monkeypatch.setattr(opened, "facts", lambda table: {"has_text": False})
    with pytest.raises(RunError, match="found rows that are vectors alone, expected texts"):
        opened.write_review(rows, tmp_path / "t.json", "label-studio")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_by_tasks(run: Path, tasks: Path, tmp_path: Path) -> None:
    def refused(form: str, path: Path) -> str:
        return complaint("flag", run, "--format", form, "--review", path)

    assert "found a file there already" in refused("label-studio", tasks / "ls.json")
    assert "found a folder there already" in refused("argilla", tasks / "argilla")
    (tmp_path / "t.xml").touch()
    assert "t.xml: found a file" in refused("label-studio", tmp_path / "t.json")
    assert "expected .json" in refused("label-studio", tmp_path / "t.csv")
    assert "expected the name of a folder" in refused("argilla", tmp_path / "t.json")
    assert "expected one of csv, label-studio, argilla" in refused("xlsx", tmp_path / "t.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t.xml"]


def loaded(folder: Path, config: str | None = None) -> Any:
    """The rows of a configuration, as `load_dataset` reads them."""
    cache = str(folder.parent / "cache")
    return datasets.load_dataset(str(folder), config, split="train", cache_dir=cache)


def declared(folder: Path) -> dict[str, dict[str, Any]]:
    """What the card declares of each configuration, checked against the files."""
    card = DatasetCard.load(folder / "README.md")
    infos = {info["config_name"]: info for info in card.data.to_dict()["dataset_info"]}
    configs = {config["config_name"]: config for config in card.data.to_dict()["configs"]}
    assert set(infos) == set(configs) == set(datasets.get_dataset_config_names(str(folder)))
    for name, info in infos.items():
        rows = loaded(folder, name)
        assert info["splits"][0]["num_examples"] == len(rows)
        assert [feature["name"] for feature in info["features"]] == rows.column_names
    return infos


def test_a_selection_is_a_data_set_with_what_was_left_out(judged: Path, tmp_path: Path) -> None:
    place = tmp_path / "best.v1"
    asked = ("--by", "label_score", "--keep", "25%", "--no-forecast")
    assert "20 rows in" in assay("select", judged, *asked, "--out", f"{place}/").stderr
    assert set(declared(place)) == {"default", "removed", "rejected"}
    chosen = select(judged, keep="25%", by="label_score").df()
    kept, removed = loaded(place), loaded(place, "removed")
    assert kept["example_id"] == chosen["example_id"].tolist()
    assert kept.features["kind"].names == CLASSES
    assert [CLASSES[code] for code in kept["kind"]] == chosen["label_name"].tolist()
    assert kept["note"][0] == [int(kept["id"][0][1:])]
    every = {f"={at}" for at in range(80)}
    assert {*kept["id"]} | {*removed["id"]} == every
    assert len(removed) == 60
    assert set(removed["reason"]) == {"lower by label_score than the rows that are kept"}
    scores = dict(
        open_run(judged).sql("SELECT example_id, label_score FROM label_issues").fetchall()
    )
    assert dict(zip(removed["example_id"], removed["value"], strict=True)).items() <= scores.items()
    assert max(removed["value"]) <= max(kept["value"])
    assert {row["reason"] for row in loaded(place, "rejected")} == {"empty text", "unknown label"}
    text = (place / "README.md").read_text(encoding="utf-8")
    assert "20 of 80 rows of rows\\|of \\*.jsonl" in text
    assert "| lower by label\\_score than the rows that are kept | 60 |" in text
    assert "| empty text | 1 |" in text
    assert "--keep 25% --by label\\_score" in text
    assert str(judged.parent) not in text
    assert "<b>" not in text.partition("\n---\n")[2]
    # It is as `push_to_hub` takes it, and as `load_from_disk` reads it after one call.
    whole = datasets.DatasetDict({"train": kept})
    whole.save_to_disk(str(tmp_path / "saved"))
    assert datasets.load_from_disk(str(tmp_path / "saved"))["train"].features == kept.features


@pytest.mark.parametrize("column", ["reason", "Reason"])
def test_a_card_counts_our_reasons_and_not_a_column_of_the_source(
    tmp_path: Path, column: str
) -> None:
    towns = ("New York", "Rome")
    rows = [
        {"text": f"t {at}", "label": towns[at % 2], column: f"mine {at}", "v": [at, 1 - at % 2]}
        for at in range(20)
    ]
    corpus = {"path": write_lines(tmp_path / "rows.jsonl", rows), "features": "v"}
    stages = {"kernel_regression": {"kernel": ["features"]}}
    assay("run", write_run(tmp_path, corpus=corpus, stages=stages))
    place = tmp_path / "best"
    asked = ("--by", "random", "--quota", "New York=3", "--quota", "Rome=1", "--no-forecast")
    assay("select", tmp_path / "run", *asked, "--out", place)
    assert set(loaded(place, "removed")["assay_reason"]) == {"not drawn"}
    text = (place / "README.md").read_text(encoding="utf-8")
    assert "| not drawn | 16 |" in text
    assert "mine" not in text
    assert "assay select run --by random --quota 'New York=3' --quota Rome=1 --out" in text


@pytest.mark.parametrize("to", ["new", "mine"], ids=["beside", "in place"])
def test_a_corrected_corpus_tells_what_a_review_changed(
    judged: Path, tmp_path: Path, to: str
) -> None:
    mine = shutil.copytree(judged, tmp_path / "mine")
    assay("status", mine)
    assay("flag", judged, "--review", tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, decision in zip(rows, ["fix", "drop", "accept"], strict=False):
        row["decision"] = decision
    with (tmp_path / "r.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    place = tmp_path / "corrected"
    done = assay("apply", mine, tmp_path / "r.csv", "--to", tmp_path / to, "--out", place)
    assert "79 rows in" in done.stderr
    assert f"labels are flagged, {len(rows)} before" in done.stdout
    assert set(declared(place)) == {"default", "removed", "corrected", "rejected"}
    fixed, dropped, accepted = (row["source_id"].lstrip("'") for row in rows[:3])
    kept = {row["id"]: row["kind"] for row in loaded(place)}
    assert dropped not in kept
    assert accepted in kept
    (removed,) = loaded(place, "removed")
    assert (removed["id"], removed["reason"]) == (dropped, "dropped in a review")
    (corrected,) = loaded(place, "corrected")
    assert corrected["id"] == fixed
    assert corrected["kind"] == kept[fixed] == 1 - CLASSES.index(corrected["label_before"])
    text = (place / "README.md").read_text(encoding="utf-8")
    assert "79 of 80 rows" in text
    before, after = (
        open_run(run).sql("SELECT label_name FROM examples").fetchall()
        for run in (judged, tmp_path / to)
    )
    for name in CLASSES:
        n, m = (rows.count((name,)) for rows in (before, after))
        assert f"| {n} ({n / 80:.1%}) | {m} ({m / 79:.1%}) |" in text


@pytest.mark.parametrize("name", [".", "./", "../other"])
def test_an_empty_folder_is_filled(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for folder in ("here", "other"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assay("select", judged, "--by", "random", "--keep", "5", "--no-forecast", "--out", name)
    place = Path(name)  # the working folder is not another one
    assert {path.name for path in place.iterdir()} == {"README.md", "data", "removed", "rejected"}
    card = (place / "README.md").read_text(encoding="utf-8")
    assert f'load_dataset("{place.resolve().name}"' in card


def test_nothing_is_written_over_a_folder(judged: Path, tmp_path: Path) -> None:
    asked = ("select", judged, "--by", "label_score", "--keep", "5", "--no-forecast", "--out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    assert "found a folder that holds something" in complaint(*asked, tmp_path / "taken")
    (tmp_path / "file").touch()
    assert "found a file, expected an empty or a new folder" in complaint(*asked, tmp_path / "file")
    run = open_run(judged)
    with pytest.raises(RunError, match="found rows that are no selection"):
        run.write(run.flag(), tmp_path / "flags")
    (tmp_path / "empty").mkdir()
    assay(*asked, tmp_path / "empty")
    assert len(loaded(tmp_path / "empty")) == 5
    left = {path.name for path in tmp_path.iterdir()} - {"cache"}
    assert left == {"taken", "file", "empty"}
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"
    assert json.loads(assay("flag", judged, "--json").stdout)
