"""Parts of benchmarks that make what the product reads, at sizes of nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def _with_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_values_by_neighbours_are_those_of_the_plain_formula() -> None:
    from benchmarks.knn_contestant import Data, assay, plain

    drawn = np.random.default_rng(0)

    def unit(n: int) -> np.ndarray:
        rows = drawn.normal(size=(n, 8)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    data = Data(unit(60), drawn.integers(0, 2, 60), unit(9), drawn.integers(0, 2, 9))
    np.testing.assert_allclose(assay(data, 3), plain(data, 3), atol=1e-6)


@pytest.mark.slow
def test_best_pairs_are_those_of_the_bare_product(tmp_path: Path) -> None:
    from benchmarks.pairs import timed, write_vectors

    write_vectors(tmp_path, 200, 3)
    timed("assay", Path(sys.executable), tmp_path)
    found = np.load(tmp_path / "assay.npy")
    queries, examples = (
        np.load(tmp_path / f"{name}.npy").astype(np.float32) for name in ("queries", "examples")
    )
    above = np.argwhere(queries @ examples.T > 0)
    assert set(found) <= set(above @ [2**32, 1])
    best = (queries @ examples.T).argmax(1)
    assert set(found) >= set(np.arange(3) * 2**32 + best)


def test_questions_about_many_shards_have_answers(tmp_path: Path) -> None:
    from benchmarks.storage import QUESTIONS, write_run

    from pipeline.folder import RunFolder
    from pipeline.open_run import open_run

    write_run(tmp_path / "run", 4400, 2, 2)
    RunFolder(tmp_path / "run").rebuild_catalog()
    run = open_run(tmp_path / "run")
    assert all(run.sql(question).fetchall() for question in QUESTIONS.values())


def test_a_stage_of_one_task_has_no_steady_rate() -> None:
    from benchmarks.finished import Clock

    clock = Clock()
    clock.steady = {"one": (0, 0.0), "more": (6, 2.0)}
    assert clock.rows_per_cpu_s("one") is None
    assert clock.rows_per_cpu_s("more") == 3


@pytest.mark.parametrize("is_native", [True, False])
def test_mixed_precision_contests_where_it_is_not_emulated(
    monkeypatch: pytest.MonkeyPatch, is_native: bool
) -> None:
    from benchmarks.features import computable

    monkeypatch.setattr("stages.model.precision.has_bfloat16", lambda device: is_native)
    assert computable(["plain", "assay_bfloat16"]) == ["plain", "assay_bfloat16"][: 1 + is_native]


@pytest.mark.parametrize("is_regression", [True, False])
def test_ways_of_smoothing_are_stages_of_a_run(is_regression: bool) -> None:
    from benchmarks.token_smoothing import methods

    from pipeline.config import parse_stage
    from stages.model.spec import ModelSpec

    for name, fields in methods(is_regression, 2).items():
        assert parse_stage(name, fields, ModelSpec("owner/name"), "bench")
