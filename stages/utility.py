"""How good a set of examples is, judged by the outputs of the model it trains: larger is better.

Every utility sees only differences between a query's class outputs, so a number added to all
classes of a query changes nothing, and the utility of the empty set, U(empty), is that of equal
outputs: accuracy 1/C, cross-entropy -log C, margin 0 (methods.md 1.5; the paper's U(empty) is the
random guess as well).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.stage import ConfigError

Utility = Literal["accuracy", "cross_entropy", "margin"]

TIE = 1e-10
"""Outputs closer than this are equal: true ties differ by the rounding of a solve."""


def check_fields(utilities: tuple[Utility, ...], temperature: float) -> None:
    """Refuse fields no utility can be computed from.

    Raises:
        ConfigError: no utility or one twice is named, or the temperature is not positive.
    """
    if not utilities or len(set(utilities)) < len(utilities):
        raise ConfigError(
            f"utilities: found {list(utilities)}, expected at least one, each once. "
            "Name some of accuracy, cross_entropy, margin."
        )
    if not 0 < temperature < float("inf"):
        raise ConfigError(
            f"temperature: found {temperature}, expected a positive number. Set temperature: 1."
        )


def mean_utilities(
    outputs: Float[Tensor, "sets classes queries"],
    labels: Int64[Tensor, " queries"],
    utilities: tuple[Utility, ...],
    temperature: float,
) -> Float[Tensor, "utilities sets"]:
    """Each utility of each set of examples, as the mean over queries.

    accuracy: 1 where the label's output is the largest; k outputs that tie at the top are worth
        1/k each. All classes without an example in the set tie, and before the first example all
        do. Were the lowest class to win, as with a plain argmax, U(empty) = 1/C would be no case
        of the rule and an example without any similarity to the queries no null player.
    cross_entropy: log of the label's share in softmax(outputs / temperature), hence at most 0.
    margin: the label's output minus the largest other output.

    Source: arXiv:2406.04606, Sec. 1.4 and 1.5 of methods.md; temperature and margin are ours.
    """
    at = labels.expand(outputs.shape[0], 1, -1)
    own = outputs.gather(1, at).squeeze(1)
    means = []
    for name in utilities:
        if name == "accuracy":
            at_top = (outputs >= outputs.amax(1, keepdim=True) - TIE).to(outputs.dtype)
            value = at_top.gather(1, at).squeeze(1) / at_top.sum(1)
        elif name == "cross_entropy":
            value = own / temperature - (outputs / temperature).logsumexp(1)
        else:
            value = own - outputs.scatter(1, at, float("-inf")).amax(1)
        means.append(value.mean(1))
    return torch.stack(means)
