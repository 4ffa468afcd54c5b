"""Local files are read again where they may have changed, and only there."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from stages.corpus import known_hashes
from stages.corpus.load import fingerprint
from stages.corpus.source import Source
from storage.table import Store

CSV = "text,label\na,0\nb,1\n"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []
    opened = known_hashes.open_file

    def noted(path: Any) -> Any:
        names.append(Path(path).name)
        return opened(path)

    monkeypatch.setattr(known_hashes, "open_file", noted)
    return names


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The time of the notes: an hour after the files were written."""
    now = {"ns": time.time_ns() + 3600 * 10**9}
    monkeypatch.setattr(time, "time_ns", lambda: now["ns"])
    return now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "rows"
    place.mkdir()
    for i in range(5):
        (place / f"{i}.csv").write_text(CSV.replace("a", f"a{i}"))
    return place


def test_unchanged_files_are_read_once(
    folder: Path, tmp_path: Path, read: list[str], clock: dict[str, int]
) -> None:
    source, store = Source(f"{folder}/*.csv"), Store(str(tmp_path / "store"))
    without = fingerprint(source)
    assert len(read) == 5
    read.clear()
    assert fingerprint(source, store, is_dry=True) == without
    assert not (tmp_path / "store").exists()
    assert fingerprint(source, store) == without
    assert len(read) == 10
    read.clear()
    assert fingerprint(source, Store(str(tmp_path / "store"))) == without
    assert fingerprint(source, Store(str(tmp_path / "store")), is_dry=True) == without
    assert read == []


def test_what_changed_is_read_and_nothing_else(
    folder: Path, tmp_path: Path, read: list[str], clock: dict[str, int]
) -> None:
    source, store = Source(f"{folder}/*.csv"), Store(str(tmp_path / "store"))
    seen = [fingerprint(source, store)]

    def expect(*names: str, is_new: bool = True) -> None:
        read.clear()
        found = fingerprint(source, store)
        assert sorted(read) == sorted(names)
        assert (found not in seen) == is_new
        assert found == fingerprint(source)
        seen.append(found)

    time.sleep(0.02)  # a tick of the clock that inodes keep
    state = os.stat(folder / "1.csv")
    (folder / "1.csv").write_text(CSV.replace("a", "A1"))
    # Of the same size, and with its old time: the time of the inode's change tells.
    os.utime(folder / "1.csv", ns=(state.st_atime_ns, state.st_mtime_ns))
    expect("1.csv")
    (folder / "new.csv").write_text(CSV)
    expect("new.csv")
    (folder / "3.csv").unlink()
    expect()
    moved = tmp_path / "other"
    moved.write_text((folder / "2.csv").read_text())
    moved.rename(folder / "2.csv")
    expect("2.csv", is_new=False)
    expect(is_new=False)


@pytest.mark.parametrize("by_ns", [-10 * 10**9, 0, 1_900_000_000])
def test_a_file_as_young_as_the_note_is_read_again(
    folder: Path, tmp_path: Path, read: list[str], clock: dict[str, int], by_ns: int
) -> None:
    """It may be written a second time in the same tick of the clock."""
    source, store = Source(str(folder / "1.csv")), Store(str(tmp_path / "store"))
    clock["ns"] = os.stat(folder / "1.csv").st_ctime_ns + by_ns
    before = fingerprint(source, store)
    read.clear()
    assert fingerprint(source, store) == before
    assert read == ["1.csv"]
    clock["ns"] += 3600 * 10**9
    assert fingerprint(source, store) == before
    assert read == ["1.csv", "1.csv"]
    assert fingerprint(source, store) == before
    assert read == ["1.csv", "1.csv"]


def test_files_of_features_and_reviews_are_noted_too(
    folder: Path, tmp_path: Path, read: list[str], clock: dict[str, int]
) -> None:
    import numpy as np

    np.save(tmp_path / "v.npy", np.zeros((2, 2)))
    (tmp_path / "r.csv").write_text("source_id,decision\n0,drop\n")
    store = Store(str(tmp_path / "store"))
    path = str(folder / "1.csv")
    first = Source(path, features=str(tmp_path / "v.npy"))
    second = Source(path, features=first.features, corrections=(str(tmp_path / "r.csv"),))
    fingerprint(first, store)
    assert read == ["1.csv", "v.npy"]
    read.clear()
    fingerprint(second, store)
    assert read == ["r.csv"]


def test_a_damaged_note_is_written_anew(
    folder: Path, tmp_path: Path, read: list[str], clock: dict[str, int]
) -> None:
    source, store = Source(str(folder / "1.csv")), Store(str(tmp_path / "store"))
    before = fingerprint(source, store)
    (note,) = (tmp_path / "store" / known_hashes.NOTES).iterdir()
    for damaged in ("", "{}", "[]", note.read_text().replace("1.csv", "2.csv")):
        note.write_text(damaged)
        read.clear()
        assert fingerprint(source, Store(str(tmp_path / "store"))) == before
        assert read == ["1.csv"]
        read.clear()
        assert fingerprint(source, Store(str(tmp_path / "store"))) == before
        assert read == []


def test_the_number_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    """Runs of before there were notes find what they read."""
    import dataclasses
    import hashlib
    import json

    source = Source(str(folder / "1.csv"))
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(source), sort_keys=True).encode())
    digest.update(b"1.csv\0" + hashlib.sha256((folder / "1.csv").read_bytes()).digest())
    assert fingerprint(source, Store(str(tmp_path / "store"))) == digest.hexdigest()


def test_a_file_that_moves_to_another_split_is_a_change(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    for split, name in (("test", "a"), ("train", "b")):
        (folder / split).mkdir(parents=True)
        (folder / split / f"{name}.csv").write_text(CSV.replace("a", name))
    source = Source(str(folder), split="test")
    before = fingerprint(source)
    (folder / "train" / "b.csv").rename(folder / "test" / "b.csv")
    assert fingerprint(source) != before
