"""Reviews: what a person opens in a spreadsheet, fills in, and gives back."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import write_lines, write_run
from web import Web

CLASSES = ["=no", "@yes"]
TEXTS = ['=HYPERLINK("http://x","y")', "+1 for it", "-- a dash", "@home", "'=quoted", "plain é"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> Path:
    """A run over texts, labels and ids that a spreadsheet would compute; 8 labels are wrong."""
    folder = tmp_path_factory.mktemp("reviews")
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, 80)
    np.save(folder / "v.npy", (rng.normal(size=(80, 4)) + 6 * kinds[:, None]).astype(np.float32))
    given = np.where(np.arange(80) < 8, 1 - kinds, kinds)
    rows = [
        {"id": f"={at}", "text": f"{TEXTS[at % 6]} {at}", "kind": CLASSES[kind]}
        for at, kind in enumerate(given)
    ]
    corpus = {
        "path": write_lines(folder / "c.jsonl", rows),
        "id": "id",
        "text": "text",
        "label": "kind",
        "features": str(folder / "v.npy"),
    }
    stages = {"kernel_regression": {"kernel": ["features"]}, "label_issues": {}}
    assay("run", write_run(folder, corpus=corpus, stages=stages))
    return folder / "run"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    # As Excel saves UTF-8: with a mark, and lines that end in CR LF.
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def flagged(assay: Any, run: Path, *more: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(assay("flag", run, "--json", *more).stdout)
    return rows


def corrected(assay: Any, run: Path, to: Path, *reviews: object) -> Path:
    """A run like `run` whose YAML names these reviews."""
    named = json.dumps([str(review) for review in reviews])
    given = (f"run={to}", f"store={run / 'store'}", f"corpus.corrections={named}")
    assay("run", run / "config.yaml", *(word for value in given for word in ("--set", value)))
    return to


def decided(assay: Any, run: Path) -> dict[str, str]:
    """The decisions that count in a run, by source_id."""
    rows = flagged(assay, run, "--all", "--top", "80")
    return {row["source_id"]: row["decision"] for row in rows if row["decision"]}


def test_a_review_goes_to_a_spreadsheet_and_back(run: Path, assay: Any, tmp_path: Path) -> None:
    assay("flag", run, "--review", tmp_path / "r.csv")
    rows = read(tmp_path / "r.csv")
    assert len(rows) >= 8
    for row in rows:
        assert all(cell[:1] not in "=+@" for cell in row.values() if cell), row
        assert row["source_id"].startswith("'=")
        assert row["new_label"] in ("'=no", "'@yes")
    assert any(row["text"].startswith("'--") for row in rows)
    # One label is typed as it is, not as the file has it.
    rows[0]["new_label"] = rows[0]["new_label"][1:]
    decisions = ["fix", "accept", "drop", "fix", *[""] * (len(rows) - 4)]
    filled = [{**row, "decision": d} for row, d in zip(rows, decisions, strict=True)]
    assay("apply", run, write(tmp_path / "r.csv", filled), "--to", tmp_path / "new")
    asked = "SELECT source_id, label_name FROM examples"
    labels = dict(
        json.loads(assay("sql", tmp_path / "new", asked, "--json").stdout, object_hook=_pair)
    )
    for row, decision in zip(rows, decisions, strict=True):
        source_id = row["source_id"][1:]
        if decision == "drop":
            assert source_id not in labels
        elif decision == "fix":
            assert labels[source_id] == row["new_label"].removeprefix("'")
    # What was decided is not asked again, unless all is.
    left = {row["source_id"][1:] for row in rows[4:]}
    assert {row["source_id"] for row in flagged(assay, tmp_path / "new")} <= left
    again = {
        row["source_id"]: row["decision"]
        for row in flagged(assay, tmp_path / "new", "--all", "--top", "79")
    }
    assert {again[row["source_id"][1:]] for row in rows[:2]} == {"fix", "accept"}
    assert {again[source_id] for source_id in left} == {None}
    assert len(flagged(assay, tmp_path / "new", "--top", "79")) == 79 - 3
    asked = (
        "SELECT source_id, c.label_name, label_score, p_wrong FROM examples JOIN label_issues "
        "USING (example_id) JOIN provenance.class c ON c.label = label_before_review"
    )
    held = assay("sql", tmp_path / "new", asked, "--json")
    assert {tuple(row.values()) for row in json.loads(held.stdout)} == {
        (row["source_id"][1:], row["given_label"].removeprefix("'"), 1.0, 0.0)
        for row, decision in zip(rows, decisions, strict=True)
        if decision in ("fix", "accept")
    }


def _pair(row: dict[str, str]) -> tuple[str, str]:
    return row["source_id"], row["label_name"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decision": "yes"}, "line 4 (source_id =2): found decision 'yes'"),
        ({"decision": "x" * 2_000_000}, "characters)"),
        (
            {"decision": "fix", "new_label": "maybe"},
            "line 4 (source_id =2): found new_label 'maybe'",
        ),
        ({"decision": "fix", "new_label": "y" * 2_000_000}, "characters)"),
        (
            {"decision": "drop", "source_id": "none"},
            "line 4 (source_id none): found a source_id that no",
        ),
        (
            {"decision": "drop", "source_id": "'=1"},
            "line 4 (source_id =1): found the same source_id as in line 3",
        ),
    ],
    ids=["decision", "long decision", "label", "long label", "no row", "a row twice"],
)
def test_errors_name_the_file_and_its_line(
    run: Path, complaint: Any, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    rows = [{"source_id": f"'={at}", "decision": "", "new_label": ""} for at in range(5)]
    rows[0]["decision"] = "accept"
    rows[2] |= change
    path = write(tmp_path / "r.csv", rows)
    found = complaint("apply", run, path, "--to", tmp_path / "new")
    assert f"assay: {path}: " in found
    assert said in found
    assert len(found) < 600
    assert not list(tmp_path.glob("new/*.csv"))


def test_a_review_without_decisions_makes_nothing(
    run: Path, complaint: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "r.csv", [{"source_id": "'=0", "decision": " "}])
    assert "found no decision" in complaint("apply", run, path, "--to", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_review_never_takes_the_place_of_another_run(
    run: Path, assay: Any, complaint: Any, tmp_path: Path
) -> None:
    one, other = (
        write(tmp_path / f"{verdict}.csv", [{"source_id": "'=0", "decision": verdict}])
        for verdict in ("drop", "accept")
    )
    said = assay("apply", run, one, "--to", tmp_path / "new").stdout
    assert "Applied: 1 dropped." in said
    assert "labels are flagged" in said.split("Applied")[1]
    before = (tmp_path / "new" / "run.json").read_bytes()
    assert "found another run there" in complaint("apply", run, other, "--to", tmp_path / "new")
    assert (tmp_path / "new" / "run.json").read_bytes() == before
    assert len(list((tmp_path / "new").glob("review-*"))) == 1
    # The same review goes on where it was begun.
    assay("apply", run, one, "--to", tmp_path / "new")
    assert len(list((tmp_path / "new").glob("review-*"))) == 1


def test_without_a_folder_a_review_has_one_of_its_own(
    run: Path, assay: Any, tmp_path: Path
) -> None:
    copied = tmp_path / "mine"
    shutil.copytree(run, copied)
    one, other = (
        write(tmp_path / f"{verdict}.csv", [{"source_id": "'=0", "decision": verdict}])
        for verdict in ("drop", "accept")
    )
    assay("status", copied)
    for review in (one, other, one):
        assay("apply", copied, review)
    assert sorted(p.name for p in tmp_path.glob("mine-*")) == ["mine-corrected", "mine-corrected-2"]


def test_what_was_dropped_is_explained_by_nothing(assay: Any, tmp_path: Path) -> None:
    """Methods of texts alone keep their rows of it, which no reader may list."""
    words = ["good", "bad", "long", "dull", "fine"]
    rows = [
        {"id": f"r{at}", "text": f"a {words[at % 5]} film {at}", "label": "ny"[at % 2]}
        for at in range(30)
    ]
    asked = [{"id": f"q{at}", "text": f"a {words[at]} film", "label": "n"} for at in range(3)]
    sources = {
        role: {"path": write_lines(tmp_path / f"{role}.jsonl", lines), "id": "id"}
        for role, lines in (("corpus", rows), ("queries", asked))
    }
    stages = {"bm25": {"top_k": 30}, "issues": {"stage": "near_duplicates"}}
    assay("run", write_run(tmp_path, **sources, stages=stages))
    gone = ["r0", "r5", "r7"]
    review = [{"source_id": name, "decision": "drop"} for name in gone]
    new = tmp_path / "new"
    assay("apply", tmp_path / "run", write(tmp_path / "r.csv", review), "--to", new)
    (tmp_path / "q.csv").write_text("id\nq0\nq1\n")
    for question in (
        ["--query", "q0"],
        ["--text", "a good film"],
        ["--queries", tmp_path / "q.csv"],
    ):
        found = json.loads(assay("explain", new, *question, "--top", "30", "--json").stdout)
        listed = {row["source_id"] for method in found["methods"] for row in method["helpful"]}
        assert listed == {row["id"] for row in rows} - set(gone)
    page = tmp_path / "report.html"
    assay("report", new, "--out", page)
    assert "a good film 10" in page.read_text(encoding="utf-8")
    assert "a good film 5<" not in page.read_text(encoding="utf-8")


def test_another_file_of_its_name_is_no_review_of_a_run(
    run: Path, assay: Any, complaint: Any, tmp_path: Path
) -> None:
    (tmp_path / "rv").mkdir()
    review = write(tmp_path / "rv/review.csv", [{"source_id": "'=0", "decision": "accept"}])
    mine = corrected(assay, run, tmp_path / "mine", review)
    # Where the viewer keeps decisions that nobody has applied.
    write(mine / "review.csv", [{"source_id": "'=1", "decision": "drop"}])
    assert decided(assay, mine) == {"=0": "accept"}
    mine = shutil.move(mine, tmp_path / "moved")
    assert decided(assay, mine) == {"=0": "accept"}
    (mine / "review.csv").unlink()
    review.unlink()
    assert f"found no review {review}" in complaint("flag", mine)


def test_a_review_in_the_folder_of_a_run_moves_with_it(
    run: Path, assay: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    review = write(tmp_path / "mine/review.csv", [{"source_id": "'=0", "decision": "accept"}])
    mine = corrected(assay, run, tmp_path / "mine", review)
    copied = shutil.copytree(mine, tmp_path / "copied")
    write(review, [{"source_id": "'=1", "decision": "drop"}])
    assert decided(assay, copied) == {"=0": "accept"}
    # One more review begins with the first, also where another folder lies in the first's place.
    second = write(tmp_path / "second.csv", [{"source_id": "'=2", "decision": "accept"}])
    for to in ("again", "more"):
        assay("status", copied)
        assay("apply", copied, second, "--to", tmp_path / to)
        assert decided(assay, tmp_path / to) == {"=0": "accept", "=2": "accept"}
        shutil.rmtree(mine, ignore_errors=True)


@pytest.mark.parametrize("order", [1, -1], ids=["example_id last", "source_id last"])
def test_the_last_review_counts_whatever_names_its_rows(
    run: Path, assay: Any, tmp_path: Path, order: int
) -> None:
    ids = {row["source_id"]: str(row["example_id"]) for row in flagged(assay, run, "--top", "80")}
    rows = {
        "source_id": [{"source_id": f"'={at}", "decision": "accept"} for at in range(3)],
        "example_id": [
            {"example_id": ids[f"={at}"], "decision": "fix", "new_label": "'=no"} for at in (0, 1)
        ],
    }
    reviews = [write(tmp_path / f"{key}.csv", given) for key, given in rows.items()]
    mine = corrected(assay, run, tmp_path / "mine", *reviews[::order])
    last = "fix" if order > 0 else "accept"
    assert decided(assay, mine) == {"=0": last, "=1": last, "=2": "accept"}


def test_a_review_at_a_url_counts(run: Path, assay: Any, web: Web, tmp_path: Path) -> None:
    first, second = (
        write(tmp_path / f"{at}.csv", [{"source_id": f"'={at}", "decision": "accept"}])
        for at in (0, 1)
    )
    web.files["review.csv"] = first.read_bytes()
    mine = corrected(assay, run, tmp_path / "mine", f"{web.url}/review.csv")
    assert decided(assay, mine) == {"=0": "accept"}
    assay("select", mine, "--keep", "5", "--by", "label_score", "--no-forecast")
    said = assay("apply", mine, second, "--to", tmp_path / "again").stdout
    assert "Applied: 1 accepted." in said
    assert decided(assay, tmp_path / "again") == {"=0": "accept", "=1": "accept"}
