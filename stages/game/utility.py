"""Utilities: what a coalition is worth, by the outputs of the model fitted on it. More is better.

Every utility of a classifier sees only differences between a query's class outputs, so a number
added to all classes of a query changes nothing, and the utility of the empty set, U(empty), is that
of equal outputs: accuracy 1/C, cross-entropy -log C, margin 0 (the paper's U(empty) is the random
guess as well).

`loss` is the utility of another game, which needs no classes: the players are per-example gradients
of the loss, and the one output is by how much a step on the set lowers the loss of the queries
(`stages.game.from_tables`); U(empty) is 0.

With two classes the outputs of a query, less 1/2, are z and -z: one number is computed instead of
two, and its sign is turned so that z is the output of the query's own class.

**Ties.** Outputs that are equal in exact arithmetic, as where examples come twice or share nothing
with a query, come out of a solve apart by rounding. An example i that joins moves the output of a
query t by r k / (s + damping), with r < 1 the residual of its target, and k and s the kernels of t
and of i with i less what the members explain: by no more than

    scale_t = sqrt(k(t,t) mean k(i,i)) / damping,

and that is off by a few eps times scale_t, eps being the rounding of the dtype: k and s are
differences of numbers up to sqrt(k(t,t) k(i,i)) and k(i,i), known to eps of these, and s + damping
is at least the damping. So outputs that are no further apart than eps^(2/3) scale_t count as equal.
That leaves room for eps^(-1/3) such errors (200 in float32, 165,000 in float64; they have either
sign, so that many more joins than that fit in), while of outputs that differ truly one in some
10,000 lies as close in float32, and then shares its accuracy, which moves no mean. [derived]
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.stage import ConfigError

Utility = Literal["accuracy", "cross_entropy", "margin", "loss"]


def check_fields(utilities: tuple[Utility, ...], temperature: float) -> None:
    """Refuses fields that no utility can be computed from.

    Raises:
        ConfigError: no utility or one twice is named, or the temperature is not positive.
    """
    if not utilities or len(set(utilities)) < len(utilities):
        raise ConfigError(
            f"utilities: found {list(utilities)}, expected at least one, each once. "
            "Name some of accuracy, cross_entropy, margin; or loss alone."
        )
    if "loss" in utilities and len(utilities) > 1:
        raise ConfigError(
            f"utilities: found {list(utilities)}, expected loss alone: it is another game, over "
            "the gradients of losses. Give it a stage instance of its own."
        )
    if not 0 < temperature < float("inf"):
        raise ConfigError(
            f"temperature: found {temperature}, expected a positive number. Set temperature: 1."
        )


def fitted(targets: Float[Tensor, "examples classes"]) -> Float[Tensor, "examples outputs"]:
    """The columns of `targets`, one-hot less 1/C, that are fitted: of two the second, else all."""
    return targets[:, 1:].contiguous() if targets.shape[1] == 2 else targets


@dataclass(frozen=True)
class Judge:
    """The utilities of a classification game, from the regression's outputs for the queries.

    accuracy: 1 where the label's output is the largest; k outputs that tie at the top are worth
        1/k each. All classes without an example in the set tie, and before the first example all
        do. Were the lowest class to win, as with a plain argmax, U(empty) = 1/C would be no case
        of the rule and an example without any similarity to the queries no null player.
    cross_entropy: log of the label's share in softmax(outputs / temperature), hence at most 0.
    margin: the label's output minus the largest other output.

    Source: arXiv:2406.04606; temperature and margin are ours.
    """

    labels: Int64[Tensor, " queries"]
    n_classes: int
    temperature: float = 1.0
    scale: Float[Tensor, " queries"] | float = 1.0
    """The most that one example adds to an output of each query, which rounding is relative to."""

    def of(self, queries: Int64[Tensor, " some"]) -> "Judge":
        """The judge of some of the queries; a query may occur more than once."""
        scale = self.scale[queries] if isinstance(self.scale, Tensor) else self.scale
        return replace(self, labels=self.labels[queries], scale=scale)

    @property
    def n_queries(self) -> int:
        """How many queries the outputs are for."""
        return len(self.labels)

    @property
    def is_binary(self) -> bool:
        """Whether one output stands for both classes."""
        return self.n_classes == 2

    @property
    def n_outputs(self) -> int:
        """Numbers per query that a regression predicts: 1 for two classes, otherwise C."""
        return 1 if self.is_binary else self.n_classes

    def signs(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, " queries"]:
        """1, or -1 for a query with label 0 of two: multiplies its row of the kernel."""
        if self.is_binary:
            return 2 * self.labels.to(dtype) - 1
        return torch.ones(len(self.labels), dtype=dtype)

    def predicted(self, outputs: Float[Tensor, "outputs queries"]) -> Int64[Tensor, " queries"]:
        """The class that the outputs of one coalition predict for each query; the first of ties."""
        tie = self.tie(outputs.dtype)
        if self.is_binary:
            return (outputs[0] * self.signs(outputs.dtype) > tie).to(torch.int64)
        return (outputs >= outputs.amax(0) - tie).to(torch.int64).argmax(0)

    def tie(self, dtype: torch.dtype) -> Float[Tensor, "*queries"]:
        """Outputs in `dtype` that are no further apart are equal (see the module's docstring)."""
        scale: Tensor = torch.as_tensor(self.scale, dtype=dtype)
        return scale * float(torch.finfo(dtype).eps ** (2 / 3))

    def each(
        self, outputs: Float[Tensor, "*sets outputs queries"], utility: Utility
    ) -> Float[Tensor, "*sets queries"]:
        """The utility of each coalition for each query; cross-entropy in float64."""
        if utility == "cross_entropy":
            return self._log_ratio(outputs).to(torch.float64) - math.log(self.n_classes)
        if self.is_binary:
            own = outputs[..., 0, :]
            if utility == "margin":
                return 2 * own
            tie = self.tie(own.dtype)
            return ((own > tie).to(own.dtype) + (own >= -tie).to(own.dtype)) / 2
        labels = self.labels.expand(*outputs.shape[:-2], 1, -1)
        own = outputs.gather(-2, labels).squeeze(-2)
        if utility == "margin":
            return own - outputs.scatter(-2, labels, float("-inf")).amax(-2)
        least = outputs.amax(-2, keepdim=True) - self.tie(outputs.dtype)
        at_top = (outputs >= least).to(outputs.dtype)
        return at_top.gather(-2, labels).squeeze(-2) / at_top.sum(-2)

    def mean(
        self, outputs: Float[Tensor, "*sets outputs queries"], utility: Utility
    ) -> Float[Tensor, " *sets"]:
        """The mean over the queries of each coalition's utility; float64."""
        if utility == "cross_entropy":
            # In float64 only the means: a query's own number would lose in speed what it gains.
            return self._log_ratio(outputs).mean(-1, dtype=torch.float64) - math.log(self.n_classes)
        if self.is_binary and utility == "accuracy":
            own = outputs[..., 0, :]
            tie = self.tie(own.dtype)
            counts = (own > tie).count_nonzero(-1) + (own >= -tie).count_nonzero(-1)
            return counts.to(torch.float64) / (2 * own.shape[-1])
        return self.each(outputs, utility).mean(-1, dtype=torch.float64)

    def _log_ratio(
        self, outputs: Float[Tensor, "*sets outputs queries"]
    ) -> Float[Tensor, "*sets queries"]:
        """Log of the label's share in the softmax over 1/C, the share where all outputs are equal.

        Near 0 for outputs that hardly differ, so that marginals keep their digits, which the
        rounding of log C would take from them in float32 where outputs are small.
        """
        if self.is_binary:
            others = outputs[..., 0, :] * (-2 / self.temperature)
            mean = torch.expm1(others.abs().neg_()).div_(2)
            return torch.log1p(mean).add_(others.clamp_(min=0)).neg_()
        labels = self.labels.expand(*outputs.shape[:-2], 1, -1)
        scaled = outputs / self.temperature
        best = scaled.amax(-2, keepdim=True)
        own = (scaled.gather(-2, labels) - best).squeeze(-2)
        return own - torch.expm1(scaled - best).mean(-2).log1p_()


@dataclass(frozen=True)
class LinearJudge:
    """A utility that is `scale` times the one output: `loss`, and `margin` of two classes.

    Being linear, its mean over queries is its value for their mean, which may stand for all.
    """

    n_queries: int
    """Queries that the outputs are for; 1 where their mean stands for all."""
    scale: float = 1.0
    n_outputs: int = 1

    def each(
        self, outputs: Float[Tensor, "*sets outputs queries"], utility: Utility
    ) -> Float[Tensor, "*sets queries"]:
        """The utility of each coalition for each query."""
        return self.scale * outputs[..., 0, :]

    def mean(
        self, outputs: Float[Tensor, "*sets outputs queries"], utility: Utility
    ) -> Float[Tensor, " *sets"]:
        """The mean over the queries of each coalition's utility; float64."""
        return self.scale * outputs[..., 0, :].mean(-1, dtype=torch.float64)


def mean_utilities(
    outputs: Float[Tensor, "sets classes queries"],
    labels: Int64[Tensor, " queries"],
    utilities: tuple[Utility, ...],
) -> Float[Tensor, "utilities sets"]:
    """The mean utilities of coalitions, from the logits of a model trained on each of them.

    Rounding is relative to the largest logit that a query has in any coalition.
    """
    judge = Judge(labels, outputs.shape[1], scale=outputs.abs().amax((0, 1)))
    if judge.is_binary:
        own = outputs.gather(1, labels.expand(len(outputs), 1, -1))
        outputs = own - outputs.mean(1, keepdim=True)
    return torch.stack([judge.mean(outputs, name) for name in utilities])
