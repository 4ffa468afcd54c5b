"""A finished run is known to have nothing to do without its stages, and any change is noticed."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from runs import assay, write_lines, write_run

import pipeline.unchanged
from pipeline.given import given_in_file
from pipeline.unchanged import finished_already
from stages.pairs.similarity import Similarity

HEAVY = ("torch", "transformers", "ray", "datasets", "scipy")


class Finished(NamedTuple):
    """A finished run, its YAML and its inputs."""

    folder: Path
    config: Path
    model: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def file(self, table: str, kind: str = "parquet") -> Path:
        """The last file of a table of the run in the store."""
        return sorted((self.run / "store" / table).glob(f"*.{kind}"))[-1]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, reader_folder: Path) -> Finished:
    """A run over texts with vectors, one corrected label, a model, and a merged stage."""
    folder = tmp_path_factory.mktemp("unchanged")
    model = folder / "model"
    shutil.copytree(reader_folder, model)
    rows = [{"id": i, "text": f"a film {i}", "label": i % 2} for i in range(24)]
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(24, 3)))
    np.save(folder / "few.npy", np.ones((3, 3)))
    review = [{"source_id": "1", "decision": "fix", "new_label": "0"}]
    stages = {"embedding": {}, "similarity": {"features": "features"}, "random_score": {}}
    config = write_run(
        folder,
        shard_size=8,
        model={"path": str(model), "max_length": 12},
        corpus={
            "path": write_lines(folder / "train.jsonl", rows),
            "id": "id",
            "features": str(folder / "vectors.npy"),
            "corrections": [write_lines(folder / "review.jsonl", review)],
        },
        queries={
            "path": write_lines(folder / "test.jsonl", rows[:3]),
            "id": "id",
            "features": str(folder / "few.npy"),
        },
        stages=stages,
    )
    assay("run", config)
    return Finished(folder, config, model)


def is_known(done: Finished) -> bool:
    """Whether the run is known to have nothing to do."""
    return finished_already(given_in_file(done.config)) is not None


@contextlib.contextmanager
def put(path: Path, data: bytes | None) -> Iterator[None]:
    """Within, the file `path` holds `data`, or is gone."""
    before = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    yield
    path.write_bytes(before)


def flipped(path: Path, at: int = 100) -> bytes:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    return bytes(data)


def replaced(path: Path, old: bytes, new: bytes) -> bytes:
    assert old in path.read_bytes()
    return path.read_bytes().replace(old, new, 1)


FILES: dict[str, Callable[[Finished], tuple[Path, bytes | None]]] = {
    "another field in the YAML": lambda d: (
        d.config,
        replaced(d.config, b"random_score: {}", b"random_score: {seed: 1}"),
    ),
    "another label in the corpus": lambda d: (
        d.folder / "train.jsonl",
        replaced(d.folder / "train.jsonl", b'"label": 1', b'"label": 0'),
    ),
    "another query": lambda d: (
        d.folder / "test.jsonl",
        replaced(d.folder / "test.jsonl", b"film 2", b"film 7"),
    ),
    "another vector": lambda d: (d.folder / "vectors.npy", flipped(d.folder / "vectors.npy", 300)),
    "another correction": lambda d: (
        d.folder / "review.jsonl",
        replaced(d.folder / "review.jsonl", b'"1"', b'"3"'),
    ),
    "another weight": lambda d: (
        d.model / "model.safetensors",
        flipped(d.model / "model.safetensors", 9000),
    ),
    "another class name": lambda d: (
        d.model / "config.json",
        (d.model / "config.json").read_bytes() + b" ",
    ),
    "no model": lambda d: (d.model / "config.json", None),
    "no corpus": lambda d: (d.folder / "train.jsonl", None),
    "a removed shard": lambda d: (d.file("embedding"), None),
    "a cut shard": lambda d: (d.file("attribution"), d.file("attribution").read_bytes()[:-1]),
    "another byte in a shard": lambda d: (d.file("text"), flipped(d.file("text"))),
    "a removed manifest": lambda d: (d.file("embedding", "json"), None),
    "another byte in a manifest": lambda d: (
        d.file("embedding", "json"),
        replaced(d.file("embedding", "json"), b'"rows": 8', b'"rows": 9'),
    ),
    "another resolved YAML": lambda d: (
        d.run / "config.yaml",
        (d.run / "config.yaml").read_bytes() + b"\n",
    ),
    "no catalog": lambda d: (d.run / "catalog.duckdb", None),
    "another byte in the catalog": lambda d: (
        d.run / "catalog.duckdb",
        flipped(d.run / "catalog.duckdb", 5000),
    ),
    "a damaged record": lambda d: (d.run / "run.json", flipped(d.run / "run.json")),
}


@pytest.mark.parametrize("change", FILES)
def test_a_changed_file_is_noticed(done: Finished, change: str) -> None:
    """Whichever file of the inputs, the run or the store it is; put back, nothing is to do."""
    with put(*FILES[change](done)):
        assert not is_known(done)
    assert is_known(done)


def test_other_code_is_noticed(done: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage of another version in this process, another source, another package."""
    with monkeypatch.context() as patched:
        patched.setattr(Similarity, "version", Similarity.version + 1)
        assert not is_known(done)
    for name in ("source_digest", "package_version"):
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.unchanged, name, lambda *_: "another")
            assert not is_known(done)
    assert is_known(done)


def test_other_places_are_noticed(
    done: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that was copied elsewhere, an override, another working folder."""
    elsewhere = tmp_path / "run"
    shutil.copytree(done.run, elsewhere)
    moved = given_in_file(done.config, [f"run={json.dumps(str(elsewhere))}"])
    assert finished_already(moved) is None
    assert finished_already(given_in_file(done.config, ["stages.random_score.seed=2"])) is None
    monkeypatch.chdir(tmp_path)
    assert not is_known(done)


def test_a_change_is_computed_and_then_known(done: Finished) -> None:
    """The run is planned after a change, computes what it touches, and is then known again."""
    with put(done.file("embedding"), None):
        said = " ".join(assay("run", done.config).stderr.split())
    assert "1 damaged file was found and computed again" in said
    assert is_known(done)


def run_alone(config: Path) -> Any:
    """What `assay run --json` shows in a process of its own, and what that imported."""
    code = (
        "import json, sys; from pipeline.cli import main; "
        "main(['run', sys.argv[1], '--json'], standalone_mode=False); "
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(config)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    shown, imported = ran.stdout.splitlines()
    return json.loads(shown), json.loads(imported), " ".join(ran.stderr.split())


def test_nothing_heavy_is_imported(done: Finished) -> None:
    """A finished run shows what it showed before, without torch, transformers, Ray or datasets."""
    before = json.loads(assay("run", done.config, "--json").stdout)
    shown, imported, said = run_alone(done.config)
    assert imported == []
    assert shown == before
    assert "24 examples and 3 queries" in said
    assert ": 0 tasks to do, " in said
