"""Folders for the hub: files, and what their card declares."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from stages.corpus import hub_folder
from stages.corpus.hub_folder import _size, write_hub_folder
from stages.stage import DataError


def loaded(folder: Path, name: str) -> Any:
    cache = str(folder.parent / "cache")
    return datasets.load_dataset(str(folder), name, split="train", cache_dir=cache)


def test_messages_are_lists_and_mixed_cells_stay_json(tmp_path: Path) -> None:
    chats = ['[{"role": "user", "content": "a"}]', "[]", None]
    mixed = ['{"k": 1}', '{"other": "x"}', "7"]
    rows = pa.table(
        {"chat": pa.array(chats, pa.json_(pa.string())), "mixed": pa.array(mixed, pa.json_())}
    )
    folder = tmp_path / "hub"
    folder.mkdir()
    write_hub_folder(folder, {"default": rows, "removed": rows.slice(1)}, "# Card\n", ["t"], {})
    read, removed = loaded(folder, "default"), loaded(folder, "removed")
    assert read.features == removed.features
    assert read.features["chat"] == datasets.List(
        {"role": datasets.Value("string"), "content": datasets.Value("string")}
    )
    assert read["chat"] == [[{"role": "user", "content": "a"}], [], None]
    assert read["mixed"] == [{"k": 1}, {"other": "x"}, 7]


def test_many_rows_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_folder, "SHARD_BYTES", 100)
    folder = tmp_path / "hub"
    folder.mkdir()
    rows = pa.table({"n": list(range(50))})
    write_hub_folder(folder, {"default": rows}, "", [], {})
    files = sorted(path.name for path in (folder / "data").iterdir())
    assert files[0] == "train-00000-of-00004.parquet"
    assert len(files) == 4
    assert loaded(folder, "default")["n"] == list(range(50))


def test_what_datasets_cannot_hold_is_named(tmp_path: Path) -> None:
    rows = pa.table({"u": pa.array([b"0" * 16], pa.uuid())})
    with pytest.raises(DataError, match="found columns that `datasets` cannot hold"):
        write_hub_folder(tmp_path, {"default": rows}, "", [], {})


@pytest.mark.parametrize(
    ("n_rows", "size"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (10**8 - 1, "10M<n<100M"),
        (10**9, "1B<n<10B"),
    ],
)
def test_sizes_are_called_as_the_hub_does(n_rows: int, size: str) -> None:
    assert _size(n_rows) == size
