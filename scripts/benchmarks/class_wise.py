"""Class-wise Shapley values (CS-Shapley; Schoch, Xu, Ji 2022, arXiv:2211.06800), a rival of rules.

What a set of rows of class y is worth, given rows of other classes, is a(y) exp(a(other)): the
share of all queries that are of class y and right, and that of the others that are right (their
eq. 4). A row's value is its mean addition to that over orders of its class, and over sets of rows
of other classes, here each taken by a coin (their definition 2). The model is ridge regression on
the leading directions of the features, to which a row is added by the formula of Sherman and
Morrison.
"""

import numpy as np

DIRECTIONS, DAMPING = 128, 0.1
"""Damping as a share of the mean squared length of the rows."""
ORDERS = 50
"""Of each class."""


def class_wise(
    rows: np.ndarray, labels: np.ndarray, queries: np.ndarray, answers: np.ndarray, seed: int
) -> np.ndarray:
    """The values of the rows; O(orders * rows * (directions^2 + queries * directions))."""
    rng = np.random.default_rng(seed)
    mean = rows.mean(0)
    _, _, turned = np.linalg.svd(rows - mean, full_matrices=False)
    basis = turned[:DIRECTIONS].T
    x, to = ((part - mean) @ basis for part in (rows, queries))
    n_classes = int(labels.max()) + 1
    y = np.eye(n_classes)[labels] - 1 / n_classes
    damping = DAMPING * float((x**2).sum(1).mean())
    values = np.zeros(len(rows))
    for own in range(n_classes):
        members, others = np.flatnonzero(labels == own), np.flatnonzero(labels != own)
        is_own = answers == own
        for _ in range(ORDERS):
            given = others[rng.random(len(others)) < 0.5]
            inverse = np.linalg.inv(x[given].T @ x[given] + damping * np.eye(x.shape[1]))
            weights = inverse @ (x[given].T @ y[given])
            worth = _worth(to @ weights, answers, is_own)
            for row in rng.permutation(members):
                along = inverse @ x[row]
                scale = 1 / (1 + x[row] @ along)
                weights = weights + np.outer(along, (y[row] - x[row] @ weights) * scale)
                inverse -= np.outer(along, along * scale)
                now = _worth(to @ weights, answers, is_own)
                values[row] += (now - worth) / ORDERS
                worth = now
    return values


def _worth(outputs: np.ndarray, answers: np.ndarray, is_own: np.ndarray) -> float:
    is_right = outputs.argmax(1) == answers
    n = len(answers)
    return float((is_right & is_own).sum() / n * np.exp((is_right & ~is_own).sum() / n))
