"""Which of two answers is the better one, learned from pairs of which some have the wrong order.

A pair is the difference d of what is measured of its two answers, the chosen less the rejected. The
chosen one is the better with probability

    s(w d),  s the logistic function,

a Bradley-Terry model of features (doi:10.2307/2334029). It has no intercept: of a pair that is
turned around, d has the other sign and the probability is the complement, so that every pair is a
planted wrong order, too. w is that of a penalised logistic regression on the orders as given. Of
pairs that a fit has not seen, f = w d is calibrated. Orders are given wrongly with probability e,
whatever the pair (for DPO: arXiv:2403.00409, section 3), so with a scale a,

    p(given | d) = (1 - e) s(a f) + e s(-a f),

and with the likeliest a and e

    p(wrong | d) = e s(-a f) / p(given | d).

How much the states of a model count beside its losses is chosen by that likelihood, too. [ours]
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from stages.surrogate.answer_mixture import FURTHEST, signals_of

PARTS = 5
PENALTY = 0.01
"""Of the squared weights, beside the mean loss."""
SCALES = (0.0, 0.03, 0.1, 0.3)
"""Spreads of the states' numbers, where those of signals have spread 1; the likeliest is taken."""
MOST_WRONG, LEAST_WRONG = 0.5, 1e-4
"""Share of wrong orders; from half on the given orders would say nothing."""

SMALL, WIDTH = 3.0, 2.0
"""The second parameter of the beta distribution that the share is from beforehand, and the spread
of the normal distribution that the logarithm of the scale is from."""

TOLD = 1.5
"""Scores of unseen pairs agree with more than half of the orders by three standard errors, this by
the root of their number; otherwise they say nothing, and no order is said to be wrong."""

GROUPS = {
    "rejected fits the prompt better": (0, 1),
    "rejected is worded likelier": (2, 3, 5),
    "chosen ends in the middle": (4,),
    "length": (6,),
}
"""Signals (`answer_mixture.signals_of`) by what they say where they speak against an order."""
CONTENT = "chosen is like rejected answers"
"""The same of states."""


class Differences(NamedTuple):
    """What is measured of the chosen answer of each pair, less the same of the rejected one."""

    signals: Float64[np.ndarray, "pairs signals"]
    """0 where it is not known of both."""
    states: Float[np.ndarray, "pairs dim"]


class Judged(NamedTuple):
    """What the fits say of some pairs."""

    score: Float64[np.ndarray, " pairs"]
    """The logarithm of the odds that the given order is right, wrong orders in the corpus aside."""
    p_wrong: Float64[np.ndarray, " pairs"]
    reasons: list[str]
    """What speaks most against the given order."""


class Order(NamedTuple):
    """Fits on all parts but one each, and how sure their scores are."""

    weights: Float[Tensor, "parts features"]
    spreads: Float64[np.ndarray, " features"]
    """Of all features; those of states are divided by their scale."""
    scale: float
    """The scale of the score, a."""
    share: float
    """The share of wrong orders, e."""
    has_states: bool

    def judge(self, pairs: Differences, part: Int64[np.ndarray, " pairs"]) -> Judged:
        """What the fit that left out the `part` of each pair says of it."""
        x = _features(pairs, self.spreads)
        products = (x * self.weights[torch.from_numpy(part)]).numpy() * self.scale
        score = products.sum(1)
        n = pairs.signals.shape[1]
        grouped = [products[:, list(at)].sum(1) for at in GROUPS.values()]
        names = [*GROUPS]
        if self.has_states:
            grouped.append(products[:, n:].sum(1))
            names.append(CONTENT)
        worst = np.column_stack(grouped).argmin(1)
        return Judged(score, p_wrong(score, self.share), [names[at] for at in worst.tolist()])


def differences(
    chosen: Float64[np.ndarray, "pairs numbers"],
    rejected: Float64[np.ndarray, "pairs numbers"],
    states: Float[np.ndarray, "pairs 2 dim"],
) -> Differences:
    """The differences of the numbers `answer_mixture.NUMBERS`, and of states, chosen first."""
    signals = signals_of(chosen) - signals_of(rejected)
    return Differences(np.nan_to_num(signals), states[:, 0] - states[:, 1])


def fit_order(pairs: Differences, part: Int64[np.ndarray, " pairs"]) -> Order:
    """What tells the better answer, learned from pairs in their given order.

    `part`, below `PARTS`, says which fit leaves a pair out. Cost: some hundred products of the
    features with a vector for each part and scale.
    """

    def fitted(of_states: float) -> tuple[float, Order]:
        """The mean logarithm of the likelihood, and the fits with this scale of the states."""
        spreads = _spreads(pairs, of_states)
        x = _features(pairs, spreads)
        weights = torch.stack([_fit(x[torch.from_numpy(part != own)]) for own in range(PARTS)])
        unseen = (x * weights[torch.from_numpy(part)]).sum(1).numpy()
        scale, share, likelihood = calibrated(unseen)
        if (unseen > 0).mean() < 0.5 + TOLD / np.sqrt(len(unseen)):
            share = LEAST_WRONG
        return likelihood, Order(weights, spreads, scale, share, of_states > 0)

    return max(map(fitted, SCALES), key=lambda fit: fit[0])[1]


def calibrated(unseen: Float64[np.ndarray, " pairs"]) -> tuple[float, float, float]:
    """The likeliest scale and share of wrong orders, and the mean logarithm of the likelihood.

    `unseen` are scores of pairs by fits that have not seen them. Scores that say nothing would fit
    any share as well, with a scale beyond all bounds: hence what is known beforehand (`SMALL`,
    `WIDTH`), that scores are not far from log odds, and few orders wrong.
    """
    middle = float(np.sqrt(np.mean(np.square(unseen)))) or 1.0
    scales = np.geomspace(0.01, 100, 81) / middle
    shares = np.concatenate([[LEAST_WRONG], np.arange(0.005, MOST_WRONG, 0.005)])
    found = np.zeros((len(scales), len(shares)))
    for at, scale in enumerate(scales):
        right = logistic(scale * unseen)
        for place, share in enumerate(shares):
            found[at, place] = np.log((1 - share) * right + share * (1 - right)).mean()
    prior = (SMALL - 1) * np.log1p(-shares) - np.square(np.log(scales) / WIDTH)[:, None] / 2
    at, place = divmod(int((found + prior / len(unseen)).argmax()), len(shares))
    return float(scales[at]), float(shares[place]), float(found[at, place])


def p_wrong(score: Float64[np.ndarray, " pairs"], share: float) -> Float64[np.ndarray, " pairs"]:
    """The probability that a given order is wrong, where `share` of all are, by Bayes' rule."""
    odds = share / (1 - share) * np.exp(-np.clip(score, -500, 500))
    found: np.ndarray = odds / (1 + odds)
    return found


def logistic(x: Float64[np.ndarray, " pairs"]) -> Float64[np.ndarray, " pairs"]:
    """1 / (1 + exp(-x)), within (0, 1)."""
    found: np.ndarray = 1 / (1 + np.exp(-np.clip(x, -30, 30)))
    return found


def _spreads(pairs: Differences, of_states: float) -> Float64[np.ndarray, " features"]:
    """What the features are divided by; infinite where they do not count."""
    signals, states = (
        np.sqrt(np.square(block.astype(np.float64)).mean(0))
        for block in (pairs.signals, pairs.states)
    )
    states = states / of_states if of_states else np.full(len(states), np.inf)
    both = np.concatenate([signals, states])
    found: np.ndarray = np.where(both > 0, both, np.inf)
    return found


def _features(
    pairs: Differences, spreads: Float64[np.ndarray, " features"]
) -> Float[Tensor, "pairs features"]:
    both = np.concatenate([pairs.signals, pairs.states.astype(np.float64)], axis=1)
    return torch.from_numpy(np.clip(both / spreads, -FURTHEST, FURTHEST))


def _fit(x: Float[Tensor, "pairs features"]) -> Float[Tensor, " features"]:
    """The weights of the penalised logistic regression that takes all given orders for right."""
    theta = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        losses = torch.nn.functional.softplus(-x @ theta)
        loss = losses.mean() + PENALTY / 2 * theta.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return theta.detach()
