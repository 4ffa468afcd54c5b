"""The probe against its objective's gradient by autograd, its invariances, and closed cases."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, ShardedInputs
from torch import Tensor

from stages.model.heads.probe import read_probe
from stages.predictions.probe import Probe
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, DataError, Size, StageError
from stages.surrogate.linear import LinearHead, fit, fit_least_squares


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(200, 12, generator=generator, dtype=torch.float64) * 3 + 2
    teacher = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    return embeddings, (embeddings @ teacher / 5 + noise).argmax(1)


def embedding_table(ids: np.ndarray, vectors: np.ndarray) -> pa.Table:
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table({"id": ids, "role": ["example"] * len(ids), "vector": lists})


def logits(fitted: LinearHead, embeddings: Tensor) -> Tensor:
    return embeddings @ fitted[0].T + fitted[1]


@pytest.mark.parametrize("regularization", [1e-4, 1e-2, 1.0])
def test_the_gradient_of_the_objective_vanishes(
    data: tuple[Tensor, Tensor], regularization: float
) -> None:
    embeddings, labels = data
    weight, bias, _, _ = fit(embeddings, labels, 3, regularization)
    # The formula of the module's docstring, on raw embeddings: W x = (s W) (x / s).
    centred = embeddings - embeddings.mean(0)
    square = centred.square().sum(1).mean()
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    loss = torch.nn.functional.cross_entropy(embeddings @ weight.T + bias, labels)
    objective = loss + 0.5 * regularization * square * weight.square().sum()
    by_weight, by_bias = torch.autograd.grad(objective, [weight, bias])
    # 1e-9 in centred units, seen through the mean and scale; biases carry a penalty of 1e-6.
    assert by_bias.abs().max() <= 1e-5
    centred_gradient = by_weight - by_bias[:, None] * embeddings.mean(0)
    assert (centred_gradient / square.sqrt()).abs().max() <= 2e-9


def test_predictions_do_not_depend_on_unit_shift_rotation_or_repetition(
    data: tuple[Tensor, Tensor],
) -> None:
    embeddings, labels = data
    expected = logits(fit(embeddings, labels, 3, 1e-2), embeddings)
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    for changed in (embeddings * 100, embeddings + 7, embeddings @ rotation):
        found = logits(fit(changed, labels, 3, 1e-2), changed)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    repeated = fit(embeddings.repeat(3, 1), labels.repeat(3), 3, 1e-2)
    torch.testing.assert_close(logits(repeated, embeddings), expected, rtol=1e-6, atol=1e-6)


def test_classes_are_exchangeable(data: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = data
    weight, bias, _, _ = fit(embeddings, labels, 3, 1e-2)
    order = torch.tensor([2, 0, 1])
    renamed_weight, renamed_bias, _, _ = fit(embeddings, order[labels], 3, 1e-2)
    torch.testing.assert_close(renamed_weight[order], weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(renamed_bias[order], bias, rtol=1e-6, atol=1e-8)


def test_strong_regularisation_leaves_the_class_shares(data: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = data
    probabilities = torch.softmax(logits(fit(embeddings, labels, 3, 1e6), embeddings), 1)
    shares = torch.bincount(labels).double() / len(labels)
    torch.testing.assert_close(probabilities, shares.expand(200, 3), rtol=0, atol=1e-4)


def test_two_classes_are_logistic_regression() -> None:
    # x = +-1, one in four mislabelled on each side: with w the logit difference at x = 1 the
    # objective is log(1 + e^w) - 3/4 w + reg w^2 / 4, so sigmoid(w) + reg w / 2 = 3/4.
    embeddings = torch.tensor([[1.0]] * 4 + [[-1.0]] * 4)
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1])
    weight, bias, _, _ = fit(embeddings, labels, 2, 0.1)
    w = float(weight[1] - weight[0])
    assert 1 / (1 + math.exp(-w)) + 0.1 * w / 2 == pytest.approx(0.75, abs=1e-8)
    assert bias.abs().max() <= 1e-8


def test_a_class_without_examples_is_unlikely_and_finite(data: tuple[Tensor, Tensor]) -> None:
    embeddings, labels = data
    fitted = fit(embeddings, labels, 5, 1e-2)
    probabilities = torch.softmax(logits(fitted, embeddings), 1)
    assert probabilities.isfinite().all()
    assert probabilities[:, 3:].max() < 1e-3
    three = torch.softmax(logits(fit(embeddings, labels, 3, 1e-2), embeddings), 1)
    torch.testing.assert_close(probabilities[:, :3], three, rtol=0, atol=1e-3)


def test_separable_classes_converge() -> None:
    embeddings = torch.cat([torch.eye(20), -torch.eye(20)])
    labels = torch.arange(40) // 20
    weight = fit(embeddings, labels, 2, 1e-6).weight
    assert weight.isfinite().all()


def test_what_cannot_be_fitted(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(DataError, match="found 4 equal embeddings"):
        fit(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]), 2, 1e-2)
    with pytest.raises(StageError, match="after 1 Newton steps"):
        fit(*data, 3, 1e-4, max_steps=1)
    with pytest.raises(ConfigError, match=r"regularization: 0\.0"):
        Probe(regularization=0.0)


def test_the_stage_takes_labelled_examples_only(data: tuple[Tensor, Tensor], memory: Any) -> None:
    embeddings, labels = data[0].float().numpy(), data[1].numpy()
    ids = np.arange(200) * 2
    kept = np.random.default_rng(0).permutation(200)[:150]
    label = pa.table({"id": ids[kept], "role": ["example"] * 150, "label": labels[kept]})
    label = pa.concat_tables([label, pa.table({"id": [1], "role": ["example"], "label": [0]})])
    inputs = memory(
        {"label": label, "embedding": embedding_table(ids, embeddings)},
        {"label": {"classes": ["a", "b", "c"]}, "embedding": {"layer": 2}},
    )
    stage = Probe(regularization=1e-2)
    table = inputs.run(stage)
    assert table.column_names == ["class", "weight", "bias"]
    kept.sort()
    expected = fit(torch.from_numpy(embeddings[kept]), torch.from_numpy(labels[kept]), 3, 1e-2)
    np.testing.assert_allclose(
        matrix_of(table["weight"]), expected[0].numpy(), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(read_probe(table)[1].numpy(), expected[1].numpy(), rtol=1e-5)
    details = dict(stage.details(inputs))
    mean, scale = details.pop("mean"), details.pop("scale")
    assert details == {
        "n_rows": 150,
        "embedding": "embedding",
        "layer": 2,
        "regularization": 1e-2,
    }
    centred = embeddings[kept].astype(np.float64) - mean
    np.testing.assert_allclose(centred.mean(0), 0, atol=1e-12)
    assert scale == pytest.approx(np.sqrt((centred**2).sum(1).mean()), rel=1e-12)
    assert stage.is_kept


def sample(data: tuple[Tensor, Tensor], make: Any, stage: Probe, n: int = 200) -> Any:
    """Tables of the first `n` rows, with every third label missing, and the fitted probe."""
    embeddings, labels = data[0].float().numpy()[:n], data[1].numpy()[:n]
    given = pa.array(labels, mask=np.arange(n) % 3 == 0)
    label = pa.table({"id": np.arange(n), "role": ["example"] * n, "label": given})
    tables = {"label": label, "embedding": embedding_table(np.arange(n), embeddings)}
    inputs = make(tables, {"label": {"classes": ["a", "b", "c"]}})
    return MemoryInputs.run(inputs, stage), stage.details(inputs)


def chosen_of(n: int, rows: int) -> list[int]:
    """The labelled ids of the smallest SplitMix64 hashes, in plain integers."""

    def hashed(i: int) -> int:
        x = (i + 0x9E3779B97F4A7C15) % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> shift)) * factor % 2**64
        return x ^ (x >> 31)

    return sorted(sorted((i for i in range(n) if i % 3), key=hashed)[:rows])


def test_a_sample_of_labelled_rows_by_the_hash_of_their_ids(data: tuple[Tensor, Tensor]) -> None:
    table, details = sample(data, MemoryInputs, Probe(rows=60))
    kept = chosen_of(200, 60)
    weight, bias, mean, _ = fit(data[0].float()[kept], data[1][kept], 3, 1e-2)
    np.testing.assert_allclose(matrix_of(table["weight"]), weight.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(table["bias"].to_pylist(), bias.numpy(), rtol=1e-5)
    assert details["n_rows"] == 60
    np.testing.assert_allclose(details["mean"], mean.numpy(), rtol=1e-12)


def test_a_sample_does_not_depend_on_shards_and_little_on_rows_that_are_appended(
    data: tuple[Tensor, Tensor],
) -> None:
    whole, _ = sample(data, MemoryInputs, Probe(rows=60))
    in_shards, _ = sample(data, ShardedInputs, Probe(rows=60))
    # Another order of the rows, hence another order of sums.
    weights = [matrix_of(table["weight"]) for table in (whole, in_shards)]
    np.testing.assert_allclose(*weights, rtol=1e-6, atol=1e-8)
    before, after = (set(chosen_of(n, 60)) for n in (180, 200))
    assert {i for i in after if i < 180} <= before
    assert sample(data, MemoryInputs, Probe(rows=10**6))[0].equals(
        sample(data, MemoryInputs, Probe())[0]
    )


def test_a_large_corpus_has_a_sample_and_a_grown_one_keeps_its_key() -> None:
    def size(first: int, now: int) -> Size:
        return Size(now, first, n_queries=1, n_classes=2, lengths={})

    assert Probe().sized(size(50_000, 50_000)) == Probe()
    assert Probe().sized(size(50_001, 50_001)) == Probe(rows=50_000)
    assert Probe().sized(size(1_000, 10**6)) == Probe()
    assert Probe(rows=7).sized(size(10**6, 10**6)) == Probe(rows=7)
    assert Probe().outside_key == {"rows"}
    assert Probe(rows=7).outside_key == frozenset()
    with pytest.raises(ConfigError, match="found rows: 0"):
        Probe(rows=0)


def test_the_stage_needs_two_classes(memory: Any) -> None:
    ids = np.arange(4)
    inputs = memory(
        {
            "label": pa.table({"id": ids, "role": ["example"] * 4, "label": [1] * 4}),
            "embedding": embedding_table(ids, np.eye(4)),
        },
        {"label": {"classes": ["a", "b"]}},
    )
    with pytest.raises(DataError, match=r"found labels \[1\] among 4 examples"):
        inputs.run(Probe())


@pytest.mark.parametrize(("n", "dim"), [(60, 12), (12, 60), (20, 20)])
@pytest.mark.parametrize("regularization", [1e-4, 1e-2, 3.0])
def test_least_squares_solve_the_normal_equations(n: int, dim: int, regularization: float) -> None:
    generator = torch.Generator().manual_seed(n)
    embeddings = torch.randn(n, dim, generator=generator, dtype=torch.float64) * 3 + 2
    targets = torch.randn(n, generator=generator, dtype=torch.float64) * 5 - 40
    weight, bias, _, _ = fit_least_squares(embeddings, targets, regularization)
    # Raw embeddings with an unpenalised column of ones: (X'X / n + regularization s^2 I) w = X'y/n.
    square = (embeddings - embeddings.mean(0)).square().sum(1).mean()
    raw = torch.cat([embeddings, torch.ones(n, 1, dtype=torch.float64)], dim=1)
    penalty = torch.full((dim + 1,), float(regularization * square), dtype=torch.float64)
    penalty[-1] = 0
    expected = torch.linalg.solve(raw.T @ raw / n + penalty.diag(), raw.T @ targets / n)
    torch.testing.assert_close(weight[0], expected[:-1], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(bias[0], expected[-1], rtol=1e-7, atol=1e-9)


def test_least_squares_do_not_depend_on_unit_shift_or_repetition(
    data: tuple[Tensor, Tensor],
) -> None:
    embeddings = data[0]
    targets = embeddings[:, 0] * 2 + embeddings[:, 1].sin()
    expected = logits(fit_least_squares(embeddings, targets, 1e-2), embeddings)
    for changed in (embeddings * 100, embeddings + 7):
        found = logits(fit_least_squares(changed, targets, 1e-2), changed)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    repeated = fit_least_squares(embeddings.repeat(3, 1), targets.repeat(3), 1e-2)
    torch.testing.assert_close(logits(repeated, embeddings), expected, rtol=1e-9, atol=1e-9)
    moved = logits(fit_least_squares(embeddings, 3 * targets - 8, 1e-2), embeddings)
    torch.testing.assert_close(moved, 3 * expected - 8, rtol=1e-9, atol=1e-9)
    with pytest.raises(DataError, match="found 4 equal embeddings"):
        fit_least_squares(torch.ones(4, 2), torch.arange(4.0), 1e-2)


def test_the_stage_fits_a_regression_on_the_vectors_it_is_told(
    data: tuple[Tensor, Tensor], memory: Any
) -> None:
    vectors = data[0].float().numpy()
    ids = np.arange(200) * 2
    kept = np.sort(np.random.default_rng(0).permutation(200)[:150])
    targets = vectors[kept, 0].astype(np.float64)
    known = np.concatenate([targets[:-1], [np.nan]])
    columns = {
        "id": ids[kept][::-1],
        "role": ["example"] * len(kept),
        "target": pa.array(known[::-1], pa.float64(), from_pandas=True),
    }
    inputs = memory(
        {"label": pa.table(columns), "features": embedding_table(ids, vectors)},
        {"label": {"classes": [], "task": "regression"}},
    )
    stage = Probe(embedding="features")
    assert stage.reads == ("features", "label")
    table = inputs.run(stage)
    assert table["class"].to_pylist() == [0]
    fitted = torch.from_numpy(vectors[kept[:-1]]), torch.from_numpy(targets[:-1])
    weight, bias, _, _ = fit_least_squares(*fitted, stage.regularization)
    np.testing.assert_allclose(matrix_of(table["weight"]), weight.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(table["bias"].to_pylist(), bias.numpy(), rtol=1e-5)
    assert stage.details(inputs)["embedding"] == "features"
    assert stage.details(inputs)["layer"] is None


def test_the_stage_refuses_completions_and_rows_without_targets(memory: Any) -> None:
    ids = np.arange(4)
    nothing = pa.nulls(4, pa.float64())
    columns = {"id": ids, "role": ["example"] * 4, "label": pa.nulls(4, pa.int64())}
    label = pa.table({**columns, "target": nothing})
    tables = {"label": label, "embedding": embedding_table(ids, np.eye(4))}
    for task, message in (
        ("completion", "found 0 classes in a corpus with task: completion"),
        ("regression", "found no example with a target"),
    ):
        inputs = memory(tables, {"label": {"classes": [], "task": task}})
        with pytest.raises(DataError, match=message):
            inputs.run(Probe())
