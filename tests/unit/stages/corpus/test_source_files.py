"""Sources at URLs: the same rows as from disk, and what is said where they cannot be had."""

import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from processes import forget_clients
from runs import check_grammar
from web import Web
from whole_corpus import Corpus, read

from stages.corpus import remote_file, source_files
from stages.corpus.load import files_by_split, fingerprint
from stages.corpus.source import Source
from stages.corpus.source_files import SourceFile, list_files, open_file
from stages.stage import DataError
from storage.schema import StorageError

N = 50
ROWS = [{"id": i, "text": f"review {i}, é", "label": "ab"[i % 2]} for i in range(N)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "id,text,label\n" + "".join(f'{r["id"]},"{r["text"]}",{r["label"]}\n' for r in ROWS)


def parquet() -> bytes:
    data = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), data, row_group_size=7)
    return data.getvalue()


FILES = {
    "rows.csv": CSV.encode() + b"7,again,a\n8,two,many,fields\n9,caf\xe9,a\n",
    "rows.jsonl": LINES.encode() + b'{"id": 7, "text": "again", "label": "a"}\n{broken\n',
    "rows.parquet": parquet(),
}


@pytest.fixture(scope="module")
def bucket(s3: None) -> Any:
    """An empty bucket, of boto3."""
    import boto3

    bucket = boto3.resource("s3").Bucket("sources")
    bucket.create()
    return bucket


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that this process sends to S3."""
    from aiobotocore.httpsession import AIOHTTPSession

    sent: list[str] = []
    send = AIOHTTPSession.send

    async def counted(self: Any, request: Any) -> Any:
        sent.append("LIST" if "list-type" in request.url else request.method)
        return await send(self, request)

    monkeypatch.setattr(AIOHTTPSession, "send", counted)
    return sent


def put(bucket: Any, **files: bytes) -> None:
    for name, data in files.items():
        bucket.put_object(Key=name, Body=data)


def same(found: Corpus, wanted: Corpus) -> None:
    assert found.rows.equals(wanted.rows)
    assert found.rejected.drop_columns("source").equals(wanted.rejected.drop_columns("source"))
    assert found.facts == wanted.facts


@pytest.mark.parametrize("name", FILES)
def test_a_url_has_the_rows_that_the_file_has(
    bucket: Any, web: Web, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    wanted = read(Source(str(tmp_path / name), id="id"), "example")
    assert wanted.rows.num_rows == N
    bucket.put_object(Key=name, Body=FILES[name])
    same(read(Source(f"s3://sources/{name}", id="id"), "example"), wanted)
    web.files[f"some/{name}"] = FILES[name]
    url = f"{web.url}/some/{name}?download=1&name=x.txt"
    same(read(Source(url, id="id"), "example"), wanted)
    assert set(read(Source(url, id="id"), "example").rejected["source"].to_pylist()) <= {url}


@pytest.mark.parametrize("manners", ["no ranges", "no sizes", "no versions"])
def test_a_server_of_few_manners_has_them_too(
    web: Web, manners: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote_file, "FIRST_BYTES", 100)
    web.has_ranges = manners != "no ranges"
    web.has_sizes = manners != "no sizes"
    web.has_tags = manners == "no ranges"
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        web.files[name] = data
        source = Source(f"{web.url}/{name}", id="id")
        same(read(source, "example"), read(Source(str(tmp_path / name), id="id"), "example"))
        before = fingerprint(source)
        assert fingerprint(source) == before
        # Of the same size, so that bytes tell it where there is no version.
        web.files[name] = data.replace(b"review 3", b"REVIEW 3")
        assert fingerprint(source) != before


def test_parts_are_read_once_and_further_ahead(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(100_000)
    web.files["x"] = data
    monkeypatch.setattr(remote_file, "FIRST_BYTES", 1000)
    monkeypatch.setattr(remote_file, "MOST_BYTES", 16_000)
    with open_file(f"{web.url}/x") as stream:
        assert stream.read() == data
    assert web.asked["GET x"] < 15
    with open_file(f"{web.url}/x") as stream:
        for at in (99_990, 5, 50_000, 0):
            assert stream.seek(at) == at
            assert stream.read(20) == data[at : at + 20]
        assert stream.seek(-3, os.SEEK_END) == 99_997
        assert stream.read() == data[-3:]


def test_a_small_file_is_one_request_for_a_process(
    bucket: Any, web: Web, requests: list[str]
) -> None:
    put(bucket, small=CSV.encode())
    web.files["small"] = CSV.encode()
    for url in ("s3://sources/small", f"{web.url}/small"):
        (listed,) = list_files(url)
        web.asked.clear()
        requests.clear()
        for _ in range(3):
            with open_file(listed) as stream:
                assert stream.seek(5) == 5
                assert stream.read(10) == CSV.encode()[5:15]
                stream.seek(0)
                assert stream.read() == CSV.encode()
        assert [*requests, *web.asked.elements()] in (["GET"], ["GET small"])


def test_patterns_and_folders_in_an_object_store(bucket: Any, tmp_path: Path) -> None:
    names = ["set/train-0.csv", "set/train-1.csv", "set/deep/test.csv", "set/README.md", "set2.csv",
             "odd/[1] é+%20.csv", "set/.hidden.csv"]  # fmt: skip
    for name in names:
        bucket.put_object(Key=name, Body=CSV.encode())
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(CSV)
    bucket.put_object(Key="set/", Body=b"")  # what some programs make of a folder

    def splits(root: str, path: str) -> dict[str, list[str]]:
        found = files_by_split(Source(f"{root}/{path}"))
        assert found is not None
        return {s: [f.path.removeprefix(f"{root}/") for f in fs] for s, fs in found.items()}

    for path in ("set", "set/", "set/*.csv", "set/**/*.csv", "set*.csv", "odd/[1] é+%20.csv",
                 "odd/*"):  # fmt: skip
        found = splits("s3://sources", path)
        assert found == splits(str(tmp_path), path), path
        assert splits("s3a://sources", path) == found
    assert [f.path for f in list_files("s3://sources/set")] == [
        f"s3://sources/{name}" for name in sorted(names) if name.startswith("set/")
    ]
    source = Source("s3://sources/set", split="test[:3]")
    assert read(source, "example").rows.num_rows == 3


def test_an_unchanged_source_costs_a_listing(bucket: Any, requests: list[str]) -> None:
    for i in range(30):
        bucket.put_object(Key=f"many/{i:04}.csv", Body=b"text,label\na,0\n")
    for path in ("s3://sources/many", "s3://sources/many/*.csv"):
        source = Source(path)
        requests.clear()
        before = fingerprint(source)
        assert requests == ["HEAD", "LIST", "LIST"]
        bucket.put_object(Key="many/0020.csv", Body=b"text,label\nb,0\n")
        after = fingerprint(source)
        assert after != before
        bucket.put_object(Key="many/0020.csv", Body=b"text,label\na,0\n")
        assert fingerprint(source) == before
        bucket.put_object(Key="many/0030.csv", Body=b"text,label\na,0\n")
        assert fingerprint(source) not in (before, after)
        bucket.Object("many/0030.csv").delete()


def test_an_unchanged_url_costs_a_request(web: Web) -> None:
    web.files["a.csv"] = CSV.encode()
    source = Source(f"{web.url}/a.csv")
    before = fingerprint(source)
    assert dict(web.asked) == {"HEAD a.csv": 1}
    web.files["a.csv"] = CSV.replace("review 3", "REVIEW 3").encode()
    assert fingerprint(source) != before


def test_features_and_reviews_at_urls(bucket: Any, web: Web, tmp_path: Path) -> None:
    data = io.BytesIO()
    np.save(data, np.arange(2 * N).reshape(N, 2))
    review = b"source_id,decision,new_label\n3,fix,a\n4,drop,\n"
    found = []
    (tmp_path / "rows.csv").write_text(CSV)
    (tmp_path / "v.npy").write_bytes(data.getvalue())
    (tmp_path / "r.csv").write_bytes(review)
    put(bucket, **{"rows.csv": CSV.encode(), "v.npy": data.getvalue(), "r.csv": review})
    web.files |= {"rows.csv": CSV.encode(), "v.npy": data.getvalue(), "r.csv": review}
    for root in (str(tmp_path), "s3://sources", web.url):
        source = Source(
            f"{root}/rows.csv", id="id", features=f"{root}/v.npy", corrections=(f"{root}/r.csv",)
        )
        found.append(read(source, "example"))
        before = fingerprint(source)
        if root == web.url:
            web.files["r.csv"] = review.replace(b"drop", b"keep")
            assert fingerprint(source) != before
    assert found[0].rows["is_dropped"].to_pylist()[4]
    same(found[1], found[0])
    same(found[2], found[0])


@pytest.mark.parametrize("order", ["C", "F"])
def test_of_vectors_at_a_url_the_rows_asked_for_are_read(
    web: Web, monkeypatch: pytest.MonkeyPatch, order: Any
) -> None:
    from stages.corpus import vectors

    monkeypatch.setattr(remote_file, "FIRST_BYTES", 128)
    found = np.random.default_rng(0).normal(size=(10_000, 3, 5)).astype(np.float32)
    data = io.BytesIO()
    np.save(data, np.asarray(found, order=order))
    web.files["v.npy"] = data.getvalue()
    sent: list[int] = []
    part = remote_file.RemoteFile._part

    def counted(self: Any, start: int, stop: int) -> bytes:
        sent.append(stop - start)
        return part(self, start, stop)

    monkeypatch.setattr(remote_file.RemoteFile, "_part", counted)
    url = f"{web.url}/v.npy"
    assert vectors._header(url) == ((10_000, 3, 5), np.dtype(np.float32))
    assert np.array_equal(vectors._rows_of_file(url, 500, 510), found[500:510].reshape(10, 15))
    assert (sum(sent) < 200_000) == (order == "C")
    np.save(data := io.BytesIO(), np.array([{}, {}], dtype=object), allow_pickle=True)
    for wrong in (b"", b"text", data.getvalue()):
        web.files["v.npy"] = wrong
        with pytest.raises(DataError, match=r"found no array that can be loaded .* numpy\.save"):
            vectors._header(url)


def said(source: Source) -> str:
    """What is said of a source that cannot be had, within 10 s."""
    begun = time.monotonic()
    with pytest.raises((DataError, StorageError)) as error:
        fingerprint(source)
    assert time.monotonic() - begun < 10
    message = str(error.value)
    assert message.startswith(source.path.partition("?")[0])
    check_grammar(message)
    return message


def test_what_is_not_there(bucket: Any, web: Web) -> None:
    assert "found no file there" in said(Source("s3://sources/none.csv"))
    assert "found no file there" in said(Source("s3://sources/none/*.csv"))
    assert "found no such bucket, expected one that exists. Correct the path" in said(
        Source("s3://nowhere-at-all/a.csv")
    )
    assert "found no file there" in said(Source(f"{web.url}/none.csv"))
    assert "found a pattern" in said(Source(f"{web.url}/*.csv"))
    assert "found the protocol ftp" in said(Source("ftp://host/a.csv"))
    assert "AZURE_STORAGE_ACCOUNT_NAME" in said(Source("abfs://c@a.dfs.core.windows.net/a.csv"))
    bucket.put_object(Key="saved/state.json", Body=b"{}")
    with pytest.raises(DataError, match=r"found a folder that save_to_disk wrote.* on disk only"):
        files_by_split(Source("s3://sources/saved"))
    bucket.put_object(Key="pictures/a.png", Body=b"")
    with pytest.raises(DataError, match=r"expected .* files with an ending among"):
        files_by_split(Source("s3://sources/pictures"))


def test_what_is_denied(web: Web, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    web.refusals["a.csv"] = [403]
    message = said(Source(f"{web.url}/a.csv"))
    assert (
        "found that this account may not use it (403), expected leave to list and read" in message
    )
    web.refusals["a.csv"] = [401]
    assert "(401)" in said(Source(f"{web.url}/a.csv"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    web.refusals["sources/a.csv"] = [403]
    forget_clients()
    assert "may not use it (403" in said(Source("s3://sources/a.csv"))
    forget_clients()


@pytest.mark.slow
def test_a_host_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for source in (Source(f"{url}/a.csv"), Source("s3://sources/a.csv")):
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            forget_clients()
            message = said(source)
            assert "found that its server cannot be reached" in message
            assert url.removeprefix("http://") in message
    assert "cannot be reached" in said(Source("https://no-such-host.invalid/a.csv"))
    forget_clients()


def test_a_busy_server_is_asked_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import remote

    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    web.files["a.csv"] = CSV.encode()
    web.refusals["a.csv"] = [503, 503, 503, 503, 503]
    with pytest.raises(StorageError, match=r"did not answer 6 times .*\(503\)"):
        list_files(f"{web.url}/a.csv")
    assert len(waited) == 5
    monkeypatch.setattr(remote.time, "sleep", lambda _: web.refusals.clear())
    assert [file.bytes for file in list_files(f"{web.url}/a.csv")] == [len(CSV.encode())]


def test_a_file_that_changes_while_it_is_read(
    web: Web, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote_file, "FIRST_BYTES", 100)
    monkeypatch.setattr(source_files, "BUFFER_BYTES", 50)
    new = CSV.replace("review", "REVIEW").encode()
    place = tmp_path / "a.csv"

    def write(data: bytes) -> None:
        web.files["a.csv"] = data
        bucket.put_object(Key="a.csv", Body=data)
        place.unlink(missing_ok=True)
        place.write_bytes(data)

    for url in (f"{web.url}/a.csv", "s3://sources/a.csv", str(place)):
        write(CSV.encode())
        (listed,) = list_files(url)
        if url != str(place):
            with open_file(listed) as stream:
                assert stream.read(10) == CSV.encode()[:10]
                write(new)
                with pytest.raises(StorageError, match=r"found another file than when it was"):
                    stream.read()
        write(new + b"\n")
        with pytest.raises((DataError, StorageError), match=r"found a(nother)? file .* expected"):
            open_file(listed).read()
        with open_file(SourceFile(url, None, None)) as stream:
            assert stream.read() == new + b"\n"
