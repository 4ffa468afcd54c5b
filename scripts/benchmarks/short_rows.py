"""Draws of real rows with planted wrong labels, their features, and kernel regressions on them."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from benchmarks.environment import MODEL
from benchmarks.finished import Clock, run_config
from benchmarks.planted import planted
from torch import Tensor

STATE = 384
"""Numbers of a hidden state of MiniLM, of which `hidden_states` joins seven."""
LOWER = 3
"""States of the features `lower_layers`: the word embeddings and the first two layers."""
FEATURES = ("hidden_states", "lower_layers", "embedding", "ntk")


class Rows(NamedTuple):
    """Vectors of unit length, float64."""

    examples: Tensor
    queries: Tensor


class Drawn(NamedTuple):
    """A draw of rows with planted labels, and the features of all rows."""

    given: Tensor
    is_planted: np.ndarray
    answers: Tensor
    """The queries' labels."""
    n_classes: int
    features: dict[str, Rows]
    cpu_s_per_row: dict[str, float]


class Fitted(NamedTuple):
    """A kernel regression in the basis of its directions, the largest first."""

    values: Tensor
    examples: Tensor
    queries: Tensor
    left_out: Tensor
    """Leave-one-out outputs of the examples."""
    outputs: Tensor
    ridge: float


def read(arguments: argparse.Namespace, name: str, draw: int, flips: str) -> Drawn:
    """The draw, from files that an earlier call left or by runs of assay.

    `cpu_s_per_row` is of the tasks after the first, which loads the model; of `ntk` without the
    embeddings that its probe is fitted on.
    """
    work = Path(arguments.work).resolve() / "short_features" / f"{name}-{arguments.rows}-{draw}"
    work.mkdir(parents=True, exist_ok=True)
    source = Path(arguments.data).resolve() / name
    train = pq.read_table(source / "train.parquet", columns=["id", "text", "label"])
    order = np.random.default_rng(draw).permutation(train.num_rows)[: arguments.rows]
    train = train.take(np.sort(order))
    queries = pq.read_table(source / "validation.parquet", columns=["id", "text", "label"])
    pq.write_table(queries.slice(0, arguments.queries), work / "queries.parquet")
    true = train["label"].to_numpy()
    n_classes = int(true.max()) + 1
    saved = work / f"{flips}.npz"
    if not saved.exists():
        clock = Clock()
        given = planted(true, train["text"].to_pylist(), n_classes, flips, draw)
        flipped = train.set_column(2, "label", pa.array(given))
        done = _run(work, flipped, flips, clock)
        arrays = {"given": given}
        for key, view in (
            ("embedding", "embeddings"),
            ("hidden_states", "hidden_states"),
            ("ntk", "ntk"),
        ):
            for role in ("example", "query"):
                arrays[f"{role}_ids"], arrays[f"{key}_{role}"] = _vectors(done, view, key, role)
        rates = {
            key: 1 / clock.rows_per_cpu_s(key)
            for key in ("embedding", "hidden_states", "ntk")
            if clock.steady.get(key, (0, 0))[0]
        }
        np.savez(saved, **arrays, rates=json.dumps(rates))
    held = np.load(saved)
    is_used = np.isin(train["id"].to_numpy(), held["example_ids"])
    is_answered = np.isin(queries["id"].to_numpy(), held["query_ids"])
    features = {
        key: Rows(*(unit(held[f"{key}_{role}"]) for role in ("example", "query")))
        for key in ("hidden_states", "embedding", "ntk")
    }
    features["lower_layers"] = Rows(
        *(unit(rows[:, : LOWER * STATE].numpy()) for rows in features["hidden_states"])
    )
    return Drawn(
        torch.from_numpy(held["given"][is_used]),
        (held["given"] != true)[is_used],
        torch.from_numpy(queries["label"].to_numpy()[is_answered]),
        n_classes,
        features,
        json.loads(str(held["rates"])),
    )


def _run(work: Path, train: pa.Table, name: str, clock: Clock) -> Any:
    pq.write_table(train, work / f"{name}.parquet")
    columns = {"id": "id", "text": "text", "label": "label"}
    return run_config(
        {
            "run": str(work / name),
            "store": str(work / "store"),
            "model": {"path": MODEL},
            "corpus": {"path": str(work / f"{name}.parquet"), **columns},
            "queries": {"path": str(work / "queries.parquet"), **columns},
            "shard_size": 250,
            "stages": {
                "embedding": {},
                "hidden_states": {},
                "probe": {},
                "ntk": {},
            },
            "ray": {"engine": "in_process"},
        },
        clock,
    )


def _vectors(done: Any, view: str, method: str, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and vectors of one role; rows that cannot be used have none."""
    table = done.sql(
        f"SELECT id, vector FROM {view} WHERE role = '{role}' AND method = '{method}' ORDER BY id"
    ).to_arrow_table()
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table["id"].to_numpy(), flat.astype(np.float32).reshape(table.num_rows, -1)


def unit(rows: np.ndarray | Tensor) -> Tensor:
    """Rows of unit length in float64."""
    return torch.nn.functional.normalize(torch.as_tensor(rows, dtype=torch.float64), dim=1)


def fitted(rows: Rows, given: Tensor, n_classes: int) -> Fitted:
    """The regression with the ridge of least leave-one-out error, from one eigendecomposition."""
    return solved(*directions(rows), given, n_classes)


def directions(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, the largest first, and examples and queries in the basis of the directions."""
    examples, queries = rows
    n, dim = examples.shape
    if n < dim:
        values, basis = torch.linalg.eigh(examples @ examples.T)
        values, basis = values.flip(0).clamp_min(1e-12), basis.flip(1)
        found, length = basis * values.sqrt(), values.rsqrt()
        return values, found, queries @ (examples.T @ basis * length)
    values, basis = torch.linalg.eigh(examples.T @ examples)
    values, basis = values.flip(0).clamp_min(0), basis.flip(1)
    return values, examples @ basis, queries @ basis


def solved(
    values: Tensor, examples: Tensor, queries: Tensor, given: Tensor, n_classes: int
) -> Fitted:
    """The same where rows are in the basis of the directions already."""
    from stages.reading.supervision import one_hot
    from stages.surrogate.kernel import RIDGE_GRID

    targets = one_hot(given, n_classes) - 1 / n_classes
    moment, squares = examples.T @ targets, examples.square()
    scale = float(squares.sum(1).mean())
    best: tuple[float, Tensor, Tensor, float] | None = None
    for ridge in RIDGE_GRID:
        shrunk = 1 / (values + ridge * scale)
        weights = shrunk[:, None] * moment
        leverage = (squares @ shrunk)[:, None]
        left_out = (examples @ weights - leverage * targets) / (1 - leverage)
        error = float((left_out - targets).square().sum(1).mean())
        if best is None or error < best[0]:
            best = (error, left_out, weights, ridge)
    assert best is not None
    return Fitted(values, examples, queries, best[1], queries @ best[2], best[3])


def judged(fit: Fitted, drawn: Drawn) -> dict[str, float]:
    """Area under the ROC curve of planted labels, and accuracy on the queries."""
    from stages.metrics.ranks import auc

    return {
        "auc": round(auc(-score(fit, drawn.given), drawn.is_planted), 4),
        "accuracy": round(float((fit.outputs.argmax(1) == drawn.answers).double().mean()), 4),
        "ridge": round(fit.ridge, 5),
    }


def score(fit: Fitted, given: Tensor) -> np.ndarray:
    """`label_score`: the opinion about each given label, low where it is doubted."""
    from stages.surrogate.noise_fit import fit_noise_model

    return fit_noise_model(fit.left_out, given).scores(fit.left_out, given).numpy()


def shortened(fit: Fitted, k: int, is_unit: bool) -> Rows:
    """Rows in their `k` leading directions."""
    cut = (fit.examples[:, :k], fit.queries[:, :k])
    return Rows(*(map(unit, cut) if is_unit else cut))
