"""Continuations against transformers' own, token spectra against a pass over every place."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from memory_inputs import MemoryInputs

from stages.model.spec import ModelSpec
from stages.pairs.token_support import TokenSupport
from stages.predictions.continuation import Continuation
from stages.ranking.spectrum import frontier
from stages.stage import ConfigError, DataError, Part

CORPUS = [
    "the film was good and the plot was very good",
    "a dull film is a bad film",
    "not a good plot but very slow",
    "the plot is dull and the film is bad",
    "a bright plot was not bad",
    "very good",
]
QUERIES = ["one film is", "my slow plot"]


class Texts(MemoryInputs):
    """A corpus of texts of which the examples `at` are read, and two queries."""

    def __init__(self, form: str = "text") -> None:
        self.form, self.at = form, list(range(len(CORPUS)))
        super().__init__({"text": self.texts}, {"text": {"format": form}})

    def texts(self) -> pa.Table:
        texts = [*QUERIES, *(CORPUS[at] for at in self.at)]
        second = [" very good" if self.form == "prompt_completion" else None] * len(texts)
        return pa.table(
            {
                "id": pa.array([*range(len(QUERIES)), *self.at], pa.int64()),
                "role": ["query"] * len(QUERIES) + ["example"] * len(self.at),
                "text": texts,
                "text_b": pa.array(second, pa.string()),
            }
        )


def run(stage: Any, inputs: MemoryInputs) -> dict[str, pa.Table]:
    inputs.part = Part("example", 0) if stage.split == "shard" else Part("", 0)
    inputs.open(stage)
    return inputs.compute(stage)


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec(str(folder), head="completion", max_length=64)


@pytest.fixture(scope="module")
def folder(saved: Any) -> Path:
    found: Path = saved("llama", "CausalLM")
    return found


@pytest.mark.parametrize("form", ["text", "prompt_completion"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("has_ends", [False, True])
def test_a_continuation_is_what_generate_writes(
    kind: str, form: str, has_ends: bool, saved: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(kind, "CausalLM"), tmp_path / "model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    every = {tokenizer.decode([token]).strip() for token in range(len(tokenizer))}
    stage = Continuation(spec_of(folder), new_tokens=7, words=tuple(every))
    rows = run(stage, Texts(form))["continuation"].to_pylist()
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    if has_ends:
        # A token that is written behind the first query ends what is written.
        first, *others = (row["token_id"] for row in rows if row["query_id"] == 0)
        end = next(token for token in others if token != first)
        network.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
        network.generation_config.save_pretrained(folder)
        rows = run(stage, Texts(form))["continuation"].to_pylist()
    for query, text in enumerate(QUERIES):
        ids = tokenizer(text)["input_ids"]
        ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        whole = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=7)[0]
        logits = network(whole[None]).logits[0].detach().double()
        mine = [row for row in rows if row["query_id"] == query]
        assert mine or has_ends
        for row in mine:
            at, token = row["token_index"], row["token_id"]
            assert at >= len(ids)
            assert token == whole[at]
            assert row["logit"] == pytest.approx(logits[at - 1, token].item(), abs=1e-4)
            p = torch.softmax(logits[at - 1], 0)[token].item()
            assert row["probability"] == pytest.approx(p, rel=1e-3)
            assert row["context"] == tokenizer.decode(whole[:at])


def test_tokens_of_a_text_that_is_there_are_chosen_by_tf_idf(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    documents = [set(tokenizer(text)["input_ids"]) for text in CORPUS]
    stage = Continuation(spec_of(folder), new_tokens=0, positions=2)
    rows = run(stage, Texts())["continuation"].to_pylist()
    for query, text in enumerate(QUERIES):
        ids = tokenizer(text)["input_ids"]
        scores = {}
        for at, token in enumerate(ids):
            found = sum(token in document for document in documents)
            word = tokenizer.decode([token]).strip()
            if at and found and any(c.isalpha() for c in word) and token not in ids[:at]:
                scores[at] = ids.count(token) * np.log(len(documents) / found)
        best = sorted(scores, key=lambda at: (-scores[at], at))[:2]
        mine = [row for row in rows if row["query_id"] == query]
        assert [row["token_index"] for row in mine] == sorted(best)
        for row in mine:
            assert row["tf_idf"] == pytest.approx(scores[row["token_index"]])


def test_words_that_the_user_names(folder: Path) -> None:
    stage = Continuation(spec_of(folder), new_tokens=0, words=("film", "plot"))
    rows = run(stage, Texts())["continuation"].to_pylist()
    assert [(row["query_id"], row["token"].strip()) for row in rows] == [(0, "film"), (1, "plot")]


@pytest.mark.parametrize("similarity", ["inner_product", "cosine"])
def test_a_spectrum_is_that_of_every_place_of_the_corpus(folder: Path, similarity: Any) -> None:
    inputs = Texts()
    words = Continuation(spec_of(folder), new_tokens=0, words=("film", "plot", "is", "slow"))
    asked = run(words, inputs)["continuation"]
    inputs.tables["continuation"] = asked
    stage = TokenSupport(spec_of(folder), similarity=similarity, token_budget=40)
    found = run(stage, inputs)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    places = []
    for example, text in enumerate(CORPUS):
        ids = [*tokenizer(text)["input_ids"]]
        ids = ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        states = network.base_model(torch.tensor([ids])).last_hidden_state[0]
        logits = network.lm_head(states)
        for at in range(1, len(ids)):
            logit = logits[at - 1, ids[at]].item()
            places.append((example, at, ids[at], logit, states[at - 1].detach().numpy()))
    sizes = {(r["query_id"], r["token_index"]): r for r in found["token_support_size"].to_pylist()}
    assert len(sizes) == asked.num_rows
    for one in asked.to_pylist():
        query = np.array(one["vector"])
        same = [p for p in places if p[2] == one["token_id"]]
        between = [p for p in same if p[3] < one["logit"] - 1e-9]
        size = sizes[one["query_id"], one["token_index"]]
        assert (size["n_places"], size["n_support"]) == (len(same), len(between))
        local = [
            float(p[4] @ query)
            / (1 if similarity == "inner_product" else np.linalg.norm(p[4]) * np.linalg.norm(query))
            for p in between
        ]
        g = np.array([-p[3] for p in between])
        front = frontier(np.arange(len(between)), g, np.array(local))
        mine = [
            row
            for row in found["token_support"].to_pylist()
            if (row["query_id"], row["token_index"]) == (one["query_id"], one["token_index"])
        ]
        expected = [between[at][:2] for at in front.at]
        assert [(row["example_id"], row["example_token_index"]) for row in mine] == expected
        np.testing.assert_allclose([row["local_score"] for row in mine], front.local_score, 1e-4)
        for row in mine:
            ids = tokenizer(CORPUS[row["example_id"]])["input_ids"]
            assert row["context"] == tokenizer.decode(ids[: row["example_token_index"]])


def test_shards_merge_to_the_whole(folder: Path) -> None:
    inputs = Texts()
    words = Continuation(spec_of(folder), new_tokens=0, words=("film", "plot", "is"))
    inputs.tables["continuation"] = run(words, inputs)["continuation"]
    stage = TokenSupport(spec_of(folder))
    whole = run(stage, inputs)
    shards = []
    for at in ([0, 1], [2], [3, 4, 5]):
        inputs.at = at
        shards.append(run(stage, inputs))
    merged = shards[0]
    for shard in shards[1:]:
        parts = {name: [merged[name], shard[name]] for name in whole}
        merged = {n: pa.Table.from_batches([b]) for n, b in stage.merge(parts)}
    for name, table in whole.items():
        left, right = merged[name].to_pydict(), table.to_pydict()
        for column, expected in right.items():
            if column.endswith("score"):
                np.testing.assert_allclose(left[column], expected, rtol=1e-5)
            else:
                assert left[column] == expected


def test_what_is_refused(folder: Path) -> None:
    inputs = Texts()
    with pytest.raises(ConfigError, match="positions: 0"):
        Continuation(spec_of(folder), positions=0)
    other = Continuation(ModelSpec(str(folder), head="completion", max_length=32))
    with pytest.raises(ConfigError, match="not that of token_support"):
        TokenSupport(spec_of(folder)).check_reads({"continuation": other})
    nothing = Continuation(spec_of(folder), new_tokens=0, words=("unheard",))
    inputs.tables["continuation"] = run(nothing, inputs)["continuation"]
    with pytest.raises(DataError, match="no token to explain"):
        TokenSupport(spec_of(folder)).open(inputs)
