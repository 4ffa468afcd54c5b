"""Data sets that `datasets` has saved."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from whole_corpus import read

from stages.corpus.source import Source
from stages.stage import DataError

FEATURES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
)


@pytest.fixture(autouse=True)
def _without_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_a_saved_split_without_rows_leaves_the_others_readable(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=FEATURES)
    saved = datasets.DatasetDict({"train": rows, "test": rows.select([])})
    saved.save_to_disk(tmp_path / "saved")
    for split in ("train", "all", "train+test"):
        corpus = read(Source(str(tmp_path / "saved"), split=split), "example")
        assert corpus.classes == ("neg", "pos")
        assert corpus.rows["text"].to_pylist() == ["a", "b"]
    with pytest.raises(DataError, match="found no usable row among 0"):
        read(Source(str(tmp_path / "saved"), split="test"), "example")
    rows.select([]).save_to_disk(tmp_path / "alone")
    with pytest.raises(DataError, match="found no usable row among 0"):
        read(Source(str(tmp_path / "alone")), "example")


def test_one_number_is_one_class_in_all_files_and_splits(tmp_path: Path) -> None:
    first, second = (
        datasets.Dataset.from_dict({"text": names, "label": names}).class_encode_column("label")
        for names in (["anger", "joy"], ["joy", "sadness"])
    )
    files = tmp_path / "files"
    files.mkdir()
    for name, rows in (("train", first), ("test", second)):
        rows.to_parquet(files / f"{name}.parquet")
    datasets.DatasetDict({"train": first, "test": second}).save_to_disk(tmp_path / "saved")
    for source in (
        Source(str(files / "*.parquet")),
        Source(str(files), split="all"),
        Source(str(tmp_path / "saved"), split="train+test"),
    ):
        with pytest.raises(DataError, match="found that class 0 is '.*' in one part of it and '"):
            read(source, "example")
    assert read(Source(str(files), split="test"), "example").classes == ("joy", "sadness")


def test_files_may_declare_the_first_classes_alone(tmp_path: Path) -> None:
    for at, names in enumerate((["a", "b"], ["a", "b", "c"])):
        rows = datasets.Dataset.from_dict({"text": names, "label": list(range(len(names)))})
        label = datasets.ClassLabel(names=names)
        rows.cast_column("label", label).to_parquet(tmp_path / f"{at}.parquet")
    for source in (Source(str(tmp_path)), Source(str(tmp_path / "*"))):
        found = read(source, "example")
        assert [found.classes[y] for y in found.rows["label"].to_pylist()] == [*"ababc"]


def test_a_split_lacks_no_rows_of_compressed_files(tmp_path: Path) -> None:
    for name in ("train-0.csv", "train-1.csv"):
        (tmp_path / name).write_text("text,label\na,0\nb,1\n")
    source = Source(str(tmp_path), split="train")
    for name in ("train-1.csv.gz", "test.csv.gz", "train.txt.gz"):
        (tmp_path / name).write_bytes(b"")  # A copy, and rows that nobody asked for.
    assert read(source, "example").rows.num_rows == 4
    (tmp_path / "train-2.csv.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"found train-2.csv.gz beside files that are not"):
        read(source, "example")
    assert read(Source(str(tmp_path / "*.csv")), "example").rows.num_rows == 4
