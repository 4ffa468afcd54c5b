"""Token scores judged: texts edited by hand, and the floors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from stages.metrics.faithfulness import Faithfulness
from stages.model.seeded import generator_of
from stages.model.spec import ModelSpec
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import load_embedded
from stages.saliency.soft_ablation import retention
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


@pytest.mark.parametrize("mean", [0.2, 0.5, 0.9])
def test_every_method_keeps_the_same_share(mean: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal(7), rng.standard_cauchy(30), np.array([0.0, 0.0, 5.0])]
    for scores in (*drawn, 1e-9 * drawn[0]):
        shares = retention(scores, mean)
        assert shares.mean() == pytest.approx(mean, abs=1e-12)
        assert 0 <= shares.min() < shares.max() <= 1
        assert shares.min() == pytest.approx(0, abs=1e-9) or shares.max() == pytest.approx(1)
        steps = np.diff(shares[np.argsort(scores, kind="stable")])
        assert (steps > -1e-12).all()
        np.testing.assert_allclose(retention(1e6 * scores - 3e-4, mean), shares, atol=1e-6)
        np.testing.assert_allclose(retention(-scores, 1 - mean), 1 - shares, atol=1e-12)
    for same in (np.zeros(4), np.full(3, 0.1), np.array([2.0])):
        np.testing.assert_allclose(retention(same, mean), mean)


@pytest.mark.parametrize("by", ["signed", "absolute"])
def test_soft_measures_equal_a_plain_loop(
    memory: Any, spec: Any, queries: pa.Table, by: Any
) -> None:
    scored = memory({"text": queries})
    table = scored.run(RandomToken(spec, seed=4))
    other = table.set_column(
        table.column_names.index("score"), "score", pc.multiply(table["score"], 1000.0)
    )
    told = scored.written["explained"]
    tables = {"text": queries, "one": table, "one.explained": told}
    tables |= {"large": other, "large.explained": told}
    stage = Faithfulness(
        ("one", "large"), model=spec, by=by, draws=3, retention=0.3, seed=2, resamples=5
    )
    result = stage.compute(memory(tables), lambda *_: None)
    embedded = load_embedded(spec, memory(tables))
    tokens = embedded.measurement.tokenise(queries)
    falls: dict[str, list[float]] = {"none": [], "less": [], "more": []}
    for row, query in enumerate(queries["id"].to_pylist()):
        own = {
            r["token_index"]: abs(r["score"]) if by == "absolute" else r["score"]
            for r in table.to_pylist()
            if r["query_id"] == query
        }
        batch = embedded.batch(tokens, np.array([row]))
        words = embedded.table[batch["input_ids"][0]]

        def p(given: torch.Tensor, batch: Any = batch) -> torch.Tensor:
            with torch.no_grad():
                logits = embedded.choices(batch, np.zeros(1, np.int64), given[None])[0]
            return logits.double().softmax(0)

        choice = int(p(words).argmax())
        full = float(p(words)[choice])
        nothing = words.clone()
        nothing[list(own)] = 0
        falls["none"].append(max(0.0, full - float(p(nothing)[choice])))
        for name, sign in (("less", -1), ("more", 1)):
            values = [sign * own[at] for at in own]
            middle = sum(values) / len(values)
            up, down = max(values) - middle, middle - min(values)
            slope = min(0.7 / up, 0.3 / down) if up > 0 else 0.0
            total = 0.0
            for draw in range(3):
                uniform = torch.rand(
                    words.shape, generator=generator_of(f"2/{query}/{choice}/{draw}")
                )
                kept = words.clone()
                for at, value in zip(own, values, strict=True):
                    for element in range(words.shape[1]):
                        if uniform[at, element] >= 0.3 + slope * (value - middle):
                            kept[at, element] = 0
                total += max(0.0, full - float(p(kept)[choice]))
            falls[name].append(total / 3)
    whole = np.mean(falls["none"])
    assert whole > 0.01
    for row in result.rows:
        assert row["soft_nc"] == pytest.approx(np.mean(falls["less"]) / whole, abs=1e-5)
        assert row["soft_ns"] == pytest.approx(1 - np.mean(falls["more"]) / whole, abs=1e-5)
    assert result.rows[0]["soft_nc"] == pytest.approx(result.rows[1]["soft_nc"], abs=1e-9)
    without = Faithfulness(("one",), model=spec, draws=0, resamples=5)
    assert without.compute(memory(tables), lambda *_: None).rows[0]["soft_nc"] is None
    for wrong in ({"draws": -1}, {"retention": 1.0}):
        with pytest.raises(ConfigError, match="expected 0 or more draws and a share"):
            Faithfulness(("one",), **wrong)  # type: ignore[arg-type]


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
