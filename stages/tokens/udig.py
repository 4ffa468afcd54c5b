"""UDIG: gradients along words near uniform points of the line from the baseline to each word.

Source: Sinha Roy and Kundu 2024, arXiv:2412.03886; read in part, and from the authors' code
(`stages/saliency/anchors.py`). Defaults are those of the authors' DistilBERT notebook.
"""

from dataclasses import dataclass
from typing import ClassVar

from stages.saliency.anchors import Candidates
from stages.tokens.anchored_path import DiscretePath


@dataclass(frozen=True)
class Udig(DiscretePath):
    """Scores of the tokens of every query; positive raises the explained output."""

    midpoints: int = 1
    """Rounds of midpoints between the anchors, f: a path has 2^f (m + 1) + 1 points."""

    candidates: ClassVar[Candidates] = "uniform"


STAGE = Udig
