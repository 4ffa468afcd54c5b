"""Folders that are ready for the hub: what they hold, what their card says, what they refuse."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import DatasetCard
from runs import CLASSES, assay, complaint

from pipeline.api import open_run, select
from pipeline.errors import RunError


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


def test_a_corrected_corpus_tells_what_a_review_changed(judged: Path, tmp_path: Path) -> None:
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
    given = ("--to", tmp_path / "new", "--out", place)
    said = assay("apply", judged, tmp_path / "r.csv", *given).stderr
    assert "79 rows in" in said
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
        for run in (judged, tmp_path / "new")
    )
    for name in CLASSES:
        n, m = (rows.count((name,)) for rows in (before, after))
        assert f"| {n} ({n / 80:.1%}) | {m} ({m / 79:.1%}) |" in text


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
