"""Which answers are bad, learned from bad answers that were planted in the corpus's own rows.

Every answer is a vector of numbers: what the model finds of it, the same compared with the answers
to the most similar prompts, and how alike it is to these. A multinomial logistic regression tells
the rows as they are from each kind of planted ones,

    r_k(x) = p(x | kind k) / p(x | as it is),

and the shares pi of the kinds among the rows are the likeliest, by expectation and maximisation
with r fixed (Saerens, Latinne, Decaestecker 2002, doi:10.1162/089976602753284446, eq. 2.10):

    p(bad | x) = sum_k pi_k r_k(x) / (pi_0 + sum_k pi_k r_k(x)).

Rows as they are hold bad ones, too, which would be taken for good: those that look more like a
planted one than a tenth of the planted ones do are left out when the regression is fitted again. A
kind that the first fit cannot tell from the rows has no share.
Both fits judge rows that they have not seen, in five parts. [ours]
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from stages.reading.vectors import unit_rows

NEIGHBOURS = 15
"""Answers to similar prompts that one is compared with."""
PENALTY = 0.03
"""Of the squared weights of the regression, beside the mean cross-entropy."""
PARTS = 5
TRIMMED, MOST_TRIMMED = 0.1, 0.4
"""Rows as they are that look more like planted ones than this share of the planted ones do are left
out of the second fit, but at most so many of them."""
TOLD_APART = 0.7
"""Least area under the ROC curve between a kind and the rows as they are, by the first fit. A kind
below it cannot be told from good answers, and no row is said to be of it."""
HARDLY = 1e-6
"""The share that a kind gets all the same, so that rows have an order."""
SOFT, STEEP = 0.05, 0.15
"""What keeps ratios of small losses small, and spreads of equal neighbours apart from 0."""
FURTHEST = 6.0
"""Numbers beyond so many spreads count as these."""
EM_STEPS = 500
BLOCK = 1024
"""Rows that are compared at a time."""


class Measured(NamedTuple):
    """Some answers: `numbers` in the columns of `NUMBERS`, NaN where not known, and states."""

    numbers: Float64[np.ndarray, "rows six"]
    prompts: Float[np.ndarray, "rows dim"]
    answers: Float[np.ndarray, "rows dim"]


NUMBERS = ("n_tokens", "text_loss", "text_loss_alone", "end_loss", "worst_loss")


class Reference(NamedTuple):
    """The rows that others are compared with, at most some thousands."""

    ids: Int64[np.ndarray, " rows"]
    signals: Float64[np.ndarray, "rows signals"]
    prompts: Float[np.ndarray, "rows dim"]
    answers: Float[np.ndarray, "rows dim"]
    prompt_mean: Float[np.ndarray, " dim"]
    answer_mean: Float[np.ndarray, " dim"]


class Mixture(NamedTuple):
    """What tells kinds apart. `kinds` are those planted, class 0 of the weights is none."""

    kinds: tuple[str, ...]
    centre: Float64[np.ndarray, " features"]
    spread: Float64[np.ndarray, " features"]
    weights: Float[Tensor, "classes features_and_one"]
    shares: Float64[np.ndarray, " classes"]
    areas: Float64[np.ndarray, " kinds"]
    """How well the first fit tells each kind from the rows as they are: see `told_apart`."""

    def posterior(
        self, features: Float64[np.ndarray, "rows features"]
    ) -> Float64[np.ndarray, "rows classes"]:
        """The probability that a row is as it should be, and that it is bad in each way."""
        logits = scaled(features, self.centre, self.spread) @ self.weights.T
        return with_shares(ratios(logits.numpy()), self.shares)


def signals_of(
    numbers: Float64[np.ndarray, "rows five"],
) -> Float64[np.ndarray, "rows signals"]:
    """What each answer's numbers say: difficulty, gain, losses, length. NaN stays."""
    n, loss, alone, end, worst = numbers.T
    gain = (alone - loss) * n
    difficulty = np.log((loss + SOFT) / (alone + SOFT))
    columns = [difficulty, np.sign(gain) * np.log1p(np.abs(gain)), loss, alone]
    return np.column_stack([*columns, np.log1p(end), worst, np.log1p(n)])


def reference_of(ids: Int64[np.ndarray, " rows"], measured: Measured) -> Reference:
    """The rows as those that others are compared with."""
    means = measured.prompts.mean(0), measured.answers.mean(0)
    return Reference(
        ids,
        signals_of(measured.numbers),
        unit_rows(measured.prompts - means[0]),
        unit_rows(measured.answers - means[1]),
        *means,
    )


def features_of(
    ids: Int64[np.ndarray, "rows any"], measured: Measured, reference: Reference
) -> Float64[np.ndarray, "rows features"]:
    """The vector of each answer; it is not compared with the rows `ids`. NaN is what is not known.

    These are the row itself and, of a planted answer, the one that it was taken from. At least one
    row. Cost: an inner product for every row and row of the reference.
    """
    blocks = [slice(first, first + BLOCK) for first in range(0, len(ids), BLOCK)]
    return np.concatenate(
        [_features(ids[b], Measured(*(part[b] for part in measured)), reference) for b in blocks]
    )


def _features(
    ids: Int64[np.ndarray, "rows any"], measured: Measured, reference: Reference
) -> Float64[np.ndarray, "rows features"]:
    signals = signals_of(measured.numbers)
    answers = unit_rows(measured.answers - reference.answer_mean)
    likeness = unit_rows(measured.prompts - reference.prompt_mean) @ reference.prompts.T
    for own in ids.T:
        likeness[own[:, None] == reference.ids] = -np.inf
    k = min(NEIGHBOURS, len(reference.ids) - 1)
    near = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
    beside = reference.signals[near]
    middle = _median(beside)
    overall = np.array([np.std(column[~np.isnan(column)]) for column in reference.signals.T])
    spread = _median(np.abs(beside - middle[:, None])) + STEEP * np.nan_to_num(overall) + 1e-9
    away = np.clip((signals - middle) / spread, -FURTHEST, FURTHEST)
    alike = np.einsum("ij,ikj->ik", answers, reference.answers[near])
    return np.column_stack([signals, away, alike.mean(1), alike.max(1), np.abs(away[:, -1])])


def fit_mixture(
    features: Float64[np.ndarray, "rows features"],
    planted: Float64[np.ndarray, "planted features"],
    kinds: list[str],
    sources: Int64[np.ndarray, " planted"],
    seed: int = 0,
) -> Mixture:
    """What tells the rows of `features` from `planted` ones, of these `kinds`, made of `sources`.

    `sources` are numbers of rows, so that no row is judged by a fit on what was made of it.
    """
    names = tuple(sorted(set(kinds)))
    known = np.nan_to_num(features)
    centre, spread = known.mean(0), known.std(0) + 1e-9
    x = scaled(np.concatenate([features, planted]), centre, spread)
    label = np.array([0] * len(features) + [names.index(kind) + 1 for kind in kinds])
    part = np.random.default_rng(seed).permutation(len(features)) % PARTS
    part = np.concatenate([part, part[sources]])
    of_kinds = ratios(_unseen(x, label, np.ones(len(label)), part))
    areas = told_apart(of_kinds, label)
    is_told = areas >= TOLD_APART
    kept = np.ones(len(label))
    if is_told.any():
        most = of_kinds[:, 1:][:, is_told].max(1)
        likely = most[np.isin(label, np.flatnonzero(is_told) + 1)]
        bar = max(np.quantile(likely, TRIMMED), np.quantile(most[label == 0], 1 - MOST_TRIMMED))
        kept[(label == 0) & (most >= bar)] = 0.0
        of_kinds = ratios(_unseen(x, label, kept, part))
    shares = likeliest_shares(of_kinds[label == 0], is_told)
    return Mixture(names, centre, spread, _fit(x, label, kept), shares, areas)


def ratios(logits: Float64[np.ndarray, "rows classes"]) -> Float64[np.ndarray, "rows classes"]:
    """p(x | kind) / p(x | as it is); the regression gave every kind a share of their weight."""
    found: np.ndarray = np.exp(np.clip(logits - logits[:, :1], -30, 30))
    found[:, 1:] *= logits.shape[1] - 1
    return found


def told_apart(
    of_kinds: Float64[np.ndarray, "rows classes"], label: Int64[np.ndarray, " rows"]
) -> Float64[np.ndarray, " kinds"]:
    """How well the ratio of each kind tells its planted rows (`label` 1, ...) from others (0).

    That is the area under the ROC curve: 1/2 by chance, 1 where every planted row is above all.
    """
    found = []
    for kind in range(1, of_kinds.shape[1]):
        own, others = of_kinds[label == kind, kind], np.sort(of_kinds[label == 0, kind])
        sides = (np.searchsorted(others, own, side) for side in ("left", "right"))
        found.append(sum(side.mean() for side in sides) / (2 * len(others)))
    return np.array(found)


def likeliest_shares(
    of_kinds: Float64[np.ndarray, "rows classes"], is_told: Bool[np.ndarray, " kinds"]
) -> Float64[np.ndarray, " classes"]:
    """The shares of greatest likelihood, for ratios p(x | kind) / p(x | as it is).

    Kinds that are not told apart have next to none.
    """
    shares = np.concatenate([[0.0], np.where(is_told, 0.2 / max(1, is_told.sum()), 0.0)])
    shares[0] = 1 - shares.sum()
    for _ in range(EM_STEPS):
        shares = with_shares(of_kinds, shares).mean(0)
    shares[1:] = np.maximum(shares[1:], HARDLY)
    found: np.ndarray = shares / shares.sum()
    return found


def with_shares(
    of_kinds: Float64[np.ndarray, "rows classes"], shares: Float64[np.ndarray, " classes"]
) -> Float64[np.ndarray, "rows classes"]:
    """The posterior of each kind, by Bayes' rule."""
    joint = of_kinds * shares
    found: np.ndarray = joint / joint.sum(1, keepdims=True)
    return found


def scaled(
    features: Float64[np.ndarray, "rows features"],
    centre: Float64[np.ndarray, " features"],
    spread: Float64[np.ndarray, " features"],
) -> Float[Tensor, "rows features_and_one"]:
    """The features in spreads from the centre, 0 where not known, and a column of ones."""
    x = np.where(np.isnan(features), 0.0, (features - centre) / spread)
    x = np.clip(x, -FURTHEST, FURTHEST)
    return torch.from_numpy(np.column_stack([x, np.ones(len(x))]))


def _unseen(
    x: Float[Tensor, "rows features"],
    label: Int64[np.ndarray, " rows"],
    kept: Float64[np.ndarray, " rows"],
    part: Int64[np.ndarray, " rows"],
) -> Float64[np.ndarray, "rows classes"]:
    """Logits of each row by the fit on the other parts."""
    found = np.zeros((len(x), int(label.max()) + 1))
    for own in range(PARTS):
        is_own = part == own
        weights = _fit(x, label, kept * ~is_own)
        found[is_own] = (x[torch.from_numpy(is_own)] @ weights.T).numpy()
    return found


def _fit(
    x: Float[Tensor, "rows features"],
    label: Int64[np.ndarray, " rows"],
    kept: Float64[np.ndarray, " rows"],
) -> Float[Tensor, "classes features"]:
    """The regression; all kinds together weigh as much as the rows as they are."""
    n_classes = int(label.max()) + 1
    total = np.bincount(label, kept, n_classes)
    share = np.where(np.arange(n_classes) == 0, 1.0, 1.0 / (n_classes - 1)) / np.maximum(total, 1)
    weight = torch.from_numpy(kept * share[label] / 2)
    target = torch.from_numpy(label)
    theta = torch.zeros(n_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([theta], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        losses = torch.nn.functional.cross_entropy(x @ theta.T, target, reduction="none")
        loss = (weight * losses).sum() + PENALTY / 2 * theta[:, :-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return theta.detach()


def _median(values: Float64[np.ndarray, "rows k signals"]) -> Float64[np.ndarray, "rows signals"]:
    """The median over neighbours of what is known of them."""
    with warnings.catch_warnings():
        # Where nothing is known of any neighbour, the median is not known either.
        warnings.simplefilter("ignore", RuntimeWarning)
        found: np.ndarray = np.nanmedian(values, axis=1)
    return found
