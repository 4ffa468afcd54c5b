"""The same run on clusters of several raylets, with one of them killed, and in S3."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from benchmarks.watched import assay

CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cores = json.loads(sys.argv[1])
cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": cores[0], "include_dashboard": False, "object_store_memory": 200 << 20
    },
)
others = [cluster.add_node(num_cpus=one, object_store_memory=200 << 20) for one in cores[1:]]
cluster.wait_for_nodes()
pids = [node.all_processes["raylet"][0].process.pid for node in others]
print(json.dumps({"address": cluster.address, "raylets": pids}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""
S3 = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
BUCKET = "bench"
REQUEST = re.compile(r'"(?:\x1b\[\d+m)*(GET|PUT|POST|HEAD|DELETE) (\S*)')


class Cluster(NamedTuple):
    """A Ray cluster on this machine."""

    address: str
    session: int
    """The session that all of its processes belong to."""
    others: list[int]
    """Raylets but the first, by number of the process."""


@contextlib.contextmanager
def cluster(cores: list[int]) -> Iterator[Cluster]:
    """As many raylets, with so many cores each."""
    # Ray's sockets allow 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    with _served([CLUSTER, json.dumps(cores)], folder, environment) as (process, said):
        told = json.loads(said)
        yield Cluster(told["address"], process.pid, told["raylets"])
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _served(
    command: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A Python program in a session of its own until it is told to end, and its first line."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise SystemExit((folder / "log").read_text())
        try:
            yield process, said
        finally:
            process.communicate(timeout=60)


def on_raylets(
    raw: dict[str, Any], work: Path, counts: list[int], settings: list[str]
) -> dict[str, Any]:
    """One process, then clusters of so many raylets with two workers, then one killed of two.

    `work` is the CPU time of one process, in that of the cluster: of the command, its workers and
    what Ray itself does meanwhile. `differ` counts files of the store that do not have the bytes of
    the one process.
    """
    found: dict[str, Any] = {}
    shutil.rmtree(work / "raylets", ignore_errors=True)

    def ran(name: str, **options: Any) -> dict[str, Any]:
        folder = work / "raylets" / name
        folder.mkdir(parents=True)
        config = folder / "config.yaml"
        options_of_ray = {"default": {"workers": 2}, **options.pop("ray", {})}
        config.write_text(
            yaml.safe_dump({**raw, "run": str(folder / "run"), "ray": options_of_ray})
        )
        words = [word for setting in settings for word in ("--set", setting)]
        return assay(config, *words, **options)

    found["one process"] = ran("process", ray={"engine": "in_process"})
    expected = _digests(work / "raylets/process/run")
    for count in counts:
        with cluster([2] if count == 1 else [1] * count) as nodes:
            there = {"RAY_ADDRESS": nodes.address}
            name = f"{count} raylets"
            found[name] = ran(str(count), also=[nodes.session], environment=there)
        found[name] |= _against(expected, _digests(work / f"raylets/{count}/run"))
    with cluster([1, 2]) as nodes:
        there = {"RAY_ADDRESS": nodes.address}
        store = work / "raylets/killed/run/store"
        killer = threading.Thread(
            target=_kill, args=(nodes.others[0], store, len(expected) // 2), daemon=True
        )
        killer.start()
        found["killed"] = ran("killed", also=[nodes.session], environment=there)
        found["killed"]["was_killed"] = not killer.is_alive()
    found["killed"] |= _against(expected, _digests(work / "raylets/killed/run"))
    for one in found.values():
        one["work"] = round(found["one process"]["cpu_s"] / one["cpu_s"], 2)
    return found


def _kill(pid: int, store: Path, n_files: int) -> None:
    """Kills a process as soon as a store has so many files."""
    while sum(1 for _ in store.rglob("*.parquet")) < n_files:
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)


def _against(expected: dict[str, str], digests: dict[str, str]) -> dict[str, int]:
    names = expected.keys() | digests.keys()
    differ = sum(expected.get(name) != digests.get(name) for name in names)
    return {"files": len(names), "differ": differ}


def _digests(run: Path) -> dict[str, str]:
    """Hashes of the shards in the store of a run."""
    store = run / "store"
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.rglob("*.parquet")
    }


def in_s3(raw: dict[str, Any], work: Path, what: list[str]) -> dict[str, Any]:
    """A run with `source`, `store` or both in S3, and one with both on disk beside it."""
    found: dict[str, Any] = {}
    folder = work / "s3"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with _served([S3], folder, dict(os.environ)) as (_, port):
        there = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(port)}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = _client(there)
        client.create_bucket(Bucket=BUCKET)
        moved = {**raw, "run": str(folder / "moved")}
        if "source" in what:
            for role in ("corpus", "queries"):
                moved[role] = {**raw[role], "path": _uploaded(client, Path(raw[role]["path"]))}
        if "store" in what:
            moved["store"] = f"s3://{BUCKET}/store"
        skipped = len((folder / "log").read_text().splitlines())
        on_disk = {**raw, "run": str(folder / "disk")}
        for name, one, environment in (("disk", on_disk, {}), ("s3", moved, there)):
            config = folder / f"{name}.yaml"
            config.write_text(yaml.safe_dump(one))
            found[name] = assay(config, environment=environment)
        lines = (folder / "log").read_text().splitlines()[skipped:]
        found["s3"]["requests"] = dict(_requests(lines))
        if "store" in what:
            found["s3"] |= _against(_digests(folder / "disk"), _in_bucket(client))
    return found


def _client(environment: dict[str, str]) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


def _uploaded(client: Any, path: Path) -> str:
    """The URL of a file or folder in the bucket."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    for file in files:
        client.upload_file(str(file), BUCKET, f"source/{file.relative_to(path.parent)}")
    return f"s3://{BUCKET}/source/{path.name}"


def _requests(lines: list[str]) -> Counter[str]:
    """How many requests of each kind a server tells of; a listing is a LIST."""
    sent: Counter[str] = Counter()
    for line in lines:
        if match := REQUEST.search(line):
            sent["LIST" if "list-type" in match[2] else match[1]] += 1
    return sent


def _in_bucket(client: Any) -> dict[str, str]:
    """Hashes of the shards in the store of the bucket."""
    digests = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="store/"):
        for item in page.get("Contents", []):
            name = item["Key"].removeprefix("store/")
            if name.endswith(".parquet"):
                body = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
                digests[name] = hashlib.sha256(body).hexdigest()
    return digests
