"""The same rows under other names of classes give the same flags, and doubts are told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import write_lines, write_run

from pipeline.open_run import open_run

N = 60
STAGES = {"kernel_regression": {"kernel": ["features"]}, "label_issues": {}}
WRONG = [7, 20, 43]
NAMES: dict[str, list[Any]] = {
    "words": ["c1", "c2", "c3"],
    "numbers": [1, 2, 3],
    "gaps": [150, 300, 750],
    "text of numbers": ["10", "20", "50"],
    "floats": [1.0, 2.0, 9.0],
    "codes": ["1E1", "2E1", "3E1"],
}


def config(folder: Path, names: list[Any], **fields: Any) -> Path:
    """A run over three clusters of vectors, three of whose labels are wrong."""
    folder.mkdir()
    classes = np.arange(N) % 3
    g = np.random.default_rng(0)
    np.save(folder / "x.npy", np.eye(3)[classes] * 4 + g.normal(size=(N, 3)) / 3)
    labels = classes.copy()
    labels[WRONG] = (labels[WRONG] + 1) % 3
    rows = [{"id": i, "text": f"row {i}", "label": names[code]} for i, code in enumerate(labels)]
    corpus = {"path": write_lines(folder / "a.jsonl", rows), "id": "id", **fields}
    return write_run(folder, corpus={**corpus, "features": str(folder / "x.npy")}, stages=STAGES)


def flags(run: Path) -> list[tuple[Any, ...]]:
    statement = "SELECT example_id, label_score, is_label_issue FROM label_issues ORDER BY 1"
    return open_run(run).sql(statement).fetchall()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> list[tuple[Any, ...]]:
    given = config(tmp_path_factory.mktemp("named") / "run", NAMES["words"])
    assay("run", given)
    found = flags(given.parent / "run")
    flagged = {row[0] for row in found if row[2]}
    assert flagged
    assert flagged <= set(WRONG)
    return found


@pytest.mark.parametrize("kind", [*NAMES, "declared"])
def test_flags_do_not_depend_on_the_names_of_classes(
    kind: str, expected: list[tuple[Any, ...]], tmp_path: Path, assay: Any
) -> None:
    fields = {"classes": ["c1", "never", "c2", "nor this", "c3"]} if kind == "declared" else {}
    given = config(tmp_path / "run", NAMES.get(kind, NAMES["words"]), **fields)
    told = assay("run", given).stderr
    assert flags(given.parent / "run") == expected
    if kind == "declared":
        for said in (told, assay("plan", given).stdout, assay("run", given).stderr):
            assert "no row of the corpus has never, nor this" in " ".join(said.split())
    else:
        assert "no row of the corpus" not in told


def test_a_text_named_as_label_is_told_before_anything_is_computed(
    tmp_path: Path, assay: Any
) -> None:
    given = config(tmp_path / "run", NAMES["words"], label="text")
    plan = json.loads(assay("plan", given, "--json").stdout)
    (single, many) = plan["notes"]
    assert "60 classes of column text have one row" in single
    assert "found 60 classes in 60 rows of column text (row 0, row 1" in many
    assert "name another label column" in many
