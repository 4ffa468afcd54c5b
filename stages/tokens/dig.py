"""DIG: gradients along a chain of neighbouring words from each word to the baseline.

Source: Sanyal and Ren 2021, arXiv:2108.13654 (`stages/saliency/anchors.py`), with its defaults.
"""

from dataclasses import dataclass
from typing import ClassVar

from stages.saliency.anchors import Candidates, Strategy
from stages.tokens.anchored_path import DiscretePath


@dataclass(frozen=True)
class Dig(DiscretePath):
    """Scores of the tokens of every query; positive raises the explained output."""

    neighbours: int = 500
    """Candidates for each anchor, k."""
    strategy: Strategy = "greedy"
    """Which candidate is taken; see `stages/saliency/anchors.py`."""

    candidates: ClassVar[Candidates] = "previous"


STAGE = Dig
