"""Data sets of the hub: a stand-in for it, on this machine."""

import hashlib
import http.server
import io
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet
import pytest
from processes import run_code

from stages.corpus.hub_sets import most_rows

JSONL = "".join(json.dumps({"text": f"review {i}", "label": i % 2}) + "\n" for i in range(6))
CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: "rows/train-*.parquet"}
  - {split: test, path: "rows/test.parquet"}
dataset_info:
  features:
  - {name: text, dtype: string}
  - name: label
    dtype:
      class_label:
        names: {'0': bad, '1': good}
---
# tables
"""


def parquet(texts: list[str], labels: list[int]) -> bytes:
    data = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": texts, "label": labels}), data)
    return data.getvalue()


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that is asked, for two small repositories."""

    protocol_version = "HTTP/1.1"
    commit: ClassVar[str] = "a" * 40
    asked: ClassVar[list[str]] = []
    repositories: ClassVar[dict[str, dict[str, bytes]]] = {
        "someone/reviews": {
            "README.md": b"# reviews\n",
            "data/train-00000.jsonl": JSONL.encode(),
            "data/test-00000.jsonl": b'{"text": "query", "label": 1}\n',
        },
        "someone/tables": {
            "README.md": CARD,
            "rows/train-0.parquet": parquet(["a", "b"], [1, 0]),
            "rows/train-1.parquet": parquet(["c"], [1]),
            "rows/test.parquet": parquet(["q"], [0]),
            "other/train.parquet": parquet(["not asked for"], [0]),
        },
    }

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Answers a repository's facts, its folders and its files."""
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.asked.append(f"{self.command} {path}")
        named = re.match(r"/(api/)?datasets/(someone/\w+)(.*)", path)
        files = self.repositories.get(named[2]) if named else None
        if named is None or files is None:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        _, kind, *rest = [*named[3].split("/", 3), "", ""]
        below = rest[1]
        if kind == "resolve":
            if below not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.part(files[below])
        if kind in ("", "revision"):
            names = [{"rfilename": name} for name in files]
            facts = {"id": named[2], "sha": self.commit, "siblings": names}
            return self.answer(200, json.dumps({**facts, "private": False, "tags": []}).encode())
        if kind == "tree":
            is_deep = "recursive=true" in url.query.lower()
            return self.answer(200, json.dumps(entries(files, below, is_deep)).encode())
        return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def part(self, data: bytes) -> None:
        """Sends a file, or the part of it that is asked for."""
        tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            return self.answer(200, data, tag)
        return self.answer(206, data[int(wanted[1]) : int(wanted[2]) + 1], tag)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends one response."""
        self.send_response(status)
        facts = {"X-Repo-Commit": self.commit, "Content-Length": str(len(body))}
        for name, value in {**facts, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entries(files: dict[str, bytes], folder: str, is_deep: bool) -> list[dict[str, Any]]:
    """What lies in a folder of a repository, or anywhere below it."""
    begin = f"{folder}/" if folder else ""
    below = [name.removeprefix(begin) for name in files if name.startswith(begin)]
    found: dict[str, dict[str, Any]] = {}
    for name in below:
        inner, slash, _ = name.partition("/")
        if slash:
            found[inner] = {"type": "directory", "size": 0, "oid": "c" * 40}
        if is_deep or not slash:
            data = files[begin + name]
            oid = hashlib.sha1(data).hexdigest()
            found[name] = {"type": "file", "size": len(data), "oid": oid}
    return [{**facts, "path": begin + name} for name, facts in found.items()]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that asks the stand-in for the hub, with an empty cache."""
    Hub.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }
        server.shutdown()
        thread.join()


CODE = """
import os
from pathlib import Path
from stages.corpus.ingest import survey
from stages.corpus.load import fingerprint, load
from stages.corpus.source import Source
from stages.stage import DataError
source = Source("someone/SET", split="train[:4]")
rows = load(source).table
classes = survey(source, "example").classes
print(rows["text"].to_pylist(), rows["label"].to_pylist(), classes)
print(sum(1 for _ in Path(os.environ["HF_HOME"]).rglob("*.arrow")))
whole = load(Source("someone/SET", split="train")).table
print(whole["text"].to_pylist()[-2:], fingerprint(source) == fingerprint(source))
print(fingerprint(source))
print(fingerprint(Source("someone/SET", split="train[:5]")))
for wrong in (
    Source("someone/SET"),
    Source("someone/SET", split="dev"),
    Source("someone/SET", name="small", split="train"),
    Source("someone/missing", split="train"),
):
    try:
        survey(wrong, "example")
    except DataError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("name", "rows", "last"),
    [
        pytest.param(
            "reviews",
            "['review 0', 'review 1', 'review 2', 'review 3'] [0, 1, 0, 1] ('0', '1')",
            "['review 4', 'review 5']",
            marks=pytest.mark.slow,
        ),
        ("tables", "['a', 'b', 'c'] [1, 0, 1] ('bad', 'good')", "['b', 'c']"),
    ],
)
def test_data_sets_are_read_by_file_or_by_datasets(
    hub: dict[str, str], name: str, rows: str, last: str
) -> None:
    code = CODE.replace("SET", name)
    found, n_cached, whole, first, other, *errors = run_code(code, **hub).splitlines()
    assert found == rows
    # What is read by file, or of which a few rows are read, is in no cache.
    assert n_cached == "0"
    assert whole == f"{last} True"
    assert first != other
    assert len(errors) == 4
    assert "found the splits train, test, expected to be told which. Set split" in errors[0]
    assert re.search(r"train.*test.*expected 'dev' among|Should be one of .*train.*test", errors[1])
    assert "BuilderConfig 'small' not found" in errors[2]
    assert "'someone/missing' doesn't exist on the Hub" in errors[3]
    assert "Correct path, name or revision" in errors[3]


def test_a_hub_that_may_not_be_reached(tmp_path: Path) -> None:
    code = """
from stages.corpus.load import load
from stages.corpus.source import Source
from stages.stage import DataError
try:
    load(Source("someone/reviews", split="train"))
except DataError as error:
    print(error)
"""
    printed = run_code(code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "someone/reviews: found data that cannot be loaded" in printed
    assert "HF_HUB_OFFLINE is set" in printed
    assert "point path to a local copy" in printed


@pytest.mark.parametrize(
    ("expression", "most"),
    [
        ("train[:100]", 100),
        ("train[20:30]+test", 30),
        ("train[:10]+train[40:50]", 50),
        ("train", None),
        ("train[:50%]", None),
        ("train[-5:]", None),
        ("train[:10]+train[5:]", None),
        ("train(:10)", None),
        ("all", None),
        ("test[:10]", 0),
        (None, None),
    ],
)
def test_how_many_rows_an_expression_needs(expression: str | None, most: int | None) -> None:
    assert most_rows(expression, "train") == most
