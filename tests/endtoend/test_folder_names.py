"""The names of folders say nothing: a run below any folder equals one below a plain one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import write_lines, write_run

from pipeline.open_run import open_run

ODD = [
    "role=admin/text=short/id=7",
    "label=1/example_id=2/run_id=x",
    'two words, it\'s "quoted"',
    "100%20 #1 a&b;c",
    "[ab]*",
    "{a,b}/**",
    "ü 映画",
    "test/train=1",
    "a::b",
]


def rows(n: int) -> list[dict[str, Any]]:
    return [{"id": i, "text": f"row {i}", "label": i % 2, "filename": f"f{i}"} for i in range(n)]


def finished(folder: Path, assay: Any) -> Path:
    """The folder of a run over vectors and a folder of data files, all of it below `folder`."""
    (folder / "data").mkdir(parents=True)
    for split, n in (("train", 9), ("test", 4)):
        write_lines(folder / "data" / f"{split}.jsonl", rows(n))
        np.save(folder / f"{split}.npy", np.random.default_rng(n).normal(size=(n, 3)))
    source = {"path": "data", "id": "id"}
    stages = {"kernel_regression": {"kernel": ["features"]}, "similarity": {"features": "features"}}
    config = write_run(
        folder,
        corpus={**source, "split": "train", "features": "train.npy"},
        queries={**source, "split": "test", "features": "test.npy"},
        shard_size=4,
        stages=stages,
    )
    assay("run", config)
    return folder / "run"


def views(run: Path) -> dict[str, Any]:
    """The rows of every view, without the names of files and runs, and without times."""
    opened = open_run(run)
    found = {}
    for view in opened.views():
        columns = opened.sql(f"FROM {view}").columns
        hidden = {"run_id", "source", "created", "seconds"} if view != "predictions" else {"run_id"}
        kept = ", ".join(f'"{name}"' for name in columns if name not in hidden)
        found[view] = (kept, opened.sql(f"SELECT {kept} FROM {view} ORDER BY ALL").fetchall())
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> dict[str, Any]:
    return views(finished(tmp_path_factory.mktemp("plain"), assay))


@pytest.mark.parametrize("name", ODD)
def test_a_run_below_an_odd_folder_equals_one_below_a_plain_one(
    name: str, plain: dict[str, Any], tmp_path: Path, assay: Any
) -> None:
    run = finished(tmp_path / name, assay)
    # What the name would match, were it a pattern.
    for decoy in ("a*", "axy", "a/b", "b"):
        if not (tmp_path / decoy).exists():
            shutil.copytree(tmp_path / name, tmp_path / decoy)
    assert plain["examples"][1][0][:3] == (0, "0", "row 0")
    found = views(run)
    assert found.keys() == plain.keys()
    for view in plain:
        assert found[view] == plain[view], view
    files = open_run(run).files("tables.text")
    assert len(files) == 4
    assert all(Path(file).is_file() and file.startswith(str(run)) for file in files)


def test_a_question_mark_is_refused_before_anything_is_computed(
    tmp_path: Path, complaint: Any
) -> None:
    lines = write_lines(tmp_path / "rows.jsonl", rows(9))
    np.save(tmp_path / "x.npy", np.eye(9))
    source = {"path": lines, "features": str(tmp_path / "x.npy")}
    stages = {"kernel_regression": {"kernel": ["features"]}}
    config = write_run(tmp_path / "why?", corpus=source, stages=stages)
    said = complaint("run", config)
    assert "found a question mark in the path of a run" in said
    assert not list(tmp_path.rglob("prediction/*"))
