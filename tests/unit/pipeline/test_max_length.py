"""The choice of `max_length` from the lengths of a corpus, and which models it is made for."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import max_length
from pipeline.config import dump_config, parse_config
from pipeline.corpus import Corpus
from pipeline.errors import ConfigFileError
from pipeline.lengths import Lengths
from pipeline.max_length import with_max_lengths
from stages.model.refusals import reading_fingerprint
from stages.model.spec import ModelSpec
from storage.manifest import Manifest, ShardRecord
from storage.table import Store

Raw = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model of which planning reads a few bytes."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return str(model)


@pytest.fixture
def raw(tmp_path: Path, folder: str) -> Raw:
    return {
        "run": str(tmp_path / "run"),
        "model": {"path": folder, "head": "completion"},
        "corpus": {"path": "rows.jsonl", "task": "completion"},
        "stages": {"gradient": {}},
    }


@pytest.fixture(autouse=True)
def positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of the model, in a list that a test may change."""
    read = [10**9]
    monkeypatch.setattr(max_length, "_most_tokens", lambda _: read[0])
    return read


def corpus(folder: str, *n_tokens: int, n_rows: int | None = None, first: str = "a") -> Corpus:
    """A corpus whose examples have so many tokens each; `first` is the key of its first shard."""
    shard = ShardRecord(first, "example", 0, len(n_tokens), 1, "", 0, 9)
    table = Manifest("text", "ingest", 1, {}, {}, (shard,), {})
    counts = tuple((n, n - 1, n - 1, 0, 1) for n in n_tokens)
    lengths = Lengths(n_rows or len(counts), counts)
    name = f"{reading_fingerprint(ModelSpec(folder, head='completion'))}/example"
    return Corpus({"text": table}, lengths={name: lengths})


@pytest.mark.parametrize(
    ("longest", "n_positions", "wanted", "reason"),
    [
        (3, 4096, 64, "the smallest multiple of 64 that keeps 99% of the examples whole"),
        (64, 4096, 64, "the smallest multiple of 64"),
        (65, 4096, 128, "the smallest multiple of 64"),
        (1900, 4096, 1920, "the smallest multiple of 64"),
        (3000, 4096, 2048, "the most that is chosen unasked; 99% of the examples have up to 3,000"),
        (3000, 1000, 1000, "the most tokens that the model reads; 99% of the examples have up to"),
        (90, 100, 100, "the most tokens that the model reads"),
    ],
)
def test_the_choice(
    raw: Raw,
    folder: str,
    positions: list[int],
    longest: int,
    n_positions: int,
    wanted: int,
    reason: str,
) -> None:
    positions[0] = n_positions
    run = parse_config(raw, "test")
    store = Store(run.store_url)
    chosen, (note,) = with_max_lengths(run, corpus(folder, 1, longest), store)
    assert chosen.model is not None
    assert chosen.model.max_length == chosen.stages["gradient"].model.max_length == wanted
    assert f"{folder}: max_length: {wanted} is chosen: {reason}" in note
    assert not store.fs.exists(store.root)
    assert parse_config({**raw, "model": {**raw["model"], "max_length": wanted}}, "test") == chosen


def test_of_a_hundred_rows_one_may_be_cut(raw: Raw, folder: str) -> None:
    run = parse_config(raw, "test")
    lengths = [*([10] * 98), 100, 1000]
    chosen, (note,) = with_max_lengths(
        run, corpus(folder, *lengths, n_rows=5000), Store(run.store_url)
    )
    assert chosen.model is not None
    assert chosen.model.max_length == 128
    assert "99% of the examples (of a sample, evenly spread over 5,000) whole" in note


def test_a_choice_is_kept_for_a_corpus_that_grows(raw: Raw, folder: str) -> None:
    run = parse_config(raw, "test")
    store = Store(run.store_url)
    small, large = corpus(folder, 10), corpus(folder, 10, 500)

    def choice(over: Corpus, is_dry: bool = True) -> tuple[int, str]:
        chosen, (note,) = with_max_lengths(run, over, store, is_dry)
        assert chosen.model is not None
        return chosen.model.max_length, note

    assert choice(large)[0] == 512
    assert choice(small, is_dry=False)[0] == 64
    kept, note = choice(large, is_dry=False)
    assert kept == 64
    assert "max_length: 64 is kept" in note
    assert "512 would now be chosen. Set model.max_length" in note
    assert choice(corpus(folder, 10, 500, first="b"))[0] == 512


def test_only_what_the_yaml_leaves_open_is_chosen(raw: Raw, folder: str) -> None:
    own = {"path": folder, "head": "completion"}
    raw["stages"] = {
        "gradient": {},
        "prediction": {"model": own},
        "fixed": {"stage": "prediction", "model": {**own, "max_length": 128}},
        "encoder": {"stage": "embedding", "model": {"path": folder}},
        "bm25": {},
    }
    run = parse_config(raw, "test")
    assert run.open_lengths == ("model", "gradient", "prediction")
    assert "open_lengths" not in dump_config(run)
    chosen, notes = with_max_lengths(run, corpus(folder, 200), Store(run.store_url))
    lengths = {
        name: stage.model_ref.max_length for name, stage in chosen.stages.items() if stage.model_ref
    }
    assert lengths == {"gradient": 256, "prediction": 256, "fixed": 128, "encoder": 128}
    assert len(notes) == 1
    assert with_max_lengths(chosen, corpus(folder, 900), Store(run.store_url)) == (chosen, [])


def test_without_lengths_the_default_stays(raw: Raw, folder: str) -> None:
    run = parse_config(raw, "test")
    for nothing in (Corpus(corpus(folder, 5).tables), corpus(folder, n_rows=3)):
        chosen, notes = with_max_lengths(run, nothing, Store(run.store_url))
        assert chosen.model is not None
        assert (chosen.model.max_length, notes) == (128, [])


def test_what_is_left_open_is_no_key_of_the_yaml(raw: Raw) -> None:
    with pytest.raises(
        ConfigFileError, match="open_lengths: found an unknown key, expected one of"
    ) as caught:
        parse_config({**raw, "open_lengths": ["model"]}, "test")
    assert str(caught.value).count("open_lengths") == 1
