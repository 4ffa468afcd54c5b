"""What a user reads when something is wrong: found, expected, what to do; never a traceback.

What is refused while a run is read and planned is in tests/unit/pipeline/test_refused_configs.py;
here stands what only the work itself can find, and what commands say over a finished run.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import (
    Change,
    Raw,
    cut,
    holds,
    model_folder,
    put,
    queries,
    sentences,
    small_config,
    stages,
    write_config,
)
from runs import assay, complaint

RUN = "run"


def unreadable(raw: Raw, folder: Path) -> None:
    (folder / "blocked").write_text("")
    raw["run"] = str(folder / "blocked" / "run")


CASES: dict[str, tuple[Change, list[str]]] = {
    "wrong type, through the whole command": (
        put("shard_size", value="many"),
        ["shard_size: found 'many'", "expected", "integer", "Correct the value."],
    ),
    "kernel without vectors": (
        stages(prediction={}, freeshap={"kernel": ["label_issues"]}),
        ["freeshap", "label_issues", "vector"],
    ),
    "model folder without weights": (
        model_folder("config.json", "tokenizer.json", "tokenizer_config.json"),
        ["found no weights that can be loaded", "expected weights", "save_pretrained"],
    ),
    "model folder without tokenizer": (
        model_folder("config.json", "model.safetensors"),
        ["found", "tokenizer", "expected", "save_pretrained"],
    ),
    "checkpoint without a head": (
        put("model", "head", value="checkpoint"),
        ["found no weights for", "classifier", "expected them in the checkpoint", "head: probe"],
    ),
    "texts longer than the model allows": (
        put("model", "max_length", value=5000),
        ["found max_length: 5000", "expected at most 160", "Lower it"],
    ),
    "no queries": (
        cut("queries"),
        ["freeshap: found no queries", "expected some", "Add `queries:`, or leave the stage out"],
    ),
    "queries without labels": (
        queries([{"text": row["text"]} for row in sentences(3)], label=None),
        ["freeshap", "found no label among 3 queries", "expected at least 1", "Label some"],
    ),
    "run inside a file": (unreadable, ["blocked", "found", "expected"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_configurations_and_data(case: str, tmp_path: Path, reader: Any) -> None:
    change, fragments = CASES[case]
    said = complaint("run", write_config(tmp_path, small_config(tmp_path, reader), change))
    holds(said, *fragments)
    assert said.count("assay: ") == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, reader: Any) -> Path:
    """The folder of a finished run; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("errors")
    assay("run", write_config(folder, small_config(folder, reader)))
    return folder / RUN


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    shutil.copytree(finished, tmp_path / RUN)
    return tmp_path / RUN


COMMAND_CASES: dict[str, tuple[list[str], list[str]]] = {
    "SQL that is none": (["sql", "RUN", "SELEC 1"], ["DuckDB refuses", "expected", "examples"]),
    "SQL over a view that is not there": (
        ["sql", "RUN", "SELECT * FROM shaply"],
        ["shaply", "expected one over the views", "shapley"],
    ),
    "SQL that writes": (
        ["sql", "RUN", "CREATE TABLE t AS SELECT 1"],
        ["found CREATE", "expected one statement that reads"],
    ),
    "SQL without rows": (["sql", "RUN", "DROP VIEW examples"], ["found DROP", "that reads"]),
    "SQL that fails on the way": (
        ["sql", "RUN", "SELECT CAST(text AS BIGINT) FROM examples"],
        ["found a statement DuckDB refuses", "expected"],
    ),
    "wrong ending": (
        ["sql", "RUN", "SELECT 1", "--out", "TMP/rows.xlsx"],
        ["found the ending '.xlsx'", "expected .parquet", "Rename"],
    ),
    "output under a file": (
        ["flag", "RUN", "--top", "3", "--out", "TMP/file/rows.csv"],
        ["rows.csv: found that it cannot be written", "Name another output"],
    ),
    "unknown method": (
        ["flag", "RUN", "--method", "mine"],
        ["found --method mine", "expected one of label_issues", "Name one with --method"],
    ),
    "unknown utility": (
        ["select", "RUN", "--keep", "3", "--utility", "f1"],
        ["found --utility f1", "expected one of accuracy, cross_entropy", "--utility"],
    ),
    "unknown order": (
        ["select", "RUN", "--keep", "3", "--by", "beauty"],
        ["by='beauty'", "expected one of coreset, shapley, label_score"],
    ),
    "keep more than there are": (
        ["select", "RUN", "--keep", "17"],
        ["found '17'", "up to 16", "share such as 20%"],
    ),
    "keep more than all": (["select", "RUN", "--keep", "120%"], ["found '120%'", "up to 16"]),
    "keep less than nothing": (["select", "RUN", "--keep=-1"], ["found '-1'", "up to 16"]),
    "keep half a row": (["select", "RUN", "--keep", "1.5"], ["found '1.5'", "number of rows"]),
    "keep no number": (["select", "RUN", "--keep", "most"], ["found 'most'", "number of rows"]),
    "keep nan": (["select", "RUN", "--keep", "nan"], ["found 'nan'", "number of rows"]),
    "drop infinitely many": (["select", "RUN", "--drop", "inf%"], ["found 'inf%'", "share"]),
    "review that is not there": (
        ["apply", "RUN", "TMP/none.csv"],
        ["none.csv: found no such file", "expected a reviewed CSV", "assay flag"],
    ),
    "review that is a folder": (["apply", "RUN", "TMP"], ["found no such file", "reviewed CSV"]),
    "run that is none": (
        ["sql", "TMP", "SELECT 1"],
        ["found no run.json", "expected the folder of a run", "Name the `run:`"],
    ),
    "run that is nowhere": (["status", "TMP/nowhere"], ["found no run.json", "Name the `run:`"]),
    "run that is a file": (["flag", "TMP/file"], ["file", "expected the folder of a run"]),
}


@pytest.mark.parametrize("case", COMMAND_CASES)
def test_bad_commands(case: str, finished: Path, tmp_path: Path) -> None:
    arguments, fragments = COMMAND_CASES[case]
    (tmp_path / "file").write_text("")
    places = {"RUN": str(finished), "TMP": str(tmp_path)}
    filled = [places.get(a, a.replace("TMP/", f"{tmp_path}/")) for a in arguments]
    said = complaint(*filled)
    holds(said, *fragments)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["file"]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("source_id,decision\nID,maybe\n", ["found decision 'maybe'", "accept, fix, drop"]),
        ("source_id,decision\n999999,drop\n", ["found a source_id that no row has", "Remove"]),
        (
            "source_id,decision,new_label\nID,fix,9\n",
            ["found new_label", "expected one of 0, 1", "Write the name of the class"],
        ),
        ("source_id,decision,new_label\nID,fix,\n", ["found no new_label", "expected one of 0, 1"]),
        ("source_id,decision\nID,fix\n", ["expected new_label", "Add the column"]),
        ("source_id,why\nID,so\n", ["expected decision among them", "Add the column"]),
        ("number,decision\n1,drop\n", ["expected source_id or example_id", "Add the column"]),
        ("source_id,decision\nID,drop\nID,accept\n", ["the same source_id", "each once"]),
        ("", ["found an empty file", "fill it"]),
    ],
)
def test_bad_reviews(finished: Path, tmp_path: Path, text: str, fragments: list[str]) -> None:
    review = tmp_path / "review.csv"
    review.write_text(text.replace("ID", str(sentences(1)[0]["id"])))
    holds(complaint("apply", finished, review, "--to", tmp_path / "to"), *fragments)


def test_a_view_that_the_run_lacks_names_the_stage_to_add(tmp_path: Path, reader: Any) -> None:
    change = stages(embedding={})
    assay("run", write_config(tmp_path, small_config(tmp_path, reader), change))
    for command, stage in ((["flag"], "label_issues"), (["select", "--keep", "3"], "freeshap")):
        said = complaint(command[0], tmp_path / RUN, *command[1:])
        holds(said, "found no view", f"Add `{stage}: {{}}` under `stages:`")


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "{}", '{"tables": 3}'])
def test_corrupt_record(damaged: Path, text: str) -> None:
    (damaged / "run.json").write_text(text)
    for command in (["status"], ["sql"]):
        more = ["SELECT 1"] if command == ["sql"] else []
        said = complaint(*command, damaged, *more)
        holds(said, "run.json", "expected a run's record", f"Run `assay run {damaged}/config.yaml`")
    assay("run", damaged / "config.yaml", "--set", f"run={damaged}")
    assay("sql", damaged, "SELECT 1")


@pytest.mark.parametrize("text", ["run: [", "", "- a", None])
def test_corrupt_resolved_config(damaged: Path, tmp_path: Path, text: str | None) -> None:
    config = damaged / "config.yaml"
    written = config.read_text()
    config.unlink()
    if text is not None:
        config.write_text(text)
    # The record has the same text: whoever reads the run needs no file.
    assay("flag", damaged)
    said = assay("run", config, "--set", f"run={damaged}").stderr
    # A long path is broken over lines.
    holds("".join(said.split()), "config.yamlwasdamaged:itiswrittenagain")
    assert yaml.safe_load(config.read_text())["stages"] == yaml.safe_load(written)["stages"]
    for file in (config, damaged / "run.json"):
        file.write_text(text or "")
    review = tmp_path / "review.csv"
    review.write_text("source_id,decision\n1,drop\n")
    holds(complaint("apply", damaged, review), "config.yaml", "found", "expected")


def test_corrupt_catalog(damaged: Path) -> None:
    (damaged / "catalog.duckdb").write_bytes(b"no database at all" * 1000)
    # A catalog that was changed is not opened: the views come from the manifests.
    assert json.loads(assay("sql", damaged, "SELECT 1 AS one", "--json").stdout) == [{"one": 1}]
    assay("status", damaged)
    assay("sql", damaged, "SELECT 1")
    (damaged / "catalog.duckdb").unlink()
    holds(complaint("sql", damaged, "SELECT 1"), "found no catalog", "assay status")
    assay("status", damaged)
    assay("sql", damaged, "SELECT 1")


@pytest.mark.parametrize("table", ["text", "label", "ntk"])
def test_corrupt_and_missing_shards(damaged: Path, table: str) -> None:
    shards = sorted((damaged / "store" / table).glob("*.parquet"))
    again = [
        "run",
        damaged / "config.yaml",
        "--set",
        f"run={damaged}",
        "--set",
        "stages.freeshap.seed=1",
    ]
    assay("status", damaged)
    view = {"text": "examples", "label": "examples", "ntk": "ntk"}[table]
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:100])
    said = complaint("sql", damaged, f"SELECT * FROM {view}")
    holds(said, "found a file of 100 bytes", "expected", shards[0].parent.name)
    said = assay(*again).stderr
    holds(" ".join(said.split()), f"{len(shards)} damaged files were found", f"{table}/")
    assert sorted((damaged / "store" / table).glob("*.parquet")) == shards
    for shard in shards:
        shard.unlink()
    assay(*again)
    assert sorted((damaged / "store" / table).glob("*.parquet")) == shards


def test_corrupt_manifest(damaged: Path) -> None:
    for manifest in (damaged / "store" / "ntk").glob("*.json"):
        manifest.write_text("{")
    again = ["run", damaged / "config.yaml", "--set", f"run={damaged}"]
    holds(" ".join(assay(*again).stderr.split()), "1 damaged file was found", "ntk/")
    assay("sql", damaged, "SELECT count(*) FROM ntk")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_that_may_not_be_written(finished: Path, tmp_path: Path, reader: Any) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    said = complaint("sql", finished, "SELECT 1", "--out", closed / "rows.csv")
    holds(said, "found that it cannot be written", "Name another output")
    change = put("run", value=str(closed / "run"))
    path = write_config(tmp_path, small_config(tmp_path, reader), change)
    holds(complaint("run", path), "closed", "found", "expected")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["select", "RUN"], ["none of --keep, --drop, --quota and --soft", "--keep 20%"]),
        (["select", "RUN", "--keep", "3", "--drop", "3"], ["--keep and --drop of --keep"]),
        (["flag", "RUN", "--top", "0"], ["--top", "0"]),
        (["sql", "RUN"], ["STATEMENT"]),
        (["plann"], ["plann"]),
        (["sql", "RUN", "SELECT 1", "--out", "."], ["is a directory"]),
        (["run"], ["CONFIG"]),
        (["status", "RUN", "--yaml"], ["--yaml"]),
    ],
)
def test_misuse_ends_with_2(finished: Path, arguments: list[str], fragments: list[str]) -> None:
    filled = [str(finished) if argument == "RUN" else argument for argument in arguments]
    holds(complaint(*filled, code=2), *fragments)
