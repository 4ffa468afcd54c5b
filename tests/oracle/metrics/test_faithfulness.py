"""Token scores judged: texts edited by hand, and the floors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from stages.metrics.faithfulness import Faithfulness
from stages.model.spec import ModelSpec
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import load_embedded
from stages.stage import ConfigError, DataError
from stages.tokens.attention import Attention
from stages.tokens.occlusion import Occlusion
from stages.tokens.random_token import RandomToken


@pytest.fixture
def spec(checkpoint_folder: Path) -> ModelSpec:
    return ModelSpec(str(checkpoint_folder), head="checkpoint")


@pytest.fixture
def queries(text: pa.Table) -> pa.Table:
    return text.set_column(1, "role", pa.array(["query"] * text.num_rows))


def logits_of(embedded: FromEmbeddings, ids: list[int], kinds: list[int] | None = None) -> Any:
    batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    if kinds is not None:
        batch["token_type_ids"] = torch.tensor([kinds])
    with torch.no_grad():
        return embedded.network(**batch)[0].double()


def rows_by_hand(
    embedded: FromEmbeddings,
    queries: pa.Table,
    scores: dict[int, dict[int, float]],
    stage: Faithfulness,
) -> dict[int, dict[str, float]]:
    """The measures of every query, by editing lists of tokens."""
    tokens = embedded.measurement.tokenise(queries)
    mask = embedded.measurement.tokenizer.mask_token_id
    found = {}
    for row, query in enumerate(queries["id"].to_pylist()):
        ids, kinds = (tokens.columns[name][row] for name in ("input_ids", "token_type_ids"))
        own = scores[query]
        key = abs if stage.by == "absolute" else float
        order = sorted(own, key=lambda at, own=own, key=key: (-key(own[at]), at))
        full = logits_of(embedded, ids, kinds)
        choice = int(full.argmax())

        def p(gone: Any, ids: Any = ids, kinds: Any = kinds, choice: int = choice) -> float:
            if stage.removal == "replace":
                edited = [mask if at in gone else i for at, i in enumerate(ids)]
                return float(logits_of(embedded, edited, kinds).softmax(0)[choice])
            kept = [at for at in range(len(ids)) if at not in gone]
            left = [ids[at] for at in kept]
            return float(logits_of(embedded, left, [kinds[a] for a in kept]).softmax(0)[choice])

        def first(share: float, order: Any = order, n: int = len(ids)) -> set[int]:
            return set(order[: max(1, int(share * n))])

        top = first(stage.top)
        masked = [mask if at in top else i for at, i in enumerate(ids)]
        odds = logits_of(embedded, masked, kinds).log_softmax(0)[choice]
        found[query] = {
            "log_odds": float(odds - full.log_softmax(0)[choice]),
            "comprehensiveness": p(set()) - p(top),
            "sufficiency": p(set()) - p(set(own) - top),
            "aopc": float(np.mean([p(set()) - p(first(share)) for share in stage.curve])),
        }
    return found


@pytest.mark.parametrize("removal", ["delete", "replace"])
@pytest.mark.parametrize("by", ["signed", "absolute"])
def test_measures_equal_editing_by_hand(
    memory: Any, spec: Any, queries: pa.Table, removal: Any, by: Any
) -> None:
    scored = memory({"text": queries})
    table = scored.run(RandomToken(spec, seed=3))
    stage = Faithfulness(
        ("drawn",), model=spec, removal=removal, by=by, top=0.3, resamples=20, token_budget=40
    )
    told = scored.written["explained"]
    inputs = memory({"text": queries, "drawn": table, "drawn.explained": told})
    result = stage.compute(inputs, lambda *_: None)
    scores: dict[int, dict[int, float]] = {}
    for row in table.to_pylist():
        scores.setdefault(row["query_id"], {})[row["token_index"]] = row["score"]
    embedded = load_embedded(spec, inputs)
    wanted = rows_by_hand(embedded, queries, scores, stage)
    assert len(result.details) == len(wanted)
    for one in result.details:
        for name, number in wanted[one["query_id"]].items():
            assert one[name] == pytest.approx(number, abs=2e-6), name
    (row,) = result.rows
    mean = np.mean([one["aopc"] for one in wanted.values()])
    assert row["aopc"] == pytest.approx(mean, abs=1e-6)
    assert row["aopc_low"] <= row["aopc"] <= row["aopc_high"]


def test_only_queries_that_count(memory: Any, spec: Any, queries: pa.Table) -> None:
    scored = memory({"text": queries})
    table = scored.run(Occlusion(spec))
    tables = {"text": queries, "own": table, "own.explained": scored.written["explained"]}
    stage = Faithfulness(
        ("own",), model=spec, queries=(10, 70, 999), reference="own", resamples=5, by="absolute"
    )
    result = stage.compute(memory(tables), lambda *_: None)
    assert sorted(one["query_id"] for one in result.details) == [10, 70]
    # Of itself the correlation is 1, where there are three tokens.
    found = [one["correlation"] for one in result.details if one["correlation"] is not None]
    assert found == pytest.approx([1.0] * len(found))
    assert found
    with pytest.raises(DataError, match="found no query"):
        Faithfulness(("own",), model=spec, queries=(1,)).compute(memory(tables), lambda *_: None)
    with pytest.raises(ConfigError, match="shares of the tokens"):
        Faithfulness(("own",), top=0.0)


@pytest.mark.parametrize("baseline", ["mask", "zero"])
def test_occlusion_is_one_token_at_a_time(
    memory: Any, spec: Any, queries: pa.Table, baseline: Any
) -> None:
    inputs = memory({"text": queries})
    found = inputs.run(Occlusion(spec, baseline=baseline, token_budget=33))
    embedded = load_embedded(spec, inputs)
    tokens = embedded.measurement.tokenise(queries)
    for row, query in enumerate(queries["id"].to_pylist()):
        batch = embedded.batch(tokens, np.array([row]))
        full = embedded.choices(batch, np.zeros(1, np.int64)).detach()[0]
        choice = int(full.argmax())
        for one in found.filter(pc.equal(found["query_id"], query)).to_pylist():
            given = embedded.table[batch["input_ids"]].clone()
            given[0, one["token_index"]] = embedded.baseline(baseline)
            with torch.no_grad():
                left = embedded.choices(batch, np.zeros(1, np.int64), given)[0]
            assert one["score"] == pytest.approx(float(full[choice] - left[choice]), abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama"])
def test_attention_is_that_of_the_last_layer(
    memory: Any, saved: Any, queries: pa.Table, kind: str
) -> None:
    spec = ModelSpec(str(saved(kind, "SequenceClassification")), head="checkpoint")
    inputs = memory({"text": queries})
    found = inputs.run(Attention(spec, token_budget=50))
    embedded = load_embedded(spec, inputs)
    classifier: Any = embedded.network.classifier
    classifier.set_attn_implementation("eager")
    tokens = embedded.measurement.tokenise(queries)
    for row, query in enumerate(queries["id"].to_pylist()):
        batch = embedded.batch(tokens, np.array([row]))
        weights = classifier(**batch, output_attentions=True).attentions[-1][0]
        wanted = weights.mean((0, 1)).detach()
        for one in found.filter(pc.equal(found["query_id"], query)).to_pylist():
            assert one["score"] == pytest.approx(float(wanted[one["token_index"]]), abs=1e-6)


def test_random_scores_depend_on_query_and_seed_alone(
    memory: Any, spec: Any, queries: pa.Table
) -> None:
    whole = memory({"text": queries}).run(RandomToken(spec))
    one = memory({"text": queries.slice(2, 1)}).run(RandomToken(spec))
    same = whole.filter(pc.equal(whole["query_id"], one["query_id"][0]))
    assert same["score"].equals(one["score"])
    other = memory({"text": queries}).run(RandomToken(spec, seed=1))
    assert not other["score"].equals(whole["score"])
