"""The noise model that given labels and out-of-sample predictions tell of.

Uneven noise has a normal prior of the d_jk (`stages/surrogate/noise_model.py`) that shrinks them to
even noise. How strong it is, and whether noise is even, is decided by the likelihood of labels that
a fit has not seen: even noise, unless these are far more likely by another fit. Temperature,
offsets and uneven rates maximise the likelihood of the given labels, times the prior.

Predictions that make the labels no likelier than the frequencies of their classes tell nothing of
noise: no label is then held for wrong. Left-out predictions of as many rows of each class are of
this kind where features say nothing, and contradict every label, for the class of a row that is
left out becomes the rarer one. So no noise beyond that of labels drawn at random is fitted.

The rate e of even noise is its posterior mean, under a prior that holds every rate up to that of
labels drawn at random for equally likely, and temperature and offsets w for flat in (log t, b):

    p(e) = integral of L(e, w) dw = about L(e, w_e) det(J_e)^(-1/2),

Laplace's approximation around the likeliest w_e, with J the sum of outer products of each row's
gradient of the log-likelihood (Tierney and Kadane 1986, doi:10.1080/01621459.1986.10478240). Where
few predictions are sure, L(e, w_e) hardly differs between no noise and much: the likeliest rate is
then nearly any, and a mean by L(e, w_e) alone too low, since at much noise more w explain the
labels. What it changed: `scripts/benchmarks/noise.md`.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages.reading.vectors import evenly
from stages.stage import DataError
from stages.surrogate.noise_model import NoiseModel

STARTS = ((4.0, 0.1), (10.0, 0.1), (6.0, 0.01))
"""Temperatures and noise rates that the search starts from; the likeliest result is kept."""
UNKNOWN, NO_NOISE = 1e-3, 1e-6
"""Temperature of predictions that tell nothing, and rate of noise then. Scores keep the order of
margins."""
LEAST_KNOWN = 0.25
"""Log-likelihood for each class that predictions must gain over the frequencies of classes. Labels
of which hidden states tell nothing gain it by chance about once in 9. More would be asked in vain
where 40 % of the labels of two classes are wrong: `scripts/benchmarks/noise.md`.
"""
FEWEST_KNOWN = 10
"""Rows that tell of noise at least: fewer gain so much by chance in a third of draws or more."""
LEAST_GAIN = 2.0
"""Log-likelihood of unseen labels that uneven noise must gain: they are seven times as likely."""
MOST_UNEVEN = 0.4
"""Share of the labels that uneven noise may have made wrong. More of it explains classes that the
predictions cannot tell apart, not noise."""
LEAST_START = 0.05
"""Noise rate that a search for uneven noise starts from at least."""
OFFSET_PENALTY = 1e-4
FIT_ROWS = 2**16
"""Most examples that a stage fits a model to: noise rates of labels drawn from the model were found
to 0.005 from 40,000."""
SPREADS = (0.5, 1.0, 2.0)
"""Standard deviations of the d_jk that are tried."""
JUDGED_ROWS = 2**14
"""Most rows that tell whether noise is even."""
FOLDS = 4
"""Parts of the rows, each judged by a fit to the others."""
RATES = 10
"""Noise rates at which the posterior is computed, evenly spread over a range."""
LEAST_RATES, WITHIN = 5, 8.0
"""The range is made narrower until the logarithms at so many rates are within this of the best."""
ZOOMS = 8
"""Ranges that are tried, at most."""


class _Labels(NamedTuple):
    """What is known of the labels of some rows."""

    outputs: Float[Tensor, "rows classes"]
    given: Int64[Tensor, " rows"]
    may_be: Bool[Tensor, "rows classes"]
    """Which classes the clean label may be: any, or the one that a person decided on."""

    def at(self, rows: Tensor) -> "_Labels":
        """Of these rows alone."""
        return _Labels(self.outputs[rows], self.given[rows], self.may_be[rows])

    def rates(self, theta: Float[Tensor, " numbers"]) -> Float[Tensor, "rows classes"]:
        """The rate of each row's given label in each class that it may be of, in others 0."""
        return _rates(theta, self.outputs.shape[1]).T[self.given] * self.may_be


def fit_noise_model(
    outputs: Float[Tensor, "rows classes"],
    labels: Int64[Tensor, " rows"],
    decided: Int64[Tensor, " rows"] | None = None,
) -> NoiseModel:
    """The noise model, even at its expected rate or uneven, as unseen labels say.

    Without noise where the predictions tell nothing of the labels; where people decided about some,
    their decisions alone tell its rate then.

    `labels` are as they were given, `decided` the classes that a person decided on, -1 where nobody
    did. Which rows a person looks at may depend on their outputs and given labels, as it does where
    the most doubtful come first: the likelihood is of both given and decided label.

    Cost O(rows * classes^2) per step, some 1,500 steps.

    Raises:
        DataError: no fit is finite.
    """
    n_classes = outputs.shape[1]
    if len(labels) < 2:
        # Nothing to search by.
        numbers = torch.zeros(2 + n_classes, dtype=torch.float64)
        numbers[0] = math.log(UNKNOWN)
        return _model(_with_rate(numbers, NO_NOISE, n_classes), n_classes)
    may_be = torch.ones_like(outputs, dtype=torch.bool)
    if decided is not None:
        places = decided[:, None] == torch.arange(n_classes)
        may_be = torch.where(decided[:, None] >= 0, places, may_be)
    rows = _Labels(outputs, labels, may_be)
    even, unknown = _even_or_unknown(rows)
    if unknown is not None:
        # Rows of a frequent class are no surer than others: without offsets margins alone count.
        unknown[2:] = 0
        return _model(unknown, n_classes)
    gained, best = _gains(rows, even).max(0)
    found = None
    if float(gained) > LEAST_GAIN:
        found = _search(rows, even, SPREADS[int(best)])
        if found is not None:
            wrong = _model(found, n_classes).wrong(outputs, labels)
            found = found if float(wrong.mean()) <= MOST_UNEVEN else None
    if found is None:
        found = _at_expected_rate(rows, even)
    return _model(found, n_classes)


def is_unknown(model: NoiseModel) -> bool:
    """Whether the predictions tell nothing of the labels."""
    return math.isclose(model.temperature, UNKNOWN)


def tells(outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]) -> bool:
    """Whether a noise model of these predictions would hold some label for wrong.

    Cost O(rows * classes^2) per step, some 100 steps.

    Raises:
        DataError: no fit is finite.
    """
    if len(labels) < FEWEST_KNOWN:
        return False
    rows = _Labels(outputs, labels, torch.ones_like(outputs, dtype=torch.bool))
    return _even_or_unknown(rows)[1] is None


def _even_or_unknown(
    rows: _Labels,
) -> tuple[Float[Tensor, " numbers"], Float[Tensor, " numbers"] | None]:
    """The numbers of the likeliest even noise, and those where the predictions tell nothing.

    Raises:
        DataError: no fit is finite.
    """
    even = _even(rows)
    if even is None:
        raise DataError(
            "label_noise: found predictions that no noise model can be fitted to, expected finite "
            "ones that vary. Look at the view `predictions`."
        )
    unknown = _unknown(rows, even)
    known = float((_log_likelihood(rows, even) - _log_likelihood(rows, unknown)).sum())
    is_known = len(rows.given) >= FEWEST_KNOWN and known >= LEAST_KNOWN * rows.outputs.shape[1]
    return even, (None if is_known else unknown)


def _gains(
    rows: _Labels,
    even: Float[Tensor, " numbers"],
) -> Float[Tensor, " spreads"]:
    """How much likelier uneven noise of each spread makes labels that the fit has not seen.

    Logarithms, over `JUDGED_ROWS` at most; `even` is where searches start.
    """
    rows = rows.at(torch.from_numpy(evenly(len(rows.given), JUDGED_ROWS)))
    folds = torch.arange(len(rows.given)) % FOLDS
    gains = torch.zeros(len(SPREADS), dtype=torch.float64)
    for fold in range(FOLDS):
        seen, unseen = rows.at(folds != fold), rows.at(folds == fold)
        start = _search(seen, even, None)
        if start is None or not len(unseen.given):
            continue
        before = _log_likelihood(unseen, start)
        for place, spread in enumerate(SPREADS):
            other = _search(seen, start, spread)
            if other is not None:
                after = _log_likelihood(unseen, other)
                gains[place] += float((after - before).sum())
    return gains


def _even(rows: _Labels) -> Float[Tensor, " numbers"] | None:
    """The numbers of the likeliest even noise; None where no fit is finite."""
    n_classes = rows.outputs.shape[1]
    best: tuple[float, Tensor] | None = None
    for temperature, noise in STARTS:
        theta = torch.zeros(2 + n_classes, dtype=torch.float64)
        theta[0], theta[1] = math.log(temperature), math.log(noise / (1 - noise) / (n_classes - 1))
        end = _search(rows, theta, None)
        if end is not None:
            value = -float(_log_likelihood(rows, end).mean())
            if best is None or value < best[0]:
                best = (value, end)
    return None if best is None else best[1]


def _unknown(rows: _Labels, even: Float[Tensor, " numbers"]) -> Float[Tensor, " numbers"]:
    """The likeliest numbers of predictions that tell nothing; noise is of decisions, or none."""
    start = even.clone()
    start[0] = math.log(UNKNOWN)
    kept: tuple[int, ...] = (0,)
    if bool(rows.may_be.all()):
        start, kept = _with_rate(start, NO_NOISE, rows.outputs.shape[1]), (0, 1)
    found = _search(rows, start, None, kept)
    return start if found is None else found


def _at_expected_rate(
    rows: _Labels,
    even: Float[Tensor, " numbers"],
) -> Float[Tensor, " numbers"]:
    """The likeliest numbers at the posterior mean of the noise rate; `even` if there is none.

    `even` are those at the likeliest rate, where searches start.
    """
    n_classes = rows.outputs.shape[1]
    low, high = 0.0, (n_classes - 1) / n_classes
    mean = None
    for _ in range(ZOOMS):
        step = (high - low) / RATES
        rates = low + step * (torch.arange(RATES, dtype=torch.float64) + 0.5)
        evidence = _evidence(rows, even, rates)
        if not bool(evidence.isfinite().any()):
            break
        mean = float((torch.softmax(evidence, 0) * rates).sum())
        near = rates[evidence > evidence.max() - WITHIN]
        if len(near) >= LEAST_RATES:
            break
        low, high = max(low, float(near[0]) - step), min(high, float(near[-1]) + step)
    if mean is None:
        return even
    found = _search(rows, _with_rate(even, mean, n_classes), None, kept=(1,))
    return even if found is None else found


def _evidence(
    rows: _Labels,
    even: Float[Tensor, " numbers"],
    rates: Float[Tensor, " rates"],
) -> Float[Tensor, " rates"]:
    """Logarithm of the likelihood of each rate, all else integrated out; -inf where none is found.

    Each search starts where that of the rate before ended, from the rate of `even` outwards.
    """
    n_classes = rows.outputs.shape[1]
    own = 1 - float(_rates(even, n_classes)[0, 0])
    nearest = int((rates - own).abs().argmin())
    found = torch.full_like(rates, -torch.inf)
    for places in (range(nearest, len(rates)), range(nearest - 1, -1, -1)):
        start = even
        for place in places:
            start = _with_rate(start, float(rates[place]), n_classes)
            end = _search(rows, start, None, kept=(1,))
            if end is not None:
                start = end
                found[place] = _laplace(rows, end)
    return found.nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _laplace(
    rows: _Labels,
    theta: Float[Tensor, " numbers"],
) -> Float[Tensor, ""]:
    """Logarithm of the likelihood of a rate, integrated over log t and the offsets around these."""
    n, n_classes = rows.outputs.shape
    offsets = theta[2 : 2 + n_classes]
    clean = torch.softmax(theta[0].exp() * rows.outputs + offsets, dim=1)
    of_given = rows.rates(theta)
    seen = (clean * of_given).sum(1, keepdim=True).clamp_min(1e-12)
    gradients = clean * (of_given - seen) / seen
    of_temperature = (theta[0].exp() * rows.outputs * gradients).sum(1, keepdim=True)
    of_rows = torch.cat([of_temperature, gradients], 1)
    precision = of_rows.T @ of_rows
    precision[1:, 1:] += 2 * n * OFFSET_PENALTY * torch.eye(n_classes, dtype=torch.float64)
    value = _log_likelihood(rows, theta).sum()
    return value - n * OFFSET_PENALTY * offsets.square().sum() - torch.logdet(precision) / 2


def _with_rate(
    theta: Float[Tensor, " numbers"], rate: float, n_classes: int
) -> Float[Tensor, " numbers"]:
    """The same numbers with another rate of even noise."""
    changed = theta.clone()
    changed[1] = math.log(rate / (1 - rate) / (n_classes - 1))
    return changed


def _search(
    rows: _Labels,
    start: Float[Tensor, " numbers"],
    spread: float | None,
    kept: tuple[int, ...] = (),
) -> Float[Tensor, " found"] | None:
    """The end of a search for the likeliest noise; None if it is not finite.

    The numbers are log t, a, the offsets and, unless `spread` is None, the d_jk. Those at the
    places `kept` stay what they are.
    """
    n_classes = rows.outputs.shape[1]
    theta = start[: 2 + n_classes].clone()
    if spread is not None:
        # From next to no noise on, no step would lead to any.
        theta[1] = theta[1].clamp_min(math.log(LEAST_START / (1 - LEAST_START) / (n_classes - 1)))
        theta = torch.cat([theta, torch.zeros(n_classes**2, dtype=torch.float64)])
    theta.requires_grad_(True)
    search = torch.optim.LBFGS(
        [theta], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = -_log_likelihood(rows, theta).mean()
        value = value + OFFSET_PENALTY * theta[2 : 2 + n_classes].square().sum()
        if spread is not None:
            value = value + theta[2 + n_classes :].square().sum() / (
                2 * spread**2 * len(rows.given)
            )
        value.backward()  # type: ignore[no-untyped-call]
        if theta.grad is not None:
            theta.grad[list(kept)] = 0
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    end = theta.detach()
    return end if bool(_log_likelihood(rows, end).isfinite().all()) else None


def _log_likelihood(
    rows: _Labels,
    theta: Float[Tensor, " numbers"],
) -> Float[Tensor, " rows"]:
    """Logarithm of the probability of what is known of each label."""
    n_classes = rows.outputs.shape[1]
    clean = torch.softmax(theta[0].exp() * rows.outputs + theta[2 : 2 + n_classes], dim=1)
    seen = (clean * rows.rates(theta)).sum(1)
    return seen.clamp_min(1e-12).log()


def _model(theta: Float[Tensor, " numbers"], n_classes: int) -> NoiseModel:
    """The model that the numbers of a search stand for."""
    offsets = theta[2 : 2 + n_classes]
    return NoiseModel(float(theta[0].exp()), offsets, _rates(theta, n_classes))


def _rates(theta: Float[Tensor, " numbers"], n_classes: int) -> Float[Tensor, "classes classes"]:
    """R of the numbers of a search; even noise is at most that of labels drawn at random."""
    is_kept = torch.eye(n_classes, dtype=torch.bool)
    logits = theta[1].expand(n_classes, n_classes)
    if len(theta) == 2 + n_classes:
        logits = logits.clamp_max(0)
    if len(theta) > 2 + n_classes:
        logits = logits + theta[2 + n_classes :].reshape(n_classes, n_classes)
    return torch.softmax(logits.masked_fill(is_kept, 0), dim=1)
