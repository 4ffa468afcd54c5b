"""A store in S3: moto's server, on this machine."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import write_lines, write_run

BUCKET = "assay"


@pytest.fixture(scope="module")
def bucket(s3: None) -> Any:
    """A client of an empty bucket."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    return client


def names(client: Any, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return [key for key in keys if "/.runs/" not in key and "/.sources/" not in key]


def objects(client: Any, prefix: str) -> dict[str, bytes]:
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in names(client, prefix)
    }


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many requests this process has sent to S3, by method; a listing is a LIST."""
    from aiobotocore.httpsession import AIOHTTPSession

    sent: Counter[str] = Counter()
    send = AIOHTTPSession.send

    async def counted(self: Any, request: Any) -> Any:
        sent["LIST" if "list-type" in request.url else request.method] += 1
        return await send(self, request)

    monkeypatch.setattr(AIOHTTPSession, "send", counted)
    return sent


def test_requests_follow_the_number_of_shards(
    bucket: Any, requests: Counter[str], assay: Any, tmp_path: Path
) -> None:
    """At most three a shard for a run, 20 where nothing is to do, one for each file of a query."""
    rng = np.random.default_rng(0)
    sources = {}
    for role, n in (("corpus", 200), ("queries", 40)):
        kinds = rng.integers(0, 3, n)
        np.save(tmp_path / f"{role}.npy", rng.normal(size=(n, 4)).astype(np.float32))
        rows = [{"text": f"{role} {i}", "kind": "abc"[kind]} for i, kind in enumerate(kinds)]
        path = write_lines(tmp_path / f"{role}.jsonl", rows)
        features = str(tmp_path / f"{role}.npy")
        sources[role] = {"path": path, "text": "text", "label": "kind", "features": features}
    kernel = {"kernel": ["features"]}
    stages = {
        "kernel_regression": kernel,
        "label_issues": {},
        "similarity": {"features": "features"},
        "freeshap": {**kernel, "rounds": 11, "units_per_round": 2},
    }
    config = write_run(tmp_path, **sources, stages=stages, store=f"s3://{BUCKET}/counted")
    assay("run", config)
    n_shards = sum(name.endswith(".parquet") for name in names(bucket, "counted"))
    assert n_shards > 50
    assert requests.total() <= 3 * n_shards, requests
    assert requests["HEAD"] <= 2
    requests.clear()
    again = assay("run", config)
    assert "0 tasks to do" in " ".join(again.stderr.split())
    assert requests.total() <= 20, requests
    for view, table in (("label_issues", "label_issues"), ("shapley", "shapley_value")):
        requests.clear()
        assay("sql", tmp_path / "run", f"SELECT count(*) FROM {view}")
        files = [n for n in names(bucket, f"counted/{table}") if n.endswith(".parquet")]
        assert requests.total() == len(files), requests


def test_damage_in_an_object_store_is_told_and_computed_again(
    bucket: Any, write_config: Any, assay: Any, complaint: Any, contents: Any, tmp_path: Path
) -> None:
    stages = {"kernel_regression": {"kernel": ["embedding"]}, "label_issues": {}}
    config = write_config(tmp_path, store=f"s3://{BUCKET}/damaged", stages=stages)
    assay("run", config)
    whole = objects(bucket, "damaged")
    name = next(name for name in whole if name.startswith("label/") and name.endswith(".parquet"))
    flipped = bytearray(whole[name])
    flipped[len(flipped) // 2] ^= 4
    bucket.put_object(Bucket=BUCKET, Key=f"damaged/{name}", Body=bytes(flipped))
    assert name in complaint("flag", tmp_path / "run")
    assert name in assay("verify", tmp_path / "run", "--repair").stdout
    for table in ("prediction", "text"):
        shard = next(n for n in whole if n.startswith(f"{table}/") and n.endswith(".parquet"))
        bucket.put_object(Bucket=BUCKET, Key=f"damaged/{shard}", Body=b"")
    said = " ".join(assay("run", config).stderr.split())
    assert "prediction/" in said
    assert "text/" in said
    assert contents(objects(bucket, "damaged")) == contents(whole)
    assay("verify", tmp_path / "run")


def test_credentials_in_a_url_reach_no_file(
    bucket: Any, write_config: Any, complaint: Any, tmp_path: Path
) -> None:
    for number, url in enumerate(
        (f"s3://KEY:hidden@{BUCKET}/x", f"s3://{BUCKET}/x?X-Amz-Signature=hidden")
    ):
        config = write_config(tmp_path / str(number))
        said = complaint("run", config, "--set", f"store={url}")
        assert "found credentials" in said
        assert "hidden" not in said
        written = [p for p in (tmp_path / str(number)).rglob("*") if p.is_file()]
        assert not any(b"hidden" in p.read_bytes() for p in written)


def test_a_bucket_that_is_not_there_and_no_credentials(
    bucket: Any, write_config: Any, complaint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    config = write_config(tmp_path, store="s3://nowhere-at-all/x")
    assert "found no such bucket" in complaint("run", config)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    config = write_config(tmp_path, store=f"s3://{BUCKET}/x")
    assert "found no credentials" in complaint("run", config)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_in_s3_is_written_resumed_and_asked(
    bucket: Any,
    unbroken: Any,
    write_config: Any,
    start: Any,
    assay: Any,
    complaint: Any,
    contents: Any,
    tables_of: Any,
    tmp_path: Path,
) -> None:
    stages = {"freeshap": {"rounds": 6, "units_per_round": 1}}
    config = write_config(tmp_path, store=f"s3://{BUCKET}/store", stages=stages)
    with start("run", config) as process:
        while process.poll() is None:
            if names(bucket, "store/ntk"):
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = objects(bucket, "store")
    assert not [name for name in left if name.startswith("ntk/") and name.endswith(".json")]
    status = json.loads(assay("status", tmp_path / "run", "--json").stdout)
    assert not status["is_whole"]
    assay("run", config)
    stored = contents(objects(bucket, "store"))
    right = tables_of(unbroken.folder / "store")
    assert stored == {name: right.get(name) for name in stored}
    assert {"embedding", "ntk", "shapley_round", "shapley_value"} <= {
        name.split("/")[0] for name in stored
    }
    assert contents(left).items() <= stored.items()
    assert not (tmp_path / "run/store").exists()
    status = json.loads(assay("status", tmp_path / "run", "--json").stdout)
    assert status["is_whole"]
    assert status["store"] == f"s3://{BUCKET}/store"
    best = "SELECT example_id, value FROM shapley WHERE utility = 'accuracy' ORDER BY rank LIMIT 5"
    asked = assay("sql", tmp_path / "run", best, "--json")
    local = assay("sql", unbroken.folder, best, "--json")
    assert json.loads(asked.stdout) == json.loads(local.stdout)
    # A statement reads the store's tables, and a folder of somebody else's is opened without SQL.
    bucket.put_object(Bucket=BUCKET, Key="secret.csv", Body=b"a\n1\n")
    bucket.put_object(Bucket=BUCKET, Key="store/secret.csv", Body=b"a\n1\n")
    # Outside of the store nothing may be read; in it nothing is there but the files of its tables.
    for secret, refusal in (
        ("secret.csv", "leaves the run's tables"),
        ("store/secret.csv", "No files found"),
    ):
        said = complaint("sql", tmp_path / "run", f"FROM read_csv('s3://{BUCKET}/{secret}')")
        assert refusal in said
    made = f"COPY (SELECT 1) TO 's3://{BUCKET}/store/made.csv'"
    assert "found COPY" in complaint("sql", tmp_path / "run", made)
    bucket.delete_object(Bucket=BUCKET, Key="store/secret.csv")
    shutil.copytree(tmp_path / "run", tmp_path / "unpacked")
    (tmp_path / "unpacked" / "catalog.duckdb").write_bytes(b"")
    theirs = assay("sql", tmp_path / "unpacked", best, "--json", "--out", tmp_path / "best.parquet")
    assert "5 rows" in theirs.stderr
    assert pq.read_table(tmp_path / "best.parquet").to_pylist() == json.loads(local.stdout)
    # Nothing is left over but what no run has written.
    bucket.put_object(Bucket=BUCKET, Key="store/ntk/0123456789abcdef.parquet", Body=b"left")
    left = json.loads(assay("clean", f"s3://{BUCKET}/store", "--remove", "--json").stdout)
    assert left["runs"] == [str(tmp_path / "run")]
    tables = [item["path"] for item in left["items"] if item["kind"] != "map"]
    assert tables == [f"{BUCKET}/store/ntk/0123456789abcdef.parquet"]
    assert contents(objects(bucket, "store")) == stored
