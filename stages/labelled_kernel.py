"""Kernel regression of the labels: the surrogate model that several methods value examples with.

The outputs for query t after fitting the examples S are, with Y one-hot over C classes,

    f_S(t) = 1/C + K[t,S] (K[S,S] + damping I)^-1 (Y_S - 1/C),    damping = ridge * mean diag of K.

Source: arXiv:2406.04606, kernel regression as in methods.md 1.4; the ridge relative to the kernel's
scale, its automatic choice and the fixed offset 1/C are ours.

The paper has no offset. Taking one number from the targets of all classes moves the outputs of a
query by one common number, so argmax, margin and softmax are the paper's exactly, for every S;
hence no option. What the offset buys: outputs sum to one, a fit on nothing says 1/C, and the
automatic ridge is not judged by how well the constant 1/C is fitted.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.answer import count_classes, read_answers, read_labels
from stages.kernel import aligned, auto_ridge, gram, mean_diagonal
from stages.stage import ConfigError, DataError, Inputs

Ridge = float | Literal["auto"]


class LabelledKernel(NamedTuple):
    """A regression ready to be solved. Row i of a tensor belongs to id i of its role."""

    example_ids: Int64[np.ndarray, " examples"]
    """Labelled examples, ascending."""
    query_ids: Int64[np.ndarray, " queries"]
    query_labels: Int64[Tensor, " queries"]
    """-1 where the label is unknown."""
    targets: Float[Tensor, "examples classes"]
    """One-hot labels minus 1/C."""
    kernel: Float[Tensor, "examples examples"]
    query_kernel: Float[Tensor, "queries examples"]
    ridge: float
    damping: float
    ridge_errors: tuple[float, ...]
    """Leave-one-out error for each of `kernel.RIDGE_GRID`; empty if the ridge was given."""

    def with_labelled_queries(self) -> "LabelledKernel":
        """The same without the queries whose label is unknown.

        Raises:
            DataError: no query has a label.
        """
        known = self.query_labels >= 0
        if not known.any():
            raise DataError(
                f"label: found no label among {len(known)} queries, expected at least 1 to measure "
                "a utility on. Label some queries."
            )
        return self._replace(
            query_ids=self.query_ids[known.numpy()],
            query_labels=self.query_labels[known],
            query_kernel=self.query_kernel[known],
        )


def check_fields(kernel: tuple[str, ...], ridge: Ridge) -> None:
    """Refuse fields that no regression can be built from.

    Raises:
        ConfigError: no feature table is named, or the ridge is not a positive number.
    """
    if not kernel:
        raise ConfigError(
            "kernel: found no table, expected at least one. Name feature tables, such as [ntk]."
        )
    if ridge != "auto" and not 0 < ridge < float("inf"):
        raise ConfigError(
            f"ridge: found {ridge}, expected a positive number or auto. Set ridge: auto."
        )


def read_labelled_kernel(
    inputs: Inputs, kernel: tuple[str, ...], normalize: bool, ridge: Ridge
) -> LabelledKernel:
    """The regression of the table `label` on the feature tables `kernel`.

    Examples without a label (dropped, or null) take no part; queries keep the order of the first
    feature table. Memory 8 (n + m) n bytes for the kernel, beside it one feature table in float64
    while it is built; `ridge="auto"` then takes about 32 n^2 bytes and O(n^3).

    Raises:
        DataError: a feature row is missing, fewer than two classes are declared, a label is
            outside of them, no example is labelled, or all features are zero.
    """
    n_classes = count_classes(inputs)
    answers = read_answers(inputs)
    query_ids, features = read_features(inputs, kernel, answers.ids)
    among_examples, to_examples = gram(features, normalize)
    targets = answers.targets
    errors: tuple[float, ...] = ()
    if ridge == "auto":
        ridge, errors = auto_ridge(among_examples, targets)
    known_ids, known = read_labels(inputs, "query", n_classes)
    label_of = dict(zip(known_ids.tolist(), known.tolist(), strict=True))
    return LabelledKernel(
        example_ids=answers.ids,
        query_ids=query_ids,
        query_labels=torch.tensor(
            [label_of.get(query_id, -1) for query_id in query_ids.tolist()], dtype=torch.int64
        ),
        targets=targets,
        kernel=among_examples,
        query_kernel=to_examples,
        ridge=ridge,
        damping=ridge * mean_diagonal(among_examples),
        ridge_errors=errors,
    )


def read_features(
    inputs: Inputs, kernel: tuple[str, ...], example_ids: Int64[np.ndarray, " examples"]
) -> tuple[
    Int64[np.ndarray, " queries"],
    list[tuple[Float[Tensor, "examples _"], Float[Tensor, "queries _"]]],
]:
    """Ids of all queries, as the first table has them, and the rows of each feature table.

    Raises:
        DataError: a feature row is missing.
    """
    query_ids = inputs.vectors(kernel[0], "query").ids
    features = [
        (
            aligned(inputs.vectors(name, "example"), example_ids),
            aligned(inputs.vectors(name, "query"), query_ids),
        )
        for name in kernel
    ]
    return query_ids, features
