"""Regression MSR of arXiv:2506.11849 with gradient-boosted trees, for the case `shapley_reuse`.

Written from its definition with scikit-learn's trees; the paper has XGBoost's.
"""

import math

import numpy as np

FOLDS = 4


def tree_values(member: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Shapley values, (utilities, examples), cross-fitted in pairs of complements.

    `member` has a row for none, then coalitions drawn by 1 / sqrt(s (n - s)), each beside its
    complement, and one for all; `worth` their utilities.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    inner, n = member[1:-1], member.shape[1]
    sizes = np.arange(1, n)
    law = 1 / np.sqrt(sizes * (n - sizes))
    law /= law.sum()
    size = inner.sum(1).astype(int)
    c = np.where(inner > 0, 1 / size[:, None], -1 / (n - size)[:, None]) / law[size - 1][:, None]
    fold = np.arange(len(inner)) // 2 % FOLDS
    values = np.zeros((worth.shape[1], n))
    for at, utility in enumerate(worth.T):
        for own in range(FOLDS):
            mine = fold == own
            model = GradientBoostingRegressor(subsample=0.5, random_state=0)
            model.fit(inner[~mine], utility[1:-1][~mine])
            residual = utility[1:-1][mine] - model.predict(inner[mine])
            of_ends = utility[[0, -1]] - model.predict(member[[0, -1]])
            known = sum(shapley_of_tree(tree.tree_, n) for (tree,) in model.estimators_)
            effect = c[mine].T @ residual / mine.sum() + (of_ends[1] - of_ends[0]) / n
            values[at] += mine.mean() * (model.learning_rate * known + effect)
    return values


def shapley_of_tree(tree: object, n: int) -> np.ndarray:
    """Shapley values of the game that a tree plays on memberships.

    A leaf that is reached by sets with all of A and none of B gives each of A
    (a - 1)! b! / (a + b)! of its value, and takes a! (b - 1)! / (a + b)! of it from each of B.
    """
    found = np.zeros(n)
    left, right = tree.children_left, tree.children_right  # type: ignore[attr-defined]
    feature, value = tree.feature, tree.value[:, 0, 0]  # type: ignore[attr-defined]
    waiting: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [(0, (), ())]
    while waiting:
        node, inside, outside = waiting.pop()
        if left[node] < 0:
            a, b = len(inside), len(outside)
            for i in inside:
                found[i] += value[node] / a / math.comb(a + b, a)
            for i in outside:
                found[i] -= value[node] / b / math.comb(a + b, a)
            continue
        player = int(feature[node])
        if player not in inside:
            waiting.append((left[node], inside, tuple({*outside, player})))
        if player not in outside:
            waiting.append((right[node], tuple({*inside, player}), outside))
    return found
