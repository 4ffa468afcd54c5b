"""Questions about texts: how they are read, where the answer is, and which words point there."""

from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.metrics.faithfulness import Faithfulness
from stages.model.measurement import Measurement, load_measurement
from stages.model.offsets import token_offsets
from stages.model.spec import ModelSpec
from stages.predictions.answer_span import AnswerSpan, best_span
from stages.saliency.from_embeddings import FromEmbeddings
from stages.stage import ConfigError, DataError, Part
from stages.tokens.grad_input import GradInput
from stages.tokens.ig import IntegratedGradients
from stages.tokens.lafa import Lafa
from stages.tokens.occlusion import Occlusion
from stages.tokens.simple_grad import SimpleGrad
from stages.tokens.udig import Udig
from stages.tokens.word_path import WordPath

ASKED = [
    ("the film was slowly good and the plot was dull", "was the plot good"),
    ("a bright film", "film"),
    ("not bad but very very very slow", "the film the film the film the film the film"),
]


@pytest.fixture
def asked() -> pa.Table:
    texts, questions = zip(*ASKED, strict=True)
    columns = {"id": [3, 1, 2], "role": ["query"] * 3, "text": texts, "text_b": questions}
    return pa.table(columns)


@pytest.fixture(params=["bert", "roberta"])
def spec(saved: Any, request: pytest.FixtureRequest) -> ModelSpec:
    return ModelSpec(str(saved(request.param, "QuestionAnswering", num_labels=2)), head="span")


def measured(memory: Any, spec: ModelSpec, asked: pa.Table) -> Measurement:
    return load_measurement(spec, memory({"text": asked}))


@pytest.mark.parametrize("longest", [128, 16, 8])
def test_the_question_comes_first_and_the_text_loses_its_end(
    memory: Any, spec: ModelSpec, asked: pa.Table, longest: int
) -> None:
    measurement = measured(memory, ModelSpec(spec.path, head="span", max_length=longest), asked)
    tokens = measurement.tokenise(asked, with_offsets=True)
    special = set(measurement.tokenizer.all_special_ids)
    for row, own in enumerate(token_offsets(measurement, asked, tokens)):
        ids = tokens.columns["input_ids"][row]
        assert len(ids) <= longest
        columns = [name for name in own.column if name]
        assert columns == sorted(columns, reverse=True)  # text_b, then text
        for at, name in enumerate(own.column):
            assert (name is None) == (ids[at] in special)
            assert tokens.columns["is_context"][row][at] == (name == "text")
            if name:
                whole = asked[name][row].as_py()
                assert whole[own.start[at] : own.end[at]] == own.token[at]
        assert "text" in columns
        if longest == 128:
            for name in ("text", "text_b"):
                told = "".join(t for t, c in zip(own.token, own.column, strict=True) if c == name)
                assert told == asked[name][row].as_py().replace(" ", "")


def test_a_row_without_a_question_is_refused(memory: Any, spec: ModelSpec, asked: pa.Table) -> None:
    bare = asked.set_column(3, "text_b", pa.nulls(3, pa.string()))
    with pytest.raises(DataError, match="found no question about 'the film"):
        memory({"text": bare}).run(AnswerSpan(spec))


@pytest.mark.parametrize("longest", [1, 3, 15])
def test_answers_are_the_best_of_all_spans(
    memory: Any, spec: ModelSpec, asked: pa.Table, longest: int
) -> None:
    found = memory({"text": asked}).run(AnswerSpan(spec, longest, token_budget=40))
    measurement = measured(memory, spec, asked)
    tokens = measurement.tokenise(asked)
    for row, query in enumerate(asked["id"].to_pylist()):
        (own,) = (one for one in found.to_pylist() if one["id"] == query)
        batch = measurement.batch(tokens, np.array([row]))
        batch.pop("is_context")
        with torch.no_grad():
            outputs = measurement.network.model(**batch)
        inside = [at for at, is_in in enumerate(tokens.columns["is_context"][row]) if is_in]
        start = outputs.start_logits[0].double()[inside].log_softmax(0)
        end = outputs.end_logits[0].double()[inside].log_softmax(0)
        spans = {
            (i, j): float(start[a] + end[b])
            for a, i in enumerate(inside)
            for b, j in enumerate(inside)
            if 0 <= b - a < longest
        }
        best = max(spans, key=lambda span: spans[span])
        assert (own["token_start"], own["token_end"]) == best
        assert own["probability"] == pytest.approx(np.exp(spans[best]), rel=1e-5)
        assert own["answer"] == asked["text"][row].as_py()[own["char_start"] : own["char_end"]]
        assert own["answer"]


def test_equal_spans_go_to_the_first() -> None:
    assert best_span(torch.zeros(2, 4), 2) == (0, 0)
    assert best_span(torch.tensor([[0.0, 1, 5], [9, 0, 0]]), 3) == (0, 0)
    assert best_span(torch.tensor([[0.0, 1, 5], [4, 0, 0]]), 1) == (2, 2)


def test_integrated_gradients_of_both_places_equal_captums(
    memory: Any, spec: ModelSpec, asked: pa.Table
) -> None:
    inputs = memory({"text": asked})
    found = inputs.run(IntegratedGradients(spec, steps=12, baseline="zero"))
    told = inputs.written["explained"].to_pylist()
    measurement = measured(memory, spec, asked)
    embedded = FromEmbeddings(measurement)
    tokens = measurement.tokenise(asked, with_offsets=True)
    special = measurement.tokenizer.all_special_ids
    for row, query in enumerate(asked["id"].to_pylist()):
        batch = measurement.batch(tokens, np.array([row]))
        ids = batch["input_ids"][0]
        moved = torch.tensor([i not in special for i in ids.tolist()])
        x = embedded.table[ids]
        start = torch.where(moved[:, None], torch.zeros_like(x), x)
        for which, name in enumerate(("start", "end")):
            (fact,) = (r for r in told if r["query_id"] == query and r["output"] == which)
            with torch.no_grad():
                logits = measurement.network(**batch)[0, which]
            assert fact["output_name"] == name
            assert fact["choice"] == int(logits.argmax())
            assert fact["value"] == pytest.approx(float(logits.max()), abs=1e-5)
            assert tokens.columns["is_context"][row][fact["choice"]]

            def output(
                rows: torch.Tensor, batch: Any = batch, which: int = which, at: int = fact["choice"]
            ) -> torch.Tensor:
                many = {name: value.expand(len(rows), -1) for name, value in batch.items()}
                return embedded.choices(many, np.full(len(rows), which), rows)[:, at]

            peer = captum.attr.IntegratedGradients(output)
            wanted = peer.attribute(x[None], start[None], n_steps=12, method="gausslegendre")
            own = [
                r["score"]
                for r in found.to_pylist()
                if r["query_id"] == query and r["output"] == which
            ]
            np.testing.assert_allclose(own, wanted.sum(2)[0][moved].detach(), atol=1e-5)


def test_every_method_explains_both_places(memory: Any, spec: ModelSpec, asked: pa.Table) -> None:
    paths = memory({"text": asked}).run(WordPath(spec, anchors=3, neighbours=4))
    tables = {"text": asked, "word_path": paths}
    scored = {}
    for stage in (Udig(spec, anchors=3, neighbours=4), Occlusion(spec), GradInput(spec)):
        inputs = memory(tables)
        name = type(stage).__name__.lower()
        scored[name] = inputs.run(stage)
        scored[f"{name}.explained"] = inputs.written["explained"]
        keys = set(zip(*(scored[name][c].to_pylist() for c in ("query_id", "output")), strict=True))
        assert keys == {(query, which) for query in (1, 2, 3) for which in (0, 1)}
    inputs = memory({"text": asked, **scored})
    told = {}
    for top in (None, 0.5, 0.2):
        metric = Faithfulness(("udig", "occlusion"), model=spec, top=top, resamples=5)
        told[top] = metric.compute(inputs, lambda *_: None).rows
    assert {row["outputs"] for row in told[None]} == {6}
    assert told[None] == told[0.5] != told[0.2]
    with pytest.raises(ConfigError, match="found delete for answers"):
        Faithfulness(("udig",), model=spec, removal="delete").compute(inputs, lambda *_: None)


def test_occlusion_replaces_a_word_and_reads_the_same_place(
    memory: Any, spec: ModelSpec, asked: pa.Table
) -> None:
    inputs = memory({"text": asked})
    found = inputs.run(Occlusion(spec)).to_pylist()
    told = inputs.written["explained"].to_pylist()
    measurement = measured(memory, spec, asked)
    tokens = measurement.tokenise(asked)
    row = asked["id"].to_pylist().index(2)
    batch = measurement.batch(tokens, np.array([row]))
    for which in (0, 1):
        (fact,) = (r for r in told if r["query_id"] == 2 and r["output"] == which)
        for one in found:
            if (one["query_id"], one["output"]) != (2, which):
                continue
            ids = batch["input_ids"].clone()
            ids[0, one["token_index"]] = measurement.tokenizer.mask_token_id
            with torch.no_grad():
                logits = measurement.network(**{**batch, "input_ids": ids})[0, which]
            fall = fact["value"] - float(logits[fact["choice"]])
            assert one["score"] == pytest.approx(fall, abs=2e-5)


def test_answers_need_their_head(checkpoint_folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected head: span"):
        AnswerSpan(ModelSpec(str(checkpoint_folder), head="checkpoint")).check_reads({})
    with pytest.raises(ConfigError, match="longest: found 0"):
        AnswerSpan(ModelSpec(str(checkpoint_folder), head="span"), longest=0)


def test_neighbours_answer_their_own_questions(
    memory: Any, sharded: Any, spec: ModelSpec, asked: pa.Table, rows: Any
) -> None:
    """What a neighbour adds are the squared gradients of its own start, and of its own end."""
    base = memory({"text": asked}).run(SimpleGrad(spec)).to_pylist()
    ids = measured(memory, spec, asked).tokenise(asked).columns["input_ids"]

    def scores(row: int, which: int) -> dict[int, float]:
        query = asked["id"][row].as_py()
        own = (r for r in base if (r["query_id"], r["output"]) == (query, which))
        return {r["token_index"]: r["score"] for r in own}

    queries = asked.slice(0, 1).set_column(0, "id", pa.array([1000]))
    examples = asked.slice(1, 2).set_column(0, "id", pa.array([0, 1]))
    examples = examples.set_column(1, "role", pa.array(["example"] * 2))
    vectors = rows(torch.eye(3)[:2], torch.eye(3)[2:])
    inputs = sharded(
        {"text": pa.concat_tables([examples, queries]), "embedding": vectors}, n_shards=1
    )
    stage = Lafa(spec, weight=0.5, quantile=None)
    inputs.opened = stage.open(inputs)
    inputs.part = Part("query", 0)
    found = dict(stage.compute(inputs))["token"].to_pylist()
    for which in (0, 1):
        wanted = scores(0, which)
        for at in wanted:
            for row in (1, 2):
                theirs = scores(row, which)
                same = sum(m for k, m in theirs.items() if ids[row][k] == ids[0][at])
                wanted[at] += 0.5 * same / len(theirs) / 2
        own = {r["token_index"]: r["score"] for r in found if r["output"] == which}
        assert own == pytest.approx(wanted, rel=1e-4)
        assert wanted != pytest.approx(scores(0, which), rel=1e-4)
