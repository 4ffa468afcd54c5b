"""The size of shards: chosen by the rows, once, and kept when the corpus grows."""

import json
from pathlib import Path

import pytest

from pipeline import shard_sizes
from pipeline.corpus import read_corpus
from pipeline.settings import Run
from pipeline.shard_sizes import chosen_size
from stages.corpus.source import Source
from storage.table import Store


@pytest.mark.parametrize(
    ("n_rows", "text_bytes", "size"),
    [
        (10, 100, 1000),
        (2_000_000, 1, 1000),
        (2_000_001, 1, 1500),
        (3_000_000, 1, 1500),
        (3_000_001, 1, 2000),
        (10_000_000, 10**9, 5000),
        # 16 MB of rows of 1,124 bytes are 14,235.
        (10_000_001, 100 * 10_000_001, 14_500),
        (100_000_000, 100 * 10**8, 50_000),
        # 128 MB of them are 113,879; of rows of 32,768 bytes 3,907.
        (10**9, 100 * 10**9, 114_000),
        (10**8, (32_768 - 1024) * 10**8, 4000),
    ],
)
def test_sizes(n_rows: int, text_bytes: int, size: int) -> None:
    assert chosen_size(n_rows, text_bytes) == size


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rule, for tens of rows."""
    for name, value in (("SMALL_ROWS", 20), ("SMALL_SIZE", 4), ("MOST_SHARDS", 4), ("STEP", 1)):
        monkeypatch.setattr(shard_sizes, name, value)


def run(folder: Path, n: int, **fields: int) -> Run:
    path = folder / "rows.jsonl"
    lines = [{"id": i, "text": f"t {i}", "label": i % 2} for i in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Run(str(folder / "run"), Source(str(path), id="id"), **fields)


def test_a_corpus_that_grows_keeps_its_size_and_computes_new_rows_only(
    tmp_path: Path, small: None
) -> None:
    store = Store(str(tmp_path / "store"))
    first = read_corpus(run(tmp_path, 18), store)
    assert (first.shard_size, first.notices) == (4, ())
    before = {s.key for s in first.tables["text"].shards}
    grown = read_corpus(run(tmp_path, 40), store)
    assert grown.shard_size == 4
    assert "shards of 4 rows, as chosen when" in grown.notices[0]
    assert "for 40 examples 10 would be better now: shard_size: 10 cuts" in grown.notices[0]
    assert [s.rows for s in grown.tables["text"].shards] == [4, 4, 4, 4, 2, 4, 4, 4, 4, 4, 2]
    assert [s.key for s in grown.tables["text"].shards][:5] == [
        s.key for s in first.tables["text"].shards
    ]
    # And on: the choice is that of the first reading, as `is_auto` says.
    more = read_corpus(run(tmp_path, 45), store)
    assert more.shard_size == 4
    assert before <= {s.key for s in more.tables["text"].shards}
    # As the run's resolved YAML has it; no other reading is needed for it.
    again = read_corpus(run(tmp_path, 45, shard_size=4), store)
    assert [m.key for m in again.tables.values()] == [m.key for m in more.tables.values()]
    fresh = read_corpus(run(tmp_path, 45), Store(str(tmp_path / "other")))
    assert fresh.shard_size == 12
    assert fresh.notices == ("shards of 12 rows, for 45 examples; shard_size sets another",)


def test_a_size_that_was_set_is_not_kept_by_a_run_that_leaves_it_out(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    assert read_corpus(run(tmp_path, 18, shard_size=5), store).shard_size == 5
    assert read_corpus(run(tmp_path, 18), store).shard_size == 1000
    # Stores of before there was a choice: their only size was chosen, too.
    other = Store(str(tmp_path / "other"))
    old = read_corpus(run(tmp_path, 18, shard_size=1000), other)
    assert read_corpus(run(tmp_path, 18), other) == old
