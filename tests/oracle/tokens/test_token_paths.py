"""Path attribution against captum, its definition in a plain loop, and its axioms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.model.measurement import Measurement, load_measurement
from stages.model.spec import ModelSpec
from stages.saliency.anchors import NO_ANCHOR, corrected, n_points, search, walk
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.path import nodes
from stages.tokens import scores
from stages.tokens.dig import Dig
from stages.tokens.grad_input import GradInput
from stages.tokens.gradient_shap import GradientShap
from stages.tokens.ig import IntegratedGradients
from stages.tokens.occlusion import Occlusion
from stages.tokens.sig import SequentialGradients
from stages.tokens.simple_grad import SimpleGrad
from stages.tokens.smooth_grad import SmoothGrad
from stages.tokens.udig import Udig
from stages.tokens.word_path import WordPath

KINDS = ["bert", "roberta", "distilbert", "gpt2", "llama"]


@pytest.fixture
def queries(text: pa.Table) -> pa.Table:
    rows = text.set_column(1, "role", pa.array(["query"] * text.num_rows))
    return rows.sort_by("id")


@pytest.fixture
def asked(memory: Any, queries: pa.Table) -> Callable[..., Any]:
    def make(**tables: pa.Table) -> Any:
        return memory({"text": queries, **tables})

    return make


def scores_of(found: pa.Table) -> list[np.ndarray]:
    ids = found["query_id"].to_numpy()
    scores = found["score"].to_numpy()
    return [scores[ids == one] for one in np.unique(ids)]


def by_loop(
    inputs: Any, folder: Path, queries: pa.Table, explain: Callable[..., torch.Tensor]
) -> list[Any]:
    """What `explain(F, x, x')` gives for the moved tokens of each query, one at a time."""
    embedded = FromEmbeddings(load_measurement(ModelSpec(str(folder), head="checkpoint"), inputs))
    network, tokenizer = embedded.network, embedded.measurement.tokenizer
    found = []
    for row in range(queries.num_rows):
        tokens = embedded.measurement.tokenise(queries.slice(row, 1))
        batch = embedded.measurement.batch(tokens, np.zeros(1, np.int64))
        ids = batch["input_ids"][0]
        special = torch.tensor([i in tokenizer.all_special_ids for i in ids.tolist()])
        x = embedded.table[ids]
        start = torch.where(special[:, None], x, embedded.table[tokenizer.pad_token_id])
        with torch.no_grad():
            chosen = int(network(**batch)[0].argmax())

        def output(rows: torch.Tensor, batch: Any = batch, chosen: int = chosen) -> torch.Tensor:
            many = {name: value.expand(len(rows), -1) for name, value in batch.items()}
            return embedded.choices(many, np.zeros(len(rows), np.int64), rows)[:, chosen]

        found.append(explain(output, x[None], start[None])[0][~special].detach().numpy())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rule", "method"), [("gauss_legendre", "gausslegendre"), ("left", "riemann_left")]
)
def test_integrated_gradients_equal_captums(
    saved: Any, queries: pa.Table, asked: Any, kind: str, rule: Any, method: str
) -> None:
    folder = saved(kind, "SequenceClassification")

    def explain(output: Any, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        peer = captum.attr.IntegratedGradients(output)
        return peer.attribute(x, start, n_steps=20, method=method).sum(2)

    wanted = by_loop(asked(), folder, queries, explain)
    spec = ModelSpec(str(folder), head="checkpoint")
    stage = IntegratedGradients(spec, steps=20, rule=rule, baseline="pad", token_budget=64)
    found = scores_of(asked().run(stage))
    for own, peer in zip(found, wanted, strict=True):
        np.testing.assert_allclose(own, peer, atol=1e-5 * max(1e-2, np.abs(peer).max()))


def test_grad_input_equals_captums(saved: Any, queries: pa.Table, asked: Any) -> None:
    folder = saved("bert", "SequenceClassification")

    def explain(output: Any, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return captum.attr.InputXGradient(output).attribute(x.requires_grad_()).sum(2)

    wanted = by_loop(asked(), folder, queries, explain)
    found = scores_of(asked().run(GradInput(ModelSpec(str(folder), head="checkpoint"))))
    for own, peer in zip(found, wanted, strict=True):
        np.testing.assert_allclose(own, peer, rtol=1e-4, atol=1e-7)


def test_sequential_gradients_move_one_token(saved: Any, queries: pa.Table, asked: Any) -> None:
    folder = saved("bert", "SequenceClassification")
    at, weights = nodes(8, "gauss_legendre")

    def explain(output: Any, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(x.shape[:2])
        for token in range(x.shape[1]):
            for place, weight in zip(at, weights, strict=True):
                point = x.clone()
                step = (x - start)[0, token]
                point[0, token] = start[0, token] + place * step
                point.requires_grad_()
                (gradient,) = torch.autograd.grad(output(point).sum(), point)
                scores[0, token] += float(weight) * (gradient[0, token] * step).sum()
        return scores

    wanted = by_loop(asked(), folder, queries, explain)
    stage = SequentialGradients(
        ModelSpec(str(folder), head="checkpoint"), steps=8, baseline="pad", token_budget=50
    )
    for own, peer in zip(scores_of(asked().run(stage)), wanted, strict=True):
        np.testing.assert_allclose(own, peer, rtol=1e-4, atol=1e-7)


def test_scores_add_up_to_what_the_delta_says(checkpoint_folder: Path, asked: Any) -> None:
    spec = ModelSpec(str(checkpoint_folder), head="checkpoint")
    for stage, bound in (
        (IntegratedGradients(spec, steps=60), 1e-3),
        (IntegratedGradients(spec, steps=400, rule="trapezoid"), 1e-3),
        (Udig(spec, anchors=6, neighbours=5, midpoints=5, rule="trapezoid"), 2e-2),
        (Dig(spec, anchors=6, neighbours=5, midpoints=5, rule="trapezoid"), 2e-2),
    ):
        inputs = asked(word_path=WORD_PATHS.schema.empty_table())
        found = inputs.run(stage)
        told = inputs.written["explained"]
        sums = np.array([own.sum() for own in scores_of(found)])
        rise = told["value"].to_numpy() - told["baseline_value"].to_numpy()
        np.testing.assert_allclose(sums - rise, told["delta"].to_numpy(), atol=1e-6)
        assert np.abs(told["delta"].to_numpy()).max() < bound * np.abs(rise).max()


def test_gradient_shap_tends_to_integrated_gradients(checkpoint_folder: Path, asked: Any) -> None:
    spec = ModelSpec(str(checkpoint_folder), head="checkpoint")
    exact = np.concatenate(scores_of(asked().run(IntegratedGradients(spec))))
    errors = []
    for samples in (20, 2000):
        found = scores_of(asked().run(GradientShap(spec, samples=samples)))
        errors.append(np.abs(np.concatenate(found) - exact).max())
    assert errors[1] < errors[0] / 3


WORD_PATHS = pa.table(
    {"token_id": pa.array([], pa.int64()), "anchors": pa.array([], pa.list_(pa.int64()))}
)


def exhaustive(
    table: torch.Tensor,
    word: int,
    baseline: torch.Tensor,
    own: int | None,
    m: int,
    k: int,
    **how: str,
) -> list[int]:
    """The anchors of one word, by looking at every other."""
    used, previous, found = {word} | ({own} if own is not None else set()), table[word], []
    for p in range(m, 0, -1):
        uniform = baseline + p / (m + 1) * (table[word] - baseline)
        centre = uniform if how["candidates"] == "uniform" else previous
        distance = [float((row - centre).norm()) for row in table]
        near = sorted(range(len(table)), key=lambda i: distance[i])[:k]
        best, anchor = None, None
        for i in near:
            if i in used:
                continue
            low, high = torch.minimum(baseline, previous), torch.maximum(baseline, previous)
            lies = (low <= table[i]) & (table[i] <= high)
            fixed = torch.where(lies, table[i], previous - (previous - baseline) / m)
            cost = float((table[i] - fixed).norm())
            if how["strategy"] == "maxcount":
                cost = -float(lies.sum())
            if best is None or cost < best:
                best, anchor = cost, i
        found.append(NO_ANCHOR if anchor is None else anchor)
        previous = baseline if anchor is None else table[anchor]
        used |= set() if anchor is None else {anchor}
    return found


@pytest.mark.parametrize("strategy", ["greedy", "maxcount"])
@pytest.mark.parametrize("candidates", ["uniform", "previous"])
@pytest.mark.parametrize("own", [3, None])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_anchors_equal_an_exhaustive_search(
    strategy: Any, candidates: Any, own: int | None, k: int
) -> None:
    table = torch.randn(40, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    baseline = table[own] if own is not None else torch.zeros(5, dtype=torch.float64)
    words = torch.arange(40)
    found = search(table, words, baseline, own, 8, k, strategy, candidates)
    how = {"strategy": strategy, "candidates": candidates}
    for word in words.tolist():
        assert found[word].tolist() == exhaustive(table, word, baseline, own, 8, k, **how)


@pytest.mark.parametrize("midpoints", [0, 1, 3])
def test_paths_are_monotone_in_every_dimension(midpoints: int) -> None:
    table = torch.randn(60, 7, generator=torch.Generator().manual_seed(1))
    words = torch.arange(60)
    for candidates in ("uniform", "previous"):
        found = search(table, words, table[5], 5, 9, 4, "greedy", candidates)
        path = walk(table, words, found, table[5], midpoints)
        assert path.shape == (n_points(9, midpoints), 60, 7)
        steps = path.diff(dim=0)
        rise = table[words] - table[5]
        # Rounding may turn a step of nothing around, by a last bit.
        assert (steps * rise.sign() >= -1e-6).all()
        assert torch.equal(path[-1], table)
        assert torch.equal(path[0], table[5].expand(60, -1))
        # The baseline's own path stands still.
        assert (path[:, 5] == table[5]).all()


@pytest.mark.parametrize("strategy", ["greedy", "maxcount"])
@pytest.mark.parametrize("candidates", ["uniform", "previous"])
def test_anchors_stay_on_the_device_of_the_words(strategy: Any, candidates: Any) -> None:
    # Tensors without data refuse to be mixed with those of another device, as a GPU's do.
    table = torch.empty(100, 8, device="meta")
    words = torch.empty(5, dtype=torch.int64, device="meta")
    anchors = search(table, words, table[3], 3, 4, 7, strategy, candidates)
    assert anchors.device == table.device
    assert anchors.shape == (5, 4)
    assert walk(table, words, anchors, table[3], 1).shape == (n_points(4, 1), 5, 8)


def test_a_corrected_anchor_keeps_what_lies_between() -> None:
    baseline, upper = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2.0, 2.0, 1.0])
    fixed, lies = corrected(torch.tensor([1.0, 3.0, 1.0]), baseline, upper, 4)
    assert lies.tolist() == [True, False, True]
    assert fixed.tolist() == [1.0, 1.5, 1.0]


@pytest.mark.parametrize("make", [Udig, Dig])
def test_the_table_of_anchors_changes_nothing(
    checkpoint_folder: Path, asked: Any, queries: pa.Table, memory: Any, make: Any
) -> None:
    spec = ModelSpec(str(checkpoint_folder), head="checkpoint")
    stage = make(spec, anchors=5, neighbours=4)
    asks = stage.asks["word_path"]
    table = memory({"text": queries}).run(WordPath(**{**asks, "model": spec}))
    assert table.num_rows > 5
    with_table = asked(word_path=table).run(stage)
    without = asked(word_path=WORD_PATHS).run(stage)
    assert with_table.equals(without)


class Bag(torch.nn.Module):
    """A table of words, as a trunk has one."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(n_words, 8)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.words


class LinearNetwork(torch.nn.Module):
    """Logits are the sum over tokens of a linear map of their embeddings, and nothing else."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.bag, self.head = Bag(n_words), torch.nn.Linear(8, 3)

    def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> torch.Tensor:
        vectors = self.bag.words(input_ids) * attention_mask.unsqueeze(-1)
        logits: torch.Tensor = self.head(vectors.sum(1))
        return logits


SIGNED = {
    "ig": lambda spec, b: IntegratedGradients(spec, 5, baseline=b),
    "ig_left": lambda spec, b: IntegratedGradients(spec, 5, "left", b),
    "udig": lambda spec, b: Udig(spec, anchors=4, neighbours=5, baseline=b),
    "udig_greedy": lambda spec, b: Udig(spec, 4, 5, "greedy", rule="trapezoid", baseline=b),
    "dig": lambda spec, b: Dig(spec, anchors=4, neighbours=5, baseline=b),
    "sig": lambda spec, b: SequentialGradients(spec, steps=2, baseline=b),
    "gradient_shap": lambda spec, b: GradientShap(spec, samples=3, baseline=b),
    "occlusion": lambda spec, b: Occlusion(spec, baseline=b),
}


@pytest.mark.parametrize("baseline", ["mask", "pad", "zero"])
def test_a_linear_bag_of_embeddings_has_one_answer(
    checkpoint_folder: Path, asked: Any, monkeypatch: pytest.MonkeyPatch, baseline: Any
) -> None:
    spec = ModelSpec(str(checkpoint_folder), head="checkpoint")
    plain = load_measurement(spec, asked())
    torch.manual_seed(3)
    network = LinearNetwork(len(plain.tokenizer))
    linear = Measurement(network, plain.tokenizer, 3, spec, "cpu")
    for module in ("saliency.outputs", "tokens.anchored_path"):
        monkeypatch.setattr(f"stages.{module}.load_measurement", lambda *_: linear)
    embedded = FromEmbeddings(linear)
    tokens, start = linear.tokenise(asked().table("text")), embedded.baseline(baseline)
    special, known, squares = plain.tokenizer.all_special_ids, [], []
    for ids in tokens.columns["input_ids"]:
        x = embedded.table[torch.tensor(ids)]
        weight = network.head.weight[int(network.head(x.sum(0)).argmax())].detach()
        moved = [i not in special for i in ids]
        known.append(((x - start) @ weight)[torch.tensor(moved)].numpy())
        squares.append(np.full(sum(moved), float(weight.square().sum())))
    makes: dict[str, Any] = dict(SIGNED)
    if baseline == "zero":
        makes["grad_input"] = lambda spec, _: GradInput(spec)
    for name, make in makes.items():
        inputs = asked(word_path=WORD_PATHS)
        found = scores_of(inputs.run(make(spec, baseline)))
        for own, wanted in zip(found, known, strict=True):
            np.testing.assert_allclose(own, wanted, atol=2e-5, err_msg=name)
    for unsigned in (SimpleGrad(spec), SmoothGrad(spec, samples=3)):
        for own, wanted in zip(scores_of(asked().run(unsigned)), squares, strict=True):
            np.testing.assert_allclose(own, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "stage",
    [
        IntegratedGradients,
        SequentialGradients,
        GradientShap,
        GradInput,
        SmoothGrad,
        Occlusion,
        Udig,
        Dig,
    ],
)
def test_blocks_of_queries_have_the_scores_of_all_at_once(
    saved: Any, queries: pa.Table, asked: Any, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other batches round otherwise: float32 sums of a few hundred products."""
    spec = ModelSpec(str(saved("bert", "SequenceClassification")), head="checkpoint")
    short = {"anchors": 3, "neighbours": 4, "paths": "path"} if stage in (Udig, Dig) else {}
    given = {}
    if short:
        fields = {name: short[name] for name in ("anchors", "neighbours")}
        strategy = stage(spec, **short).strategy
        path = WordPath(spec, candidates=stage.candidates, strategy=strategy, **fields)
        given["path"] = asked().run(path)
    once = asked(**given)
    found = once.run(stage(spec, token_budget=4096, **short))
    assert once.steps == [(0, 1), (1, 1)]
    monkeypatch.setattr(scores, "query_blocks", lambda text, _: [[i] for i in ids(text)])
    cut = asked(**given)
    apart = cut.run(stage(spec, token_budget=4096, **short))
    assert cut.steps == [(n, queries.num_rows) for n in range(queries.num_rows + 1)]
    names = ["query_id", "output", "token_index", "token", "char_start", "word_index"]
    assert apart.select(names).equals(found.select(names))
    atol = 1e-5 * np.abs(found["score"].to_numpy()).max()
    np.testing.assert_allclose(apart["score"], found["score"], atol=atol)
    explained, whole = cut.written["explained"], once.written["explained"]
    assert explained["query_id"].equals(whole["query_id"])
    np.testing.assert_allclose(explained["value"], whole["value"], rtol=1e-5)


def ids(text: pa.Table) -> list[int]:
    return sorted(text["id"].to_pylist())


def test_blocks_have_the_queries_of_full_batches_and_always_one() -> None:
    texts = ["a" * n for n in (10, 10, 10, 2000, 10, 900, 200, 10)]
    text = pa.table({"id": range(8, 0, -1), "text": texts[::-1], "text_b": [None] * 7 + ["b"]})
    blocks = list(scores.query_blocks(text, token_budget=128))
    assert blocks == [[1, 2], [3], [4], [5, 6], [7, 8]]
    assert list(scores.query_blocks(text.slice(0, 0), 128)) == []
