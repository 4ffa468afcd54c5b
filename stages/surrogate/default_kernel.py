"""Which features a kernel is of, where the configuration leaves it open.

Predictions that judge labels are made from features that have seen none: the hidden states of all
layers. The NTK is taken at a probe that was fitted on the labels, so a wrong one leaks into its own
row's features: with 40 % wrong labels that costs 0.035 of the area under the ROC curve on the mean
of five sets, and 0.13 on one of them; see `scripts/benchmarks/noise.md`.

Games take the NTK for few rows, as their paper does; for many the hidden states of all layers,
which take a third of its time and two thirds of its bytes (`scripts/benchmarks/short_features.md`).
"""

from stages.stage import Size

FEW_EXAMPLES = 5_000
"""Most examples, when a corpus is first read, for which the NTK is taken."""
NTK = ("ntk",)
LABEL_FREE = ("hidden_states",)


def default_kernel(size: Size) -> tuple[str, ...]:
    """The feature tables of a game, for a corpus of this size."""
    return NTK if size.first_examples <= FEW_EXAMPLES else LABEL_FREE
