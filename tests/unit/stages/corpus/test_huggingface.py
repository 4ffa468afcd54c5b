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
