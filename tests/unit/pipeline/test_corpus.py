"""The corpus tables: keyed by content, cut once, read again only when something changed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import corpus as module
from pipeline.corpus import CORPUS, Corpus, read_corpus
from pipeline.settings import Run
from stages.corpus import ingest
from stages.corpus.source import FlipLabels, Source
from stages.stage import ConfigError, DataError
from storage.table import Store

Rows = list[dict[str, Any]]


def rows(n: int, start: int = 0) -> Rows:
    return [{"id": i, "text": f"text {i}", "label": i % 2} for i in range(start, start + n)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def run(folder: Path, lines: Rows, **changes: Any) -> Run:
    """A run over these rows, in one file of one name."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {name: changes.pop(name) for name in ("corrections", "flip_labels") if name in changes}
    source = Source(str(path), id="id", **fields)
    return Run(run=str(folder / "run"), corpus=source, **{"shard_size": 10, **changes})


def ids(
    corpus: Corpus, store: Store, table: str = "text", role: str = "example"
) -> list[list[int]]:
    shards = [s for s in corpus.tables[table].shards if s.role == role]
    return [store.read_shard(table, s.key)["id"].to_pylist() for s in shards]


def keys(corpus: Corpus, table: str) -> list[str]:
    return [shard.key for shard in corpus.tables[table].shards]


def test_rows_are_cut_into_shards_of_all_tables(tmp_path: Path, store: Store) -> None:
    corpus = read_corpus(run(tmp_path, rows(25)), store)
    expected = [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    for table in ("text", "label", "extra"):
        assert ids(corpus, store, table) == expected
    assert corpus.classes == ("0", "1")
    assert (corpus.rows("text", "example"), corpus.rows("text", "query")) == (25, 0)


def test_prompts_that_ask_of_conversations_are_read_as_such(tmp_path: Path, store: Store) -> None:
    turns = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}]
    asked = [{"prompt": "Three?", "completion": "3"}, {"prompt": "Four?", "completion": None}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    talks = Source(str(path), task="completion")
    queries = Source(str(tmp_path / "asked.jsonl"), task="completion")
    corpus = read_corpus(Run(run=str(tmp_path / "run"), corpus=talks, queries=queries), store)
    (shard,) = (s for s in corpus.tables["text"].shards if s.role == "query")
    (text,) = store.read_shard("text", shard.key)["text"].to_pylist()
    assert json.loads(text) == [
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "3"},
    ]
    assert "prompt and completion are read as a message of the user" in " ".join(corpus.notices)
    (shard,) = corpus.tables["rejected"].shards
    assert store.read_shard("rejected", shard.key)["reason"].to_pylist() == ["null completion"]


def test_a_dry_reading_has_the_same_keys_and_writes_nothing(tmp_path: Path, store: Store) -> None:
    dry = read_corpus(run(tmp_path, rows(25)), store, is_dry=True)
    assert not Path(store.root).exists()
    wet = read_corpus(run(tmp_path, rows(25)), store)
    assert set(dry.tables) == set(wet.tables) == set(CORPUS) - {"features"}
    for table in wet.tables:
        assert keys(dry, table) == keys(wet, table)
        assert dry.tables[table].key == wet.tables[table].key


def test_the_source_is_parsed_once(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_corpus(run(tmp_path, rows(25)), store)

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the source was read again")

    with monkeypatch.context() as patch:
        patch.setattr(module.ingest, "survey", fail)
        assert read_corpus(run(tmp_path, rows(25)), store) == first
        with pytest.raises(AssertionError, match="read again"):
            read_corpus(run(tmp_path, rows(26)), store)


def test_a_source_that_changes_while_it_is_read_is_not_noted_as_what_it_was(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who puts the old rows back is served the new ones ever after."""
    survey = ingest.survey

    def changing(*arguments: Any, **options: Any) -> Any:
        run(tmp_path, rows(25, start=100))
        return survey(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module.ingest, "survey", changing)
        with pytest.raises(DataError, match="rows.jsonl: found .*changed since it was listed"):
            read_corpus(run(tmp_path, rows(25)), store)
    again = read_corpus(run(tmp_path, rows(25)), store)
    assert ids(again, store)[0] == list(range(10))


@pytest.mark.parametrize("table", ["text", "label", "extra", "rejected"])
def test_a_shard_that_is_gone_is_written_again(tmp_path: Path, store: Store, table: str) -> None:
    first = read_corpus(run(tmp_path, rows(25)), store)
    lost = Path(store.path(table, f"{keys(first, table)[0]}.parquet"))
    before = lost.read_bytes()
    lost.unlink()
    assert keys(read_corpus(run(tmp_path, rows(25)), store), table) == keys(first, table)
    assert lost.read_bytes() == before


def test_labels_of_a_version_with_fewer_columns_are_read_again(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = replace(ingest.LABEL, schema=ingest.LABEL.schema.remove(4))
    with monkeypatch.context() as patched:
        patched.setattr(ingest, "LABEL", older)
        patched.setitem(CORPUS, "label", older)
        before = read_corpus(run(tmp_path, rows(25)), store)
    after = read_corpus(run(tmp_path, rows(25)), store)
    assert keys(after, "text") == keys(before, "text")
    for corpus, spec in ((before, older), (after, ingest.LABEL)):
        read = [store.read_shard("label", key).schema.names for key in keys(corpus, "label")]
        assert read == [spec.schema.names] * 3


def test_appended_rows_make_shards_of_their_own(tmp_path: Path, store: Store) -> None:
    first = read_corpus(run(tmp_path, rows(25)), store)
    second = read_corpus(run(tmp_path, [*rows(12, start=25), *rows(25)]), store)
    assert ids(second, store)[:3] == ids(first, store)
    assert ids(second, store)[3:] == [list(range(25, 35)), [35, 36]]
    assert keys(second, "text")[:3] == keys(first, "text")


def test_a_corrected_label_changes_its_shard_of_labels_alone(tmp_path: Path, store: Store) -> None:
    first = read_corpus(run(tmp_path, rows(25)), store)
    corrected = rows(25)
    corrected[12]["label"] = 1
    second = read_corpus(run(tmp_path, corrected), store)
    assert keys(second, "text") == keys(first, "text")
    same = [a == b for a, b in zip(keys(first, "label"), keys(second, "label"), strict=True)]
    assert same == [True, False, True]


def test_a_removed_row_and_a_changed_text_change_their_shards_alone(
    tmp_path: Path, store: Store
) -> None:
    first = read_corpus(run(tmp_path, rows(30)), store)
    changed = [row for row in rows(30) if row["id"] != 3]
    changed[-1]["text"] = "another"
    second = read_corpus(run(tmp_path, changed), store)
    same = [a == b for a, b in zip(keys(first, "text"), keys(second, "text"), strict=True)]
    assert same == [False, True, False]


def test_all_rows_of_a_shard_leave(tmp_path: Path, store: Store) -> None:
    first = read_corpus(run(tmp_path, rows(30)), store)
    second = read_corpus(run(tmp_path, rows(10) + rows(10, start=20)), store)
    assert keys(second, "text") == [keys(first, "text")[at] for at in (0, 2)]
    assert [shard.index for shard in second.tables["text"].shards] == [0, 1]
    rejected = rows(30)
    for row in rejected[:10]:
        row["text"] = ""
    third = read_corpus(run(tmp_path, rejected), store)
    assert keys(third, "text") == keys(first, "text")[1:]
    assert third.tables["rejected"].rows == 10


def test_dropped_rows_keep_their_text_and_lose_their_label(tmp_path: Path, store: Store) -> None:
    first = read_corpus(run(tmp_path, rows(20)), store)
    review = tmp_path / "review.csv"
    review.write_text("source_id,decision\n" + "".join(f"{i},drop\n" for i in range(10)))
    second = read_corpus(run(tmp_path, rows(20), corrections=(str(review),)), store)
    assert keys(second, "text") == keys(first, "text")
    assert ids(second, store, "label") == [[], list(range(10, 20))]
    assert second.rows("label", "example") == 10
    # A second review adds to the first and may take a drop back; an empty decision does not.
    more = tmp_path / "more.csv"
    more.write_text("source_id,decision\n1,accept\n2,\n15,drop\n")
    third = read_corpus(run(tmp_path, rows(20), corrections=(str(review), str(more))), store)
    assert ids(third, store, "label") == [[1], [10, 11, 12, 13, 14, 16, 17, 18, 19]]


def test_the_cut_with_most_rows_in_common_is_taken(tmp_path: Path, store: Store) -> None:
    large = read_corpus(run(tmp_path, rows(25)), store)
    read_corpus(run(tmp_path, rows(14, start=3)), store)  # newer, cut at 13
    again = read_corpus(run(tmp_path, rows(28)), store)
    assert ids(again, store)[:3] == ids(large, store)


def test_another_corpus_with_the_same_ids_is_cut_afresh(tmp_path: Path, store: Store) -> None:
    first = read_corpus(run(tmp_path, rows(25)), store)
    others = [{**row, "text": f"other {row['id']}"} for row in rows(28)]
    second = read_corpus(run(tmp_path, others), store)
    assert ids(second, store) == [list(range(10)), list(range(10, 20)), list(range(20, 28))]
    assert not set(keys(second, "text")) & set(keys(first, "text"))
    assert read_corpus(run(tmp_path, rows(25)), store) == first


def test_another_shard_size_cuts_afresh(tmp_path: Path, store: Store) -> None:
    read_corpus(run(tmp_path, rows(25)), store)
    assert len(ids(read_corpus(run(tmp_path, rows(25), shard_size=5), store), store)) == 5


def test_the_same_labels_under_other_names_are_other_labels(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(10)))
    made = [
        read_corpus(Run(str(tmp_path), Source(str(path), classes=names)), store)
        for names in (("no", "yes"), ("yes", "no"))
    ]
    assert keys(made[0], "label") != keys(made[1], "label")
    assert keys(made[0], "text") == keys(made[1], "text")


def test_facts_about_labels(tmp_path: Path, store: Store) -> None:
    flipped = read_corpus(run(tmp_path, rows(20), flip_labels=FlipLabels(0.2)), store)
    details = flipped.tables["label"].details
    assert details["flip_labels"] == {"fraction": 0.2, "seed": 0}
    assert (details["column"], details["is_declared"]) == ("label", False)
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": null}\n')
    both = read_corpus(run(tmp_path, rows(20), queries=Source(str(queries))), store)
    assert both.unlabelled_queries == 1
    assert both.rows("text", "query") == 2


def bag(folder: Path, n: int, dim: int = 3, name: str = "rows") -> Source:
    """Rows without text whose vectors lie in a file."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"label": i % 2}) + "\n" for i in range(n)))
    np.save(folder / f"{name}.npy", np.arange(n * dim).reshape(n, dim))
    return Source(str(path), text=None, features=str(folder / f"{name}.npy"))


def test_vectors_lie_in_the_shards_of_their_rows(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Run(str(tmp_path), bag(tmp_path, 25), bag(tmp_path, 4, name="queries"), shard_size=10)
    dry = read_corpus(given, store, is_dry=True)
    assert not Path(store.root).exists()
    assert (dry.tables["features"].vector_length, dry.has_text) == (3, False)
    corpus = read_corpus(given, store)
    assert dry.tables["features"].key == corpus.tables["features"].key
    for role in ("example", "query"):
        assert ids(corpus, store, "features", role) == ids(corpus, store, "text", role)
    monkeypatch.setattr(module.ingest, "survey", None)  # Known by now, it is not read again.
    assert read_corpus(given, store) == corpus


def test_a_changed_vector_changes_its_shard_of_features_alone(tmp_path: Path, store: Store) -> None:
    source = bag(tmp_path, 25)
    first = read_corpus(Run(str(tmp_path), source, shard_size=10), store)
    changed = np.load(tmp_path / "rows.npy")
    changed[12, 1] += 1
    np.save(tmp_path / "rows.npy", changed)
    second = read_corpus(Run(str(tmp_path), source, shard_size=10), store)
    same = [a == b for a, b in zip(keys(first, "features"), keys(second, "features"), strict=True)]
    assert same == [True, False, True]
    assert keys(first, "label") == keys(second, "label")


def test_a_lost_shard_of_features_is_written_again(tmp_path: Path, store: Store) -> None:
    given = Run(str(tmp_path), bag(tmp_path, 25), shard_size=10)
    first = read_corpus(given, store)
    lost = Path(store.path("features", f"{keys(first, 'features')[1]}.parquet"))
    before = lost.read_bytes()
    lost.unlink()
    assert read_corpus(given, store).tables["features"].shards == first.tables["features"].shards
    assert lost.read_bytes() == before


def test_queries_of_another_kind_are_refused(tmp_path: Path, store: Store) -> None:
    source, text = bag(tmp_path, 5), run(tmp_path, rows(5)).corpus

    def error(kind: type[Exception], corpus: Source, queries: Source) -> str:
        with pytest.raises(kind) as caught:
            read_corpus(Run(str(tmp_path), corpus, queries), store)
        return str(caught.value)

    queries = bag(tmp_path, 5, 2, "queries")
    assert "found vectors of length 2" in error(DataError, source, queries)
    assert "expected both or neither" in error(ConfigError, source, text)
    assert "expected both or neither" in error(ConfigError, text, source)
    other = Source(text.path, task="regression")
    assert "found regression, expected classification" in error(ConfigError, text, other)
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"messages": [{"role": "assistant", "content": "x"}], "text": "t"}\n')
    talks = Source(str(talk), task="completion")
    plain = Source(str(talk), task="completion", text="t2")
    talk.write_text(talk.read_text().replace('"text"', '"t2"'))
    assert "found rows as text, expected messages" in error(DataError, talks, plain)


def test_the_same_rows_read_for_another_task_are_told_apart(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"p {i}", "completion": "c", "label": i % 2} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    pair = {"text": "prompt", "text_b": "completion"}
    classes = read_corpus(Run(str(tmp_path), Source(str(path), **pair)), store)
    numbers = read_corpus(Run(str(tmp_path), Source(str(path), task="regression", **pair)), store)
    written = read_corpus(Run(str(tmp_path), Source(str(path), task="completion")), store)
    assert [c.task for c in (classes, numbers, written)] == [
        "classification",
        "regression",
        "completion",
    ]
    assert keys(classes, "text") == keys(numbers, "text") != keys(written, "text")
    for corpus, form, stored in (
        (classes, "text", "label"),
        (numbers, "text", "target"),
        (written, "prompt_completion", "source_label"),
    ):
        again = {name: store.read_manifest(name, m.key) for name, m in corpus.tables.items()}
        assert again["text"].details["format"] == form
        assert again["extra"].details["columns"]["example"][2]["stored"] == stored
    assert numbers.classes == written.classes == ()
    assert written.tables["label"].details["column"] is None
    assert written.unlabelled_queries == 0
