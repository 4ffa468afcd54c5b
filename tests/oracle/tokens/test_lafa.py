"""LAFA against a plain double loop over neighbours and tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec
from stages.ranking.similar_texts import cut_off
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.smoothing import KernelName, aggregate
from stages.saliency.squares import Squares
from stages.tables import GENERAL
from stages.tokens import scores
from stages.tokens.lafa import Lafa
from stages.tokens.simple_grad import SimpleGrad
from stages.tokens.smooth_grad import SmoothGrad

TEXTS = [
    "good film",
    "a very dull and slowly bad plot but bright film",
    "the plot is slower",
    "not bad",
    "the film is very good and not dull",
    "dull",
    "the slow plot was good",
]
QUERIES = ["good film", "the plot was very slowly bad", "dull and bright"]
IDS, QUERY_IDS = [5, 1, 9, 2, 7, 3, 8], [100, 102, 101]


def kappa(name: str, a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    if name == "rbf":
        return float(torch.exp(-(a - b).norm() / 4))
    if name == "laplacian":
        return float(torch.exp(-(a - b).abs().sum() / 4))
    if name == "inverse_distance":
        return 1 / min(3.0, max(0.3, float((a - b).norm())))
    if name == "cubic":
        return float((7 * (a @ b)) ** 3)
    if name == "cosine":
        return float(a @ b / (a.norm() * b.norm()))
    return float(torch.equal(a, b))


@pytest.mark.parametrize("name", get_args(KernelName))
def test_aggregates_equal_the_double_loop(name: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, 4, generator=generator)
    words = torch.tensor([3, 3, 7, 19])
    texts = [torch.tensor([3, 1, 1]), torch.tensor([7]), torch.tensor([2, 3, 4, 5, 3])]
    scores = [torch.rand(len(own), generator=generator).double() for own in texts]
    wanted = [
        sum(
            sum(
                float(m) * kappa(name, table[w], table[k])
                for k, m in zip(ids.tolist(), own, strict=True)
            )
            / len(ids)
            for ids, own in zip(texts, scores, strict=True)
        )
        / len(texts)
        for w in words.tolist()
    ]
    np.testing.assert_allclose(aggregate(name, table, words, texts, scores), wanted, rtol=1e-9)
    assert aggregate(name, table, words, [], []).tolist() == [0.0] * 4


@pytest.fixture
def inputs(memory: Any) -> Callable[..., Any]:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(len(TEXTS) + len(QUERIES), 4)).astype(np.float32)
    rows[len(TEXTS)] = rows[0]
    ids = [*IDS, *QUERY_IDS]
    roles = ["example"] * len(TEXTS) + ["query"] * len(QUERIES)
    texts = [*TEXTS, *QUERIES]
    text = pa.table(
        {"id": ids, "role": roles, "text": texts, "text_b": pa.nulls(len(ids), pa.string())}
    )
    flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 4)
    embedding = pa.table({"id": ids, "role": roles, "vector": flat})
    labels = pa.table({"id": ids, "role": roles, "label": [0, 1, 2, 0, 1, 2, 0, 0, 1, 2]})

    def make(**tables: pa.Table) -> Any:
        found = memory({"text": text, "embedding": embedding, "label": labels, **tables})
        found.matrix = rows
        return found

    return make


def base_scores(spec: ModelSpec, inputs: Any, squares: Squares) -> Callable[..., Any]:
    """`score(text, choice)`: ids and base scores of the text's own tokens, alone in its batch."""
    embedded = FromEmbeddings(load_measurement(spec, inputs))
    network = embedded.network
    tokenizer = embedded.measurement.tokenizer

    def output(ids: torch.Tensor, rows: torch.Tensor, choice: int) -> torch.Tensor:
        batch = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        return embedded.choices(batch, np.zeros(1, np.int64), rows[None])[0, choice]

    def score(text: str, choice: int | None) -> tuple[list[int], np.ndarray, int]:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        rows = embedded.table[ids]
        if choice is None:
            with torch.no_grad():
                mask = torch.ones_like(ids)[None]
                choice = int(network(input_ids=ids[None], attention_mask=mask)[0].argmax())
        moved = torch.tensor([i not in tokenizer.all_special_ids for i in ids.tolist()])
        start = torch.where(moved[:, None], embedded.table[tokenizer.mask_token_id], rows)
        if squares.base == "simple":
            at, weights = [1.0], [1.0]
        else:
            nodes, own = np.polynomial.legendre.leggauss(squares.samples)
            at, weights = ((nodes + 1) / 2).tolist(), (own / 2).tolist()
        slope = torch.zeros(rows.shape, dtype=torch.float64)
        for place, weight in zip(at, weights, strict=True):
            point = (start + place * (rows - start)).requires_grad_()
            (gradient,) = torch.autograd.grad(output(ids, point, choice), point)
            slope += weight * gradient.double()
        if squares.base == "integrated":
            slope = slope * (rows - start).double()
        m = slope.square().sum(1)[moved].numpy()
        return ids[moved].tolist(), m, choice

    score.table = embedded.table  # type: ignore[attr-defined]
    return score


def by_loop(
    inputs: Any, spec: ModelSpec, stage: Lafa, near: Callable[[int, int], list[int]]
) -> dict[int, np.ndarray]:
    """The scores of every query; `near(query, class)` gives ids of its neighbours."""
    score = base_scores(spec, inputs, stage.scores)
    table = score.table  # type: ignore[attr-defined]
    found = {}
    for query, text in zip(QUERY_IDS, QUERIES, strict=True):
        words, m, choice = score(text, None)
        ids = near(query, choice)
        theirs = [score(TEXTS[IDS.index(i)], choice)[:2] for i in ids]
        if stage.normalize:
            m, theirs = m / m.sum(), [(t, own / own.sum()) for t, own in theirs]
        total = m.copy()
        for at, w in enumerate(words):
            for tokens, own in theirs:
                for token, part in zip(tokens, own, strict=True):
                    alike = kappa(stage.kernel, table[w], table[token])
                    total[at] += stage.weight * part * alike / (len(tokens) * len(ids))
        found[query] = total
    return found


def check(inputs: Any, spec: ModelSpec, stage: Lafa, near: Any) -> None:
    rows = inputs.run(stage)
    for query, wanted in by_loop(inputs, spec, stage, near).items():
        own = rows.filter(pa.compute.equal(rows["query_id"], query))["score"].to_numpy()
        np.testing.assert_allclose(own, wanted, rtol=2e-4, atol=1e-12)


@pytest.fixture
def spec(checkpoint_folder: Path) -> ModelSpec:
    return ModelSpec(str(checkpoint_folder), head="checkpoint")


def test_an_aggregate_is_on_the_device_of_the_embeddings() -> None:
    # Tensors without data refuse to be mixed with those of another device, as a GPU's do.
    table = torch.empty(100, 8, device="meta")
    words = torch.empty(5, dtype=torch.int64, device="meta")
    texts, scores = [torch.tensor([1, 4])], [torch.tensor([0.5, 0.25])]
    assert aggregate("indicator", table, words, texts, scores).device == table.device


@pytest.mark.parametrize("kernel", get_args(KernelName))
@pytest.mark.parametrize("base", ["simple", "integrated"])
def test_scores_equal_the_double_loop(inputs: Any, spec: Any, kernel: Any, base: Any) -> None:
    stage = Lafa(
        spec, Squares(base, 6), kernel, weight=0.44, limit=3, quantile=None, token_budget=48
    )
    given = inputs()

    def near(query: int, _: int) -> list[int]:
        own = given.matrix[len(TEXTS) + QUERY_IDS.index(query)]
        far = np.linalg.norm(given.matrix[: len(TEXTS)] - own, axis=1)
        # The first query is an example, too: it is no neighbour of itself.
        far[[text == QUERIES[QUERY_IDS.index(query)] for text in TEXTS]] = np.inf
        return [IDS[i] for i in np.argsort(far)[:3]]

    check(given, spec, stage, near)


@pytest.mark.parametrize("normalize", [True, False])
def test_neighbours_within_a_quantile_and_of_one_class(
    inputs: Any, spec: Any, normalize: bool
) -> None:
    given = inputs()
    stage = Lafa(spec, quantile=0.6, same_class=True, normalize=normalize)
    order = np.argsort(IDS)
    radius = cut_off(given.matrix[: len(TEXTS)][order], 0.6, 0)
    distances = [
        np.linalg.norm(given.matrix[i] - given.matrix[j])
        for i in range(len(TEXTS))
        for j in range(len(TEXTS))
        if i != j
    ]
    assert np.mean(np.array(distances) < radius) == pytest.approx(0.6, abs=0.06)
    sizes = []

    def near(query: int, choice: int) -> list[int]:
        own = given.matrix[len(TEXTS) + QUERY_IDS.index(query)]
        far = np.linalg.norm(given.matrix[: len(TEXTS)] - own, axis=1)
        labels = [0, 1, 2, 0, 1, 2, 0]
        wanted = [
            i
            for i in np.argsort(far)
            if far[i] <= radius
            and labels[i] == choice
            and TEXTS[i] != QUERIES[QUERY_IDS.index(query)]
        ]
        sizes.append(len(wanted))
        return [IDS[i] for i in wanted]

    check(given, spec, stage, near)
    assert max(sizes) > 0


def test_without_any_neighbour_the_base_remains(inputs: Any, spec: Any) -> None:
    support = pa.table(
        {"query_id": [100], "contrast": [GENERAL], "rank": [1], "example_id": [None]},
        schema=pa.schema([(n, pa.int64()) for n in ("query_id", "contrast", "rank", "example_id")]),
    ).slice(0, 0)
    stage = Lafa(spec, neighbours="spectrum")
    check(inputs(support=support), spec, stage, lambda query, _: [])


def test_neighbours_of_a_spectrum_and_of_values(inputs: Any, spec: Any) -> None:
    support = pa.table(
        {
            "query_id": [100, 100, 100, 101, 101],
            "contrast": [GENERAL, GENERAL, GENERAL, 1, GENERAL],
            "rank": [1, 2, 3, 1, 1],
            "example_id": [9, 5, 7, 1, 2],
        }
    )
    near = {100: [9, 7], 101: [2], 102: []}
    stage = Lafa(spec, neighbours="spectrum", limit=3, kernel="cosine")
    check(inputs(support=support), spec, stage, lambda query, _: near[query])
    values = pa.table(
        {
            "semivalue": ["shapley"] * 5,
            "utility": ["accuracy", *["cross_entropy"] * 4],
            "query_id": [100, 100, 100, 100, 102],
            "example_id": [8, 9, 1, 2, 3],
            "value": [5.0, 0.1, 0.4, 0.3, -0.2],
        }
    )
    near = {100: [1, 2], 101: [], 102: []}
    stage = Lafa(spec, neighbours="freeshap", limit=2, kernel="rbf")
    check(inputs(shapley_by_query=values), spec, stage, lambda query, _: near[query])


@pytest.mark.parametrize("same_class", [True, False])
def test_blocks_of_queries_have_the_scores_of_all_at_once(
    inputs: Any, spec: Any, same_class: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other batches round otherwise: float32 sums of a few hundred products."""
    stage = Lafa(spec, limit=3, quantile=None, same_class=same_class)
    once, apart = inputs(), inputs()
    found = once.run(stage)
    monkeypatch.setattr(scores, "query_blocks", lambda text, _: [[i] for i in sorted(QUERY_IDS)])
    cut = apart.run(stage)
    assert once.steps == [(0, 1), (1, 1)]
    assert apart.steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert cut.drop(["score", "word_score"]).equals(found.drop(["score", "word_score"]))
    np.testing.assert_allclose(cut["score"], found["score"], rtol=2e-4)
    counted = "n_gradients"
    assert apart.written["explained"][counted].equals(once.written["explained"][counted])


def test_without_noise_smooth_is_simple(inputs: Any, spec: Any) -> None:
    simple = inputs().run(SimpleGrad(spec))["score"].to_numpy()
    still = inputs().run(SmoothGrad(spec, samples=3, noise=0.0))["score"].to_numpy()
    np.testing.assert_allclose(still, simple, rtol=1e-5)
    assert (simple > 0).all()
    noisy = [
        inputs().run(SmoothGrad(spec, samples=9, token_budget=budget))["score"].to_numpy()
        for budget in (16, 4096)
    ]
    np.testing.assert_allclose(noisy[0], noisy[1], rtol=1e-4)
    assert not np.allclose(noisy[0], simple, rtol=1e-3)
