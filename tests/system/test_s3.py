"""A store in S3: moto's server, on this machine."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BUCKET = "assay"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A client of an empty bucket; endpoint and credentials are in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
    server.stop()


def names(client: Any, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return [key for key in keys if "/.runs/" not in key]


def objects(client: Any, prefix: str) -> dict[str, bytes]:
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in names(client, prefix)
    }


def test_a_store_in_s3_is_written_resumed_and_asked(
    bucket: Any,
    unbroken: Any,
    write_config: Any,
    start: Any,
    assay: Any,
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
    assert stored.items() <= tables_of(unbroken.folder / "store").items()
    assert {"embedding", "ntk", "shapley_round"} <= {name.split("/")[0] for name in stored}
    assert contents(left).items() <= stored.items()
    assert not (tmp_path / "run/store").exists()
    status = json.loads(assay("status", tmp_path / "run", "--json").stdout)
    assert status["is_whole"]
    assert status["store"] == f"s3://{BUCKET}/store"
    best = "SELECT example_id, value FROM shapley WHERE utility = 'accuracy' ORDER BY rank LIMIT 5"
    asked = assay("sql", tmp_path / "run", best, "--json")
    local = assay("sql", unbroken.folder, best, "--json")
    assert json.loads(asked.stdout) == json.loads(local.stdout)
    # Nothing is left over but what no run has written.
    bucket.put_object(Bucket=BUCKET, Key="store/ntk/0123456789abcdef.parquet", Body=b"left")
    left = json.loads(assay("clean", f"s3://{BUCKET}/store", "--remove", "--json").stdout)
    assert left["runs"] == [str(tmp_path / "run")]
    tables = [item["path"] for item in left["items"] if item["kind"] != "map"]
    assert tables == [f"{BUCKET}/store/ntk/0123456789abcdef.parquet"]
    assert contents(objects(bucket, "store")) == stored
