"""Which labels are flipped on purpose, against all hashes in order."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from source_rows import jsonl, reviews
from whole_corpus import read

from stages.corpus import flips as module
from stages.corpus.flips import flips
from stages.corpus.source import FlipLabels, Source
from stages.stage import ConfigError


def hashed(seed: int, row_id: int) -> bytes:
    return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.999])
def test_the_rows_with_the_smallest_hashes_are_flipped(fraction: float) -> None:
    ids = np.random.default_rng(0).integers(-(2**62), 2**62, 3 * module._BLOCK_ROWS // 2)
    is_usable = np.random.default_rng(1).random(len(ids)) < 0.02
    usable = ids[is_usable].tolist()
    n_chosen = round(fraction * len(usable))
    expected = sorted(hashed(3, row_id) for row_id in usable)[n_chosen - 1]
    assert flips(ids, is_usable, FlipLabels(fraction, seed=3)).largest == expected


def test_hashes_that_begin_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(40)
    monkeypatch.setattr(module, "_hash", lambda seed, row_id: bytes(8) + bytes([row_id]) * 24)
    of_all = flips(ids, ids >= 10, FlipLabels(0.5, seed=0))
    assert of_all.largest == bytes(8) + bytes([24]) * 24


def test_none_is_flipped_of_a_fraction_that_rounds_to_none() -> None:
    ids = np.arange(10)
    assert flips(ids, ids < 10, FlipLabels(0.01)).largest == b""


def test_flip_labels_changes_exactly_that_many_and_remembers(tmp_path: Path) -> None:
    rows = [{"text": "t", "label": i % 3} for i in range(50)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    corpus = read(Source(path, flip_labels=FlipLabels(0.3, seed=1)), "example")
    label, true = (corpus.rows[c].to_numpy() for c in ("label", "true_label"))
    assert true.tolist() == [row["label"] for row in rows]
    assert (label != true).sum() == 15
    assert set(label.tolist()) == {0, 1, 2}
    again = read(Source(path, flip_labels=FlipLabels(0.3, seed=1)), "example")
    assert again.rows.equals(corpus.rows)
    other = read(Source(path, flip_labels=FlipLabels(0.3, seed=2)), "example")
    assert other.rows["label"].to_pylist() != label.tolist()
    assert (
        read(Source(path, flip_labels=FlipLabels(0.0)), "example")
        .rows["true_label"]
        .equals(corpus.rows["true_label"])
    )


def test_flip_labels_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    for fraction in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"found .*, expected a number in \[0, 1\)\. Write"):
            FlipLabels(fraction)
    path = jsonl(tmp_path / "a.jsonl", reviews())
    with pytest.raises(ConfigError, match=r"found on queries, expected on the corpus only. Remove"):
        read(Source(path, flip_labels=FlipLabels(0.1)), "query")
    with pytest.raises(ConfigError, match="found label: null for examples"):
        read(Source(path, label=None), "example")
