"""Which features a kernel is of, where the configuration leaves it open.

The NTK for few rows; for many the hidden states of all layers, which take a third of its time and
two thirds of its bytes. What that costs in the order of wrong labels is within the noise of
measuring it: see `scripts/benchmarks/short_features.md`.
"""

from collections.abc import Mapping
from typing import Any

from stages.stage import Size

FEW_EXAMPLES = 5_000
"""Most examples, when a corpus is first read, for which the NTK is taken."""
NTK = ("ntk",)
ALL_LAYERS = "all_layers"


def default_kernel(size: Size) -> tuple[str, ...]:
    """The feature tables for a corpus of this size."""
    return NTK if size.first_examples <= FEW_EXAMPLES else (ALL_LAYERS,)


def asked_features(kernel: tuple[str, ...]) -> Mapping[str, Mapping[str, Any]]:
    """What to add where a kernel is of the hidden states of all layers (`Stage.asks`)."""
    return {ALL_LAYERS: {"stage": "embedding", "layer": "all"}} if ALL_LAYERS in kernel else {}
