"""Semivalues: the weight of a marginal contribution, by the size of the coalition it joins.

A semivalue of example i is (1/n) sum_k w_k Delta_i(k), where Delta_i(k) is the mean marginal
contribution of i to coalitions of k others and the weights w_0 to w_{n-1} have the mean 1.

Source: Beta Shapley, Kwon and Zou 2022, arXiv:2110.14049; the Shapley value is Beta(1, 1).
"""

import math

import numpy as np
from jaxtyping import Float

from stages.stage import ConfigError


def size_weights(semivalue: str, n: int) -> Float[np.ndarray, " sizes"]:
    """w_k for k = 0 to n - 1 of `shapley` or `beta(a,b)`; their mean is 1.

    w_k = n C(n-1, k) B(k + b, n - 1 - k + a) / B(a, b): the larger a is beside b, the more do small
    coalitions count.
    """
    alpha, beta = parse_semivalue(semivalue)
    sizes = np.arange(n)
    if (alpha, beta) == (1.0, 1.0):
        return np.ones(n)
    log_gamma = np.vectorize(math.lgamma, otypes=[float])
    binomial = math.lgamma(n) - log_gamma(sizes + 1) - log_gamma(n - sizes)
    joint = log_gamma(sizes + beta) + log_gamma(n - 1 - sizes + alpha)
    joint -= math.lgamma(n - 1 + alpha + beta)
    alone = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    weights: np.ndarray = n * np.exp(binomial + joint - alone)
    return weights


def parse_semivalue(semivalue: str) -> tuple[float, float]:
    """The parameters alpha and beta of `shapley` or `beta(a,b)`.

    Raises:
        ConfigError: it is neither, or a parameter is not positive.
    """
    if semivalue == "shapley":
        return 1.0, 1.0
    try:
        name, _, rest = semivalue.partition("(")
        alpha, beta = (float(number) for number in rest.removesuffix(")").split(","))
        if name.strip() != "beta" or not rest.endswith(")"):
            raise ValueError(name)
    except ValueError as error:
        raise ConfigError(
            f"semivalues: found {semivalue!r}, expected shapley or beta(a,b) such as beta(16,1). "
            "Correct it."
        ) from error
    if not (0 < alpha < math.inf and 0 < beta < math.inf):
        raise ConfigError(
            f"semivalues: found {semivalue!r}, expected positive parameters. Correct them."
        )
    return alpha, beta
