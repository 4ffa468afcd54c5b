"""Near duplicates against the Jaccard similarity of all pairs, by sets of pieces of text."""

import functools
import json
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import ShardedInputs

from stages.predictions.near_duplicates import NearDuplicates
from stages.ranking import near_texts
from stages.reading import shared_passages, shingles
from stages.stage import ConfigError

WORDS = "film plot good bad actor a the of with scene ending slow müde très 東京 कहानी 3.5".split()
FIRST_QUERY = 5


@functools.cache
def pieces(text: str) -> set[str]:
    """The definition: five characters from each one on, those beyond the end being empty."""
    lower = unicodedata.normalize("NFKC", text).lower()
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in lower)
    bare = " ".join("".join(kept).split())
    return {bare[at : at + 5].ljust(5, "\0") for at in range(len(bare))}


def jaccard(one: str, other: str) -> float:
    both, either = pieces(one) & pieces(other), pieces(one) | pieces(other)
    return len(both) / len(either)


def found(
    examples: Sequence[str], queries: Sequence[str] = (), n_shards: int = 3, **fields: float
) -> list[dict[str, object]]:
    """Rows for examples with ids from 0 and queries with ids from 5, which are stored backwards."""
    ids = [*range(len(examples)), *range(FIRST_QUERY, FIRST_QUERY + len(queries))]
    roles = ["example"] * len(examples) + ["query"] * len(queries)
    columns = {"id": ids[::-1], "role": roles[::-1], "text": [*examples, *queries][::-1]}
    table = pa.table({**columns, "text_b": pa.nulls(len(ids), pa.string())})
    inputs = ShardedInputs({"text": table}, {"text": {"format": "text"}}, n_shards)
    return super(ShardedInputs, inputs).run(NearDuplicates(**fields)).to_pylist()


def by_definition(
    examples: Sequence[str], queries: Sequence[str], similarity: float
) -> list[dict[str, object]]:
    alike = {
        (i, j): jaccard(one, other)
        for i, one in enumerate(examples)
        for j, other in enumerate(examples)
        if i != j
    }
    cluster = list(range(len(examples)))
    for _ in examples:
        for (i, j), likeness in alike.items():
            if likeness >= similarity:
                cluster[i] = cluster[j] = min(cluster[i], cluster[j])
    rows = []
    for i, text in enumerate(examples):
        near = {j: alike[i, j] for j in range(len(examples)) if i != j}
        asked = {FIRST_QUERY + q: jaccard(text, query) for q, query in enumerate(queries)}
        row: dict[str, object] = {"example_id": i, "cluster": cluster[i]}
        for names, likeness in (
            (("other_id", "similarity"), near),
            (("query_id", "query_similarity"), asked),
        ):
            best = max(likeness, key=lambda at: (likeness[at], -at))
            is_near = likeness[best] >= similarity
            row |= dict(
                zip(names, (best, likeness[best]) if is_near else (None, None), strict=True)
            )
        if row["other_id"] is not None or row["query_id"] is not None:
            rows.append(row)
    return rows


def sentences(n: int, seed: int) -> list[str]:
    """Random sentences; every second one is an earlier one with a word or a letter changed."""
    g, made = np.random.default_rng(seed), []
    for at in range(n):
        words = g.choice(WORDS, size=g.integers(6, 16)).tolist()
        if at % 2:
            words = made[g.integers(len(made))].split()
            place = int(g.integers(len(words)))
            words[place] = [
                "",
                words[place].upper(),
                words[place] + "!",
                "new",
                words[place][::-1],
            ][int(g.integers(5))]
        made.append(" ".join(filter(None, words)))
    return made


@pytest.mark.parametrize(
    ("seed", "similarity", "n_shards"), [(0, 0.7, 1), (1, 0.8, 4), (2, 1.0, 2)]
)
def test_all_pairs_that_are_near_and_no_other(seed: int, similarity: float, n_shards: int) -> None:
    """Bands miss one pair in a thousand of similarity 0.7, but none of these."""
    texts = sentences(150, seed)
    examples, queries = texts[:120], texts[120:]
    rows = found(examples, queries, n_shards, similarity=similarity)
    assert rows == by_definition(examples, queries, similarity)
    assert len(rows) > 20


def test_long_texts_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(30, 3)
    examples, queries = texts[:25], texts[25:]
    monkeypatch.setattr(shingles, "PIECE", 21)
    assert found(examples, queries) == by_definition(examples, queries, 0.7)
    signs = "aÅ e\u0301 \u1100\u1161\uac00 \u304b\u3099 ﬁn ?! \uff37 к\u0306 東\t"
    odd = ["".join(np.random.default_rng(i).choice(list(signs), 90)) for i in range(50)]
    cut = shingles.letters_of(odd).to_pylist()
    monkeypatch.setattr(shingles, "PIECE", 1000)
    assert cut == shingles.letters_of(odd).to_pylist()
    monkeypatch.setattr(shingles, "PIECE", 21)
    task = "is this review of a film positive or negative "
    whole = found([task + text for text in examples])
    assert whole
    monkeypatch.setattr(shared_passages, "PIECE", 11)
    assert found([task + text for text in examples]) == whole


def test_very_long_texts_are_compared_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is four standard errors, of a sample of half as many shingles at least."""
    g = np.random.default_rng(0)
    one, other = ([str(g.integers(10**6)) for _ in range(4000)] for _ in range(2))
    mixed = [a if g.random() < 0.9 else b for a, b in zip(one, other, strict=True)]
    texts = [" ".join(one), " ".join(mixed)]
    ((exact, _),) = ([row["similarity"] for row in found(texts)],)
    assert exact == jaccard(*texts)
    monkeypatch.setattr(near_texts, "SHINGLES", 4000)
    ((sampled, again),) = ([row["similarity"] for row in found(texts)],)
    assert sampled == again != exact
    n = 4000 / 2 / (1 + exact)
    assert abs(sampled - exact) < 4 * (exact * (1 - exact) / n) ** 0.5
    # A text of few different shingles, and a pair without any in common.
    assert found(["ab " * 9000, "ab " * 9001])[0]["similarity"] == 1.0


def test_many_texts_of_a_bucket_meet_their_neighbours_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is told is so, all the same; and that not all were compared is told."""
    monkeypatch.setattr(near_texts, "WINDOW", 2)
    examples = [f"the same words in front of every number of them all {n:03}" for n in range(60)]
    ids = list(range(60))
    texts = {
        "id": ids,
        "role": ["example"] * 60,
        "text": examples,
        "text_b": pa.nulls(60, "string"),
    }
    inputs = ShardedInputs({"text": pa.table(texts)}, {"text": {"format": "text"}})
    rows = super(ShardedInputs, inputs).run(NearDuplicates()).to_pylist()
    assert len(rows) == 60
    for row in rows:
        likeness = jaccard(examples[row["example_id"]], examples[row["other_id"]])
        assert row["similarity"] == likeness >= 0.7
    assert {row["cluster"] for row in rows} == {0}
    assert "60 texts" in inputs.told.details()["notices"][0]


def test_texts_that_meet_by_chance_are_no_candidates_and_hide_none() -> None:
    """All have one band in common, as long texts have by chance; two and two have another one."""
    g = np.random.default_rng(0)
    bands = g.integers(0, 2**63, (200, near_texts.BANDS)).astype(np.uint64)
    marks = g.integers(0, 256, (200, near_texts.BANDS * near_texts.ROWS)).astype(np.uint8)
    bands[:, 3] = 7
    alike = g.permutation(200).reshape(100, 2)
    for one, other in alike:
        second = g.choice(np.delete(np.arange(near_texts.BANDS), 3))
        bands[other, second], marks[other, :50] = bands[one, second], marks[one, :50]
    pairs, n_crowded = near_texts.candidates(bands, marks, np.zeros(200, bool), 0.7)
    assert sorted(zip(*pairs, strict=True)) == sorted(map(tuple, np.sort(alike).tolist()))
    assert n_crowded == 0
    # Fewer equal marks than four standard errors below what is expected.
    pairs, _ = near_texts.candidates(bands, marks, np.zeros(200, bool), 0.72)
    assert not len(pairs.first)
    pairs, _ = near_texts.candidates(bands, marks, np.ones(200, bool), 0.7)
    assert not len(pairs.first)


def test_of_many_candidates_the_most_alike_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts are half alike, and share several bands; two and two are nearly the same."""
    monkeypatch.setattr(near_texts, "MARKS", 40)
    monkeypatch.setattr(near_texts, "KEPT", 3)
    g = np.random.default_rng(1)
    bands = g.integers(0, 2**63, (80, near_texts.BANDS)).astype(np.uint64)
    marks = g.integers(0, 256, (80, near_texts.BANDS * near_texts.ROWS)).astype(np.uint8)
    bands[:, :4], marks[:, :52] = 7, 7
    alike = g.permutation(80).reshape(40, 2)
    one, other = alike.T
    bands[other, 10:20], marks[other, :90] = bands[one, 10:20], marks[one, :90]
    pairs, n_crowded = near_texts.candidates(bands, marks, np.zeros(80, bool), 0.7)
    found = set(zip(*pairs, strict=True))
    assert found >= set(map(tuple, np.sort(alike).tolist()))
    assert len(found) <= 3 * 80
    assert n_crowded == 80


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(80, 3)
    expected = found(texts)
    monkeypatch.setattr(near_texts, "SHINGLES", 250)
    monkeypatch.setattr(near_texts, "MARKS", 3)
    monkeypatch.setattr("stages.predictions.near_duplicates.TEXTS", 7)
    assert found(texts, n_shards=5) == expected


@pytest.mark.parametrize("texts", [[], ["?!"], ["?!", "...", "good film"], ["a", "b"]])
def test_nothing_to_find(texts: list[str]) -> None:
    assert found(texts) == []


def test_copies_are_one_text_whose_rows_point_to_each_other() -> None:
    copy, near = "a rather good film of two hours", "a rather good film of two hourz"
    rows = found([copy, near, copy.upper(), f"{copy}!"], [f"  {copy}"])
    likeness = jaccard(copy, near)
    assert [tuple(row.values()) for row in rows] == [
        (0, 0, 2, 1.0, 5, 1.0),
        (1, 0, 0, likeness, 5, likeness),
        (2, 0, 0, 1.0, 5, 1.0),
        (3, 0, 0, 1.0, 5, 1.0),
    ]


def test_both_texts_of_a_pair_and_all_that_is_said_count() -> None:
    def rows_of(texts: list[str], pairs: list[str | None], form: str) -> list[int]:
        columns = {"id": [*range(len(texts))], "role": ["example"] * len(texts), "text": texts}
        table = pa.table({**columns, "text_b": pa.array(pairs, pa.string())})
        inputs = ShardedInputs({"text": table}, {"text": {"format": form}}, 1)
        return super(ShardedInputs, inputs).run(NearDuplicates())["example_id"].to_pylist()

    def talk(*turns: str) -> str:
        return json.dumps([{"role": "assistant", "content": turn} for turn in turns])

    assert rows_of(["one two", "one two", "one two"], ["x y z", "a b c", "x y z"], "text") == [0, 2]
    said = [
        talk("a good film", "yes"),
        talk("a good film", "no not really"),
        talk("a good", "film yes"),
    ]
    assert rows_of(said, [None] * 3, "messages") == [0, 2]
    called = []
    for key, city in (("c9f3a1", "Rome"), ("77e0b2", "Reykjavik"), ("b01d44", "Rome")):
        function = {"name": "weather", "arguments": {"city": city}}
        call = {"id": key, "type": "function", "function": function}
        turns = json.loads(talk("and there", ""))
        turns[0]["role"] = "user"
        called.append(json.dumps([turns[0], {**turns[1], "tool_calls": [call]}]))
    assert rows_of(called, [None] * 3, "messages") == [0, 2]


@pytest.mark.parametrize("similarity", [0.59, 1.01, float("nan")])
def test_thresholds_that_the_bands_are_not_made_for(similarity: float) -> None:
    with pytest.raises(ConfigError, match="expected a share"):
        NearDuplicates(similarity=similarity)


def test_an_instruction_that_many_rows_share_makes_none_alike() -> None:
    """Rows of one task, one of them twice with a word changed, beside free texts."""
    drawn = np.random.default_rng(3)
    task = "what does this question ask for a description an entity a person a place or a number "
    free = [" ".join(drawn.choice(list("abcdefghijklmnopqr"), 30)) for _ in range(40)]
    texts = [task + text for text in free[:30]] + free[30:]
    texts.append(task + free[0][:-5] + " zz z")
    ids = list(range(len(texts)))
    table = pa.table(
        {
            "id": ids,
            "role": ["example"] * len(ids),
            "text": texts,
            "text_b": pa.nulls(len(ids), pa.string()),
        }
    )
    inputs = ShardedInputs({"text": table}, {"text": {"format": "text"}}, 3)
    rows = super(ShardedInputs, inputs).run(NearDuplicates()).to_pylist()
    assert [(row["example_id"], row["other_id"]) for row in rows] == [(0, 40), (40, 0)]
    assert rows[0]["similarity"] == pytest.approx(jaccard(free[0], free[0][:-5] + " zz z"))


@pytest.mark.parametrize("form", ["prompt_completion", "messages"])
def test_rows_with_other_answers_are_not_the_same(form: str) -> None:
    passage = "the bridge over the river was built by two brothers from granite and oak "
    rows = [
        (passage + "who built it", "two brothers"),
        (passage + "what is it made of", "granite and oak"),
        (passage + "who built it ?", "Two brothers !"),
        (passage + "who has built it", "..."),
        (passage + "who did build it", "- - -"),
    ]
    if form == "messages":
        roles = ("user", "assistant")
        rows = [
            (json.dumps([{"role": r, "content": t} for r, t in zip(roles, row, strict=True)]), None)
            for row in rows
        ]
    texts, pairs = zip(*rows, strict=True)
    table = pa.table(
        {
            "id": range(5),
            "role": ["example"] * 5,
            "text": texts,
            "text_b": pa.array(pairs, pa.string()),
        }
    )
    inputs = ShardedInputs({"text": table}, {"text": {"format": form}}, 2)
    found = super(ShardedInputs, inputs).run(NearDuplicates()).to_pylist()
    assert [(row["example_id"], row["other_id"]) for row in found] == [
        (0, 2),
        (2, 0),
        (3, 4),
        (4, 3),
    ]
