"""Files that were hashed are not hashed again until somebody touches them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.corpus.ingest import REJECTED
from storage import catalog_files, hashed
from storage.catalog import open_catalog
from storage.catalog_files import CatalogFiles
from storage.manifest import Manifest
from storage.schema import CorruptError, MissingError
from storage.table import Store
from storage.views import Entry, build_catalog

TABLE = REJECTED.name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three shards, written ten seconds ago."""
    store = Store(str(tmp_path / "store"))
    for key in "abc":
        cells = [["example"] * 3, ["source"] * 3, range(3), list("xyz"), ["empty"] * 3, [key] * 3]
        store.write_shard(REJECTED, key, "", 0, pa.table(cells, schema=REJECTED.schema))
    return store


@pytest.fixture
def files(store: Store, tmp_path: Path) -> Iterator[Any]:
    """Opens the catalog's files anew, as each command does."""
    records = [store.record_of(REJECTED, key, "", at) for at, key in enumerate("abc")]
    manifest = Manifest(TABLE, "ingest", 1, {}, {}, tuple(records))
    store.write_manifest(manifest)
    build_catalog(tmp_path / "catalog.duckdb", [Entry("corpus", manifest)], store, "run", {})
    connection = open_catalog(tmp_path / "catalog.duckdb")
    yield lambda: CatalogFiles(connection, Store(store.root), tmp_path / "hashed")
    connection.close()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the shards that were hashed, as every process begins: it has checked none."""
    keys: list[str] = []

    def check(self: Store, table: str, key: str, listed: Any = None) -> None:
        keys.append(key)
        self._shard(table, key, listed)

    monkeypatch.setattr(Store, "check_shard", check)
    return keys


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files were written long ago."""
    real = time.time
    monkeypatch.setattr(catalog_files.time, "time", lambda: real() + 60)


def path(store: Store, key: str) -> Path:
    return Path(store.path(TABLE, f"{key}.parquet"))


@pytest.mark.usefixtures("later")
def test_a_file_is_hashed_once(files: Any, read: list[str]) -> None:
    files().check([TABLE])
    files().check([TABLE], most_bytes=None)
    assert read == ["a", "b", "c"]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("hides", [False, True])
def test_a_file_that_was_touched_is_hashed_again(
    files: Any, read: list[str], store: Store, hides: bool
) -> None:
    """Also where size, inode and time of writing are put back as they were."""
    files().check([TABLE])
    before = path(store, "b").stat()
    with path(store, "b").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0] ^ 1
        file.seek(100)
        file.write(bytes([byte]))
    if hides:
        os.utime(path(store, "b"), ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path(store, "b").stat().st_mtime_ns == before.st_mtime_ns
    for _ in range(2):
        with pytest.raises(CorruptError, match="b.parquet"):
            files().check([TABLE])
    assert read == ["a", "b", "c", "b", "b"]


def test_a_file_that_was_just_written_is_not_remembered(
    files: Any, read: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change again at the same tick of the clock."""
    assert hashed.SETTLED_S >= 2
    written = path(store, "a").stat().st_ctime
    monkeypatch.setattr(catalog_files.time, "time", lambda: written + 1)
    files().check([TABLE])
    files().check([TABLE])
    assert read == [*"abc"] * 2


@pytest.mark.usefixtures("later")
def test_what_is_remembered_is_of_one_content(files: Any, read: list[str], store: Store) -> None:
    """A file in the place of another is hashed, and found to be another."""
    files().check([TABLE])
    os.replace(path(store, "c"), path(store, "b"))
    with pytest.raises(MissingError, match="c.parquet"):
        files().check([TABLE])
    path(store, "c").write_bytes(path(store, "b").read_bytes())
    with pytest.raises(CorruptError, match="b.parquet"):
        files().check([TABLE])


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("harm", [b"", b"{}", b'{"a": "0", "seal": "x"}', None])
def test_a_damaged_memory_remembers_nothing(
    files: Any, read: list[str], tmp_path: Path, harm: bytes | None
) -> None:
    files().check([TABLE])
    memory = tmp_path / "hashed" / f"{TABLE}.json"
    memory.unlink() if harm is None else memory.write_bytes(harm)
    files().check([TABLE])
    assert read == [*"abc"] * 2


@pytest.mark.usefixtures("later")
def test_each_question_hashes_on_where_the_last_one_ended(
    files: Any, read: list[str], store: Store
) -> None:
    most = path(store, "a").stat().st_size * 2 + 1
    for _ in range(2):
        files().check([TABLE], most_bytes=most)
    assert read == ["a", "b", "c"]


@pytest.mark.usefixtures("later")
def test_without_a_place_to_write_nothing_is_remembered(
    files: Any, read: list[str], tmp_path: Path
) -> None:
    (tmp_path / "hashed").write_text("a file where the folder should be")
    files().check([TABLE])
    files().check([TABLE])
    assert read == [*"abc"] * 2
