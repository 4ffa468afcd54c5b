"""Kernel regression of labels on features: the surrogate model of the network.

The outputs for query t after fitting the examples S are, with Y one-hot over C classes,

    f_S(t) = 1/C + K[t,S] (K[S,S] + damping I)^-1 (Y_S - 1/C),    damping = ridge * mean diag of K.

Source: arXiv:2406.04606, kernel regression; the ridge relative to the kernel's scale, its automatic
choice and the fixed offset 1/C are ours.

The paper has no offset. Taking one number from the targets of all classes moves the outputs of a
query by one common number, so argmax, margin and softmax are the paper's exactly, for every S;
hence no option. What the offset buys: outputs sum to one, a fit on nothing says 1/C, and the
automatic ridge is not judged by how well the constant 1/C is fitted.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages.reading.supervision import Answers, centre, count_classes, read_answers, read_labels
from stages.reading.vectors import aligned
from stages.stage import ConfigError, DataError, Inputs, Role
from stages.surrogate.kernel import auto_ridge, gram, mean_diagonal

Ridge = float | Literal["auto"]


class LeftOut(NamedTuple):
    """Counts of rows left out because a feature table has no row for them."""

    examples: int = 0
    """Labelled examples."""
    queries: int = 0
    """Queries, labelled or not."""

    def details(self) -> dict[str, Any]:
        """The counts as facts for a manifest, with a notice where one is not 0."""
        facts: dict[str, Any] = {
            "n_without_features": self.examples,
            "n_queries_without_features": self.queries,
        }
        if any(self):
            facts["notices"] = [
                f"left out for want of features: labelled examples {self.examples}, "
                f"queries {self.queries}"
            ]
        return facts


class AnsweredFeatures(NamedTuple):
    """Answers and features of the examples that have both, and features of the queries."""

    answers: Answers
    query_ids: Int64[np.ndarray, " queries"]
    """In the order of the first feature table."""
    features: list[tuple[Float[Tensor, "examples _"], Float[Tensor, "queries _"]]]
    """Of each feature table the rows of the examples and those of the queries."""
    left_out: LeftOut


class LabelledKernel(NamedTuple):
    """The matrices of a kernel regression, not yet solved.

    Row i of a tensor belongs to the i-th id of its role.
    """

    example_ids: Int64[np.ndarray, " examples"]
    """Labelled examples, ascending."""
    query_ids: Int64[np.ndarray, " queries"]
    query_labels: Int64[Tensor, " queries"]
    """-1 where the label is unknown."""
    targets: Float[Tensor, "examples classes"]
    """One-hot labels minus 1/C."""
    kernel: Float[Tensor, "examples examples"]
    query_kernel: Float[Tensor, "queries examples"]
    """The kernel of each query with each example."""
    ridge: float
    damping: float
    ridge_errors: tuple[float, ...]
    """Leave-one-out error for each of `kernel.RIDGE_GRID`; empty if the ridge was given."""
    left_out: LeftOut = LeftOut()


def check_ridge(ridge: Ridge) -> None:
    """Refuses a ridge that no regression can have.

    Raises:
        ConfigError: it is not a positive number.
    """
    if ridge != "auto" and not 0 < ridge < float("inf"):
        raise ConfigError(
            f"ridge: found {ridge}, expected a positive number or auto. Set ridge: auto."
        )


def check_fields(kernel: tuple[str, ...], ridge: Ridge) -> None:
    """Refuses fields that no regression can be built from.

    Raises:
        ConfigError: no feature table is named, or the ridge is not a positive number.
    """
    if not kernel:
        raise ConfigError(
            "kernel: found no table, expected at least one. Name feature tables, such as [ntk]."
        )
    check_ridge(ridge)


def read_labelled_kernel(
    inputs: Inputs, kernel: tuple[str, ...], normalize: bool, ridge: Ridge
) -> LabelledKernel:
    """The regression of the labels in `label` on the feature tables `kernel`.

    Examples without a label (dropped, or null) take no part, and neither does a row that one of the
    feature tables lacks. Memory 8 (n + m) n bytes for the kernel, beside it one feature table in
    float64 while it is built; `ridge="auto"` then takes about 32 n^2 bytes and O(n^3).

    Raises:
        DataError: fewer than two classes are declared, a label is outside of them, no example is
            labelled, no labelled example has features, or all features are zero.
    """
    n_classes = count_classes(inputs)
    answers, query_ids, features, left_out = read_features(inputs, kernel)
    among_examples, to_examples = gram(features, normalize)
    errors: tuple[float, ...] = ()
    if ridge == "auto":
        ridge, errors = auto_ridge(among_examples, answers.targets)
    known_ids, known = read_labels(inputs, "query", n_classes)
    label_of = dict(zip(known_ids.tolist(), known.tolist(), strict=True))
    return LabelledKernel(
        example_ids=answers.ids,
        query_ids=query_ids,
        query_labels=torch.tensor(
            [label_of.get(query_id, -1) for query_id in query_ids.tolist()], dtype=torch.int64
        ),
        targets=answers.targets,
        kernel=among_examples,
        query_kernel=to_examples,
        ridge=ridge,
        damping=ridge * mean_diagonal(among_examples),
        ridge_errors=errors,
        left_out=left_out,
    )


def read_features(inputs: Inputs, kernel: tuple[str, ...]) -> AnsweredFeatures:
    """Answers and features of the examples, features of the queries, that every table has.

    The offset of the answers is that of these examples alone.

    Raises:
        DataError: the answers cannot be read, or no answered example has features.
    """
    ids, columns = read_answers(inputs)
    is_usable = has_features(inputs, kernel, "example", ids)
    if not is_usable.any():
        raise DataError(
            f"{', '.join(kernel)}: found features of none of the {len(ids)} labelled "
            "examples in all of these tables, expected at least 1. Look into the view diagnostics "
            "for what happened to them."
        )
    answers = centre(ids[is_usable], columns[torch.from_numpy(is_usable)])
    query_ids = np.array(inputs.vectors(kernel[0], "query").ids)
    query_ids = query_ids[has_features(inputs, kernel, "query", query_ids)]
    all_queries = inputs.table("label", "query")["id"].to_numpy()
    features = [
        (
            aligned(inputs.vectors(name, "example"), answers.ids),
            aligned(inputs.vectors(name, "query"), query_ids),
        )
        for name in kernel
    ]
    missing = int((~np.isin(all_queries, query_ids)).sum())
    return AnsweredFeatures(
        answers, query_ids, features, LeftOut(len(ids) - len(answers.ids), missing)
    )


def has_features(
    inputs: Inputs, kernel: tuple[str, ...], role: Role, ids: Int64[np.ndarray, " rows"]
) -> Bool[np.ndarray, " rows"]:
    """Whether each of `ids` has a row in every feature table named by `kernel`."""
    has_all = np.ones(len(ids), dtype=bool)
    for name in kernel:
        has_all &= np.isin(ids, inputs.vectors(name, role).ids)
    return has_all
