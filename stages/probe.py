"""A linear probe: logistic or least-squares regression on the embeddings of the training examples.

With embeddings centred and divided by their root mean square length s, the probe minimises

    (1/n) sum_i -log softmax(W x_i + b)[y_i]  +  (regularization / 2) ||W||^2,

so that its predictions change neither with the unit of the embeddings, nor with a shift or rotation
of them, nor when every example is repeated. scikit-learn's `LogisticRegression(C=...)` on the raw
embeddings is the same problem at C = 1 / (n * regularization * s^2).

For a regression it has one output, "class" 0, and minimises in the same units

    (1/2n) sum_i (w x_i + b - y_i)^2  +  (regularization / 2) ||w||^2,

which scikit-learn's `Ridge(alpha=n * regularization * s^2)` on the raw embeddings does, too.

The probe is an artefact: fitted once on the labels of that time, then kept, so that correcting a
label does not move the features of every other row. It has seen its own training labels; judge
those by leave-one-out predictions of a kernel, not by the probe's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.answer import count_classes, read_labels, read_targets, task_of
from stages.stage import ConfigError, Cost, DataError, Inputs, Split, StageError, Vectors, Work
from storage.schema import TableSpec

PROBE = TableSpec(
    name="probe",
    schema=pa.schema(
        [("class", pa.int64()), ("weight", pa.list_(pa.float32())), ("bias", pa.float32())]
    ),
    key=("class",),
)

# Keeps finite what the data leave open: the bias of a class without examples, and a shift common to
# all biases. At 1e-6 it moves no probability that matters.
_BIAS_PENALTY = 1e-6


def objective(
    theta: Float[Tensor, "classes dim_and_bias"],
    features: Float[Tensor, "rows dim_and_bias"],
    labels: Int[Tensor, " rows"],
    regularization: float,
) -> Float[Tensor, ""]:
    """Mean cross-entropy plus penalty; the last column of `features` is 1, that of `theta` b."""
    loss = torch.nn.functional.cross_entropy(features @ theta.T, labels)
    weight, bias = theta[:, :-1], theta[:, -1]
    return loss + 0.5 * (
        regularization * weight.square().sum() + _BIAS_PENALTY * bias.square().sum()
    )


def fit(
    embeddings: Float[Tensor, "rows dim"],
    labels: Int[Tensor, " rows"],
    n_classes: int,
    regularization: float,
    tolerance: float = 1e-9,
    max_steps: int = 100,
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Weight and bias of the probe, for embeddings as they are, in float64.

    Newton's method with conjugate gradients and halved steps; it ends when no entry of the
    gradient exceeds `tolerance`. The objective is strictly convex: the answer does not depend on
    the start. Cost O(rows * dim * classes) per conjugate step, some hundreds of them; memory one
    float64 copy of the embeddings.

    Raises:
        StageError: the tolerance was not reached in `max_steps` Newton steps.
        DataError: all embeddings are equal.
    """
    features, mean, scale = _standardised(embeddings)

    penalty = torch.full((features.shape[1],), regularization, dtype=torch.float64)
    penalty[-1] = _BIAS_PENALTY
    onehot = torch.nn.functional.one_hot(labels, n_classes).double()
    theta = torch.zeros(n_classes, features.shape[1], dtype=torch.float64)
    for _ in range(max_steps):
        p = torch.softmax(features @ theta.T, 1)
        gradient = (p - onehot).T @ features / len(features) + penalty * theta
        steepest = float(gradient.abs().max())
        if steepest <= tolerance:
            weight = theta[:, :-1] / scale
            return weight, theta[:, -1] - weight @ mean

        def curvature(v: Tensor, p: Tensor = p) -> Tensor:
            u = p * (features @ v.T)
            u -= p * u.sum(1, keepdim=True)
            return u.T @ features / len(features) + penalty * v

        # The classical forcing term: early steps are solved roughly, late ones quadratically well.
        step = _conjugate_gradients(curvature, -gradient, min(0.1, steepest**0.5))
        theta = _line_search(theta, step, gradient, features, labels, regularization)
    raise StageError(
        f"probe: found a gradient of {steepest:.1e} after {max_steps} Newton steps, expected at "
        f"most {tolerance:.1e}. Raise regularization."
    )


def fit_least_squares(
    embeddings: Float[Tensor, "rows dim"],
    targets: Float[Tensor, " rows"],
    regularization: float,
) -> tuple[Float[Tensor, "1 dim"], Float[Tensor, "1"]]:
    """Weight and bias of the probe of a regression, for embeddings as they are, in float64.

    In closed form, through the smaller of the matrices over dimensions and over rows: cost
    rows * dim * min(rows, dim), memory one float64 copy of the embeddings and that matrix.

    Raises:
        DataError: all embeddings are equal.
    """
    features, mean, scale = _standardised(embeddings)
    features, level = features[:, :-1], targets.double().mean()
    residual = targets.double() - level
    n_rows, dim = features.shape
    if dim <= n_rows:
        gram = features.T @ features / n_rows
        gram.diagonal().add_(regularization)
        weight = torch.cholesky_solve((features.T @ residual / n_rows)[:, None], _lower(gram))[:, 0]
    else:
        gram = features @ features.T / n_rows
        gram.diagonal().add_(regularization)
        weight = features.T @ torch.cholesky_solve(residual[:, None], _lower(gram))[:, 0] / n_rows
    weight = weight[None] / scale
    return weight, level - weight @ mean


def _lower(matrix: Tensor) -> Tensor:
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise DataError(
            f"probe: found a matrix that is not positive definite at row {int(info)}, expected one "
            "that is. Raise regularization."
        )
    return lower


def _standardised(
    embeddings: Float[Tensor, "rows dim"],
) -> tuple[Float[Tensor, "rows dim_and_bias"], Float[Tensor, " dim"], float]:
    """Embeddings centred and in units of their root mean square length, then a column of ones.

    Beside them the mean and the length, in float64.
    """
    mean = embeddings.double().mean(0)
    features = torch.empty(len(embeddings), embeddings.shape[1] + 1, dtype=torch.float64)
    features[:, :-1] = embeddings
    features[:, :-1] -= mean
    scale = float(features[:, :-1].square().sum(1).mean().sqrt())
    if scale == 0.0:
        raise DataError(
            f"probe: found {len(embeddings)} equal embeddings, expected different ones. "
            "Give more examples, or check the embedding stage."
        )
    features[:, :-1] /= scale
    features[:, -1] = 1.0
    return features, mean, scale


def _conjugate_gradients(
    curvature: Callable[[Tensor], Tensor], target: Tensor, precision: float
) -> Tensor:
    """The x with curvature(x) = target, to a residual of `precision` times the target."""
    x, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual.square().sum()
    goal = precision**2 * square
    for _ in range(2 * target.numel()):
        if square <= goal:
            break
        curved = curvature(direction)
        length = square / (direction * curved).sum()
        x += length * direction
        residual -= length * curved
        before, square = square, residual.square().sum()
        direction = residual + (square / before) * direction
    return x


def _line_search(
    theta: Tensor,
    step: Tensor,
    gradient: Tensor,
    features: Tensor,
    labels: Tensor,
    regularization: float,
) -> Tensor:
    """The step, halved until it lowers the objective by a share of what its slope promises."""
    start = objective(theta, features, labels, regularization)
    slope = (gradient * step).sum()
    # Near the optimum the decrease drowns in the rounding of the objective itself.
    rounding = 1e-14 * start.abs()
    for halvings in range(40):
        moved = theta + step * 0.5**halvings
        found = objective(moved, features, labels, regularization)
        if found <= start + 1e-4 * 0.5**halvings * slope + rounding:
            break
    return moved


@dataclass(frozen=True)
class Probe:
    """The head of a model that was never fine-tuned, or of vectors alone.

    One task; its memory grows with the examples, 12 bytes per number of their embeddings.
    """

    embedding: str = "embedding"
    """Feature table that it is fitted on: an instance of `embedding`, or `features`."""
    regularization: float = 1e-2
    """Penalty per example on weights, for embeddings of unit mean square length.

    Seen with all-MiniLM-L6-v2 on 2,000 rows of SST-2 with a tenth of wrong labels: 1e-4 to 1e-3
    gave the smallest loss on held-out rows, but such a probe learns the wrong labels and hands them
    to the NTK; 3e-3 to 3e-2 flag them best. More than 1e-2 costs the probe's own accuracy when
    there are many classes.
    """

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")
    is_kept: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.regularization > 0:
            raise ConfigError(
                f"probe: found regularization: {self.regularization}, expected a positive number. "
                "Raise it; separable classes have no finite probe without it."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Embeddings and labels of the examples."""
        return (self.embedding, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per class; of a regression one row."""
        return (PROBE,)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """What it was fitted on, and the layer of it, which a model's head must read.

        Vectors that no model made have no layer, so that no model takes them for its own.
        """
        layer = inputs.details(self.embedding).get("layer")
        return {"embedding": self.embedding, "layer": layer}

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Weight and bias per class, fitted on all examples that have a label or target."""
        embeddings = inputs.vectors(self.embedding, "example")
        if task_of(inputs) == "regression":
            ids, targets = read_targets(inputs, "example")
            rows, targets = _found(embeddings.ids, ids, targets)
            if len(rows) == 0:
                raise DataError(
                    f"probe: found no row of {self.embedding} with a target among "
                    f"{len(embeddings.ids)}, expected some. Check the labels."
                )
            vectors = torch.from_numpy(np.array(embeddings.matrix[rows]))
            weight, bias = fit_least_squares(
                vectors, torch.from_numpy(targets), self.regularization
            )
        else:
            weight, bias = self._classifier(inputs, embeddings)
        flat = pa.array(weight.numpy().astype(np.float32).reshape(-1))
        columns = [
            pa.array(np.arange(len(weight))),
            pa.FixedSizeListArray.from_arrays(flat, weight.shape[1]),
            pa.array(bias.numpy().astype(np.float32)),
        ]
        yield PROBE.name, pa.RecordBatch.from_arrays(columns, PROBE.schema.names)

    def _classifier(self, inputs: Inputs, embeddings: Vectors) -> tuple[Tensor, Tensor]:
        n_classes = count_classes(inputs)
        ids, labels = read_labels(inputs, "example", n_classes)
        rows, labels = _found(embeddings.ids, ids, labels)
        if len(np.unique(labels)) < 2:
            raise DataError(
                f"probe: found labels {np.unique(labels)[:8].tolist()} among {len(rows)} examples, "
                f"expected at least two of the classes 0 to {n_classes - 1}. Check the labels."
            )
        vectors = torch.from_numpy(np.array(embeddings.matrix[rows]))
        return fit(vectors, torch.from_numpy(labels), n_classes, self.regularization)

    def cost(self, work: Work) -> Cost:
        """Some two hundred products of the embeddings with a matrix, there and back."""
        size = work.n_examples * work.dim
        return Cost(
            flops=4.0 * 200 * size * work.n_classes,
            written_bytes=4 * work.n_classes * (work.dim + 1),
            memory_bytes=12 * size + 32 * work.n_examples * work.n_classes,
        )


def _found(
    ids: Int[np.ndarray, " rows"], wanted: Int[np.ndarray, " labelled"], answers: np.ndarray
) -> tuple[Int[np.ndarray, " found"], np.ndarray]:
    """Places in `ids` of those that are `wanted`, which is ascending, and their answers."""
    at = np.searchsorted(wanted, ids).clip(max=max(len(wanted) - 1, 0))
    found = np.flatnonzero(wanted[at] == ids) if len(wanted) else np.zeros(0, np.int64)
    return found, answers[at[found]]


STAGE = Probe
