"""Answers of tasks that have few: their words as classes, and which of these are wrong.

In tasks such as "positive or negative?" a wrong answer is another right answer's words: it fits
every prompt of the task as well, and no loss tells it. So the answers that many rows share are
taken for classes, of all such tasks together, as prompts tell tasks apart. A ridge regression
predicts them from the states of the prompts, which have seen no answer, each row by the others:

    F_i = Y_i - (Y_i - Yhat_i) / (1 - h_i),    h_i = x_i' (X'X + n ridge I)^-1 x_i,

and the noise model of labels (`stages/surrogate/noise_model.py`) says how likely each is wrong.
[ours]
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from stages.reading.vectors import unit_rows
from stages.surrogate.noise_fit import fit_noise_model
from stages.surrogate.noise_model import NoiseModel

LEAST = 20
"""Rows that share an answer, before it is taken for a class."""
MOST = 50
"""Classes at most, the most frequent."""
LONGEST = 60
"""Characters of an answer that may be a class."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Tried; the one of the least squared error of rows left out is taken."""
NO_CLASS = -1


class AnswerClasses(NamedTuple):
    """What is known of the frequent answers."""

    words: dict[str, int]
    """The class of each frequent answer, as `plain` has it."""
    mean: Float[np.ndarray, " dim"]
    weights: Float[Tensor, "dim classes"]
    level: Float[Tensor, " classes"]
    noise: NoiseModel
    ids: Int64[np.ndarray, " rows"]
    """Rows that were fitted to, ascending."""
    outputs: Float[Tensor, "rows classes"]
    """Of these, each without itself."""

    def classes(self, answers: Sequence[str]) -> Int64[np.ndarray, " rows"]:
        """The class of each answer; `NO_CLASS` of others."""
        return np.array([self.words.get(plain(a), NO_CLASS) for a in answers], dtype=np.int64)

    def wrong(
        self,
        ids: Int64[np.ndarray, " rows"],
        answers: Sequence[str],
        prompts: Float[np.ndarray, "rows dim"],
    ) -> Float64[np.ndarray, " rows"]:
        """The probability that each answer should be another frequent one; NaN of rare answers."""
        labels = self.classes(answers)
        found = np.full(len(ids), np.nan)
        rows = np.flatnonzero(labels != NO_CLASS)
        if not len(rows):
            return found
        outputs = _features(prompts[rows], self.mean) @ self.weights + self.level
        at = np.searchsorted(self.ids, ids[rows]).clip(max=len(self.ids) - 1)
        is_own = torch.from_numpy(self.ids[at] == ids[rows])
        outputs = torch.where(is_own[:, None], self.outputs[torch.from_numpy(at)], outputs)
        found[rows] = self.noise.wrong(outputs, torch.from_numpy(labels[rows])).numpy()
        return found


def plain(answer: str) -> str:
    """The answer without spaces around it, case, and signs at its end."""
    return answer.strip().casefold().rstrip(".!").rstrip()


def fit_answer_classes(
    ids: Int64[np.ndarray, " rows"], answers: Sequence[str], prompts: Float[np.ndarray, "rows dim"]
) -> AnswerClasses | None:
    """The classes among some rows, ascending by id.

    None where fewer than two answers are frequent, or there are no prompts. Cost
    O(rows * dim^2 + dim^3); memory a float64 copy of the prompts of the rows concerned.
    """
    counts = Counter(plain(answer) for answer in answers if len(answer) <= LONGEST)
    frequent = [word for word, count in counts.most_common(MOST) if count >= LEAST and word]
    words = {word: at for at, word in enumerate(sorted(frequent))}
    if len(words) < 2:
        return None
    labels = np.array([words.get(plain(answer), NO_CLASS) for answer in answers], dtype=np.int64)
    rows = np.flatnonzero(labels != NO_CLASS)
    mean = prompts[rows].mean(0)
    features = _features(prompts[rows], mean)
    own = torch.from_numpy(labels[rows])
    targets = torch.nn.functional.one_hot(own, len(words)).double()
    level = targets.mean(0)
    values, vectors = torch.linalg.eigh(features.T @ features)
    if float(values[-1]) <= 0:
        return None
    turned = features @ vectors

    def fitted(ridge: float) -> tuple[float, Tensor, Tensor]:
        """The squared error of rows left out, the weights, and the outputs for these rows."""
        scale = 1 / (values.clamp(min=0) + ridge * len(rows))
        weights = vectors @ (scale[:, None] * (turned.T @ (targets - level)))
        leverage = (turned.square() * scale).sum(1) + 1 / len(rows)
        residual = targets - level - features @ weights
        outputs = targets - residual / (1 - leverage).clamp(min=1e-6)[:, None]
        return float((targets - outputs).square().mean()), weights, outputs

    _, weights, outputs = min(map(fitted, RIDGES), key=lambda fit: fit[0])
    noise = fit_noise_model(outputs, own)
    return AnswerClasses(words, mean, weights, level, noise, ids[rows], outputs)


def _features(
    prompts: Float[np.ndarray, "rows dim"], mean: Float[np.ndarray, " dim"]
) -> Float[Tensor, "rows dim"]:
    """The states less their mean, each of unit length, in float64."""
    return torch.from_numpy(unit_rows((prompts - mean).astype(np.float64)))
