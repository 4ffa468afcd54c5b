"""The base of UDIG and DIG: gradients along paths through anchor words.

Anchors are read from the table that `word_path` wrote, and searched for words that it lacks.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.model.measurement import Measurement, load_measurement
from stages.saliency.anchors import Candidates, Strategy, check_anchors, n_points, search, walk
from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.saliency.path import Path, Rule, baseline_rows, follow, quadrature
from stages.saliency.word_distance import mean_distance
from stages.stage import ConfigError, Cost, Inputs, Work
from stages.tokens.scores import TokenScores

PATH_FIELDS = ("model", "anchors", "neighbours", "strategy", "candidates", "baseline")


class AnchoredModel(FromEmbeddings):
    """A model, and the anchors of the words that were read or searched so far."""

    def __init__(
        self, measurement: Measurement, anchor_table: pa.Table, stage: "DiscretePath"
    ) -> None:
        """Takes the rows of the table `word_path` that the stage names in `paths`."""
        super().__init__(measurement)
        self._stage = stage
        ids = anchor_table["token_id"].to_pylist()
        anchors = anchor_table["anchors"].to_pylist()
        self._anchors_of: dict[int, list[int]] = dict(zip(ids, anchors, strict=True))

    def points(self, words: Int[Tensor, " words"]) -> Float[Tensor, "points words dim"]:
        """The points of the path of each word; `words` are token ids."""
        stage, device = self._stage, self.table.device
        start = self.baseline(stage.baseline)
        missing = sorted(set(words.tolist()) - self._anchors_of.keys())
        if missing:
            anchors_found = search(
                self.table,
                torch.tensor(missing, device=device),
                start,
                self.baseline_id(stage.baseline),
                *(stage.anchors, stage.neighbours, stage.strategy, stage.candidates),
            )
            self._anchors_of.update(zip(missing, anchors_found.tolist(), strict=True))
        anchors = torch.tensor(
            [self._anchors_of[word] for word in words.tolist()], dtype=torch.int64
        )
        anchors = anchors.reshape(len(words), stage.anchors).to(device)
        return walk(self.table, words, anchors, start, stage.midpoints)


@dataclass(frozen=True)
class DiscretePath(TokenScores, contract=True):
    """Scores of the tokens of every query; positive raises the explained output."""

    anchors: int = 30
    """Anchor words of a path, m."""
    neighbours: int = 50
    """Candidates for each anchor, k."""
    strategy: Strategy = "maxcount"
    """Which candidate is taken; see `stages/saliency/anchors.py`."""
    midpoints: int = 0
    """Rounds of midpoints between the anchors, f: a path has 2^f (m + 1) + 1 points."""
    rule: Rule = "left"
    """Quadrature (`stages/saliency/path.py`)."""
    baseline: BaselineName = "mask"
    """Embedding where paths begin: of the mask or padding token, or the zero vector."""
    output: Literal["predicted", "largest"] = "predicted"
    """Which output is explained: `predicted`, that of the query's own prediction; or `largest`, as
    the authors' code has it: at every point of a path the output that is largest there."""
    word_distance: bool = False
    """Whether the mean distance of the path's points to the nearest word is computed, too."""
    paths: str = "word_path"
    """Instance of `word_path` that holds the anchors."""

    candidates: ClassVar[Candidates]
    """Where candidates are near: the next uniform point, or the previous anchor."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no path; see `check_anchors`."""
        check_anchors(self.anchors, self.neighbours, self.midpoints)

    @property
    def reads(self) -> tuple[str, ...]:
        """The text of the queries, and the table of anchors."""
        return (*super().reads, self.paths)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """The instance of `word_path` and the fields that it must have: those of this stage."""
        own = {name: getattr(self, name) for name in PATH_FIELDS}
        return {self.paths: {**own, "model": asdict(self.model)}}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses an instance of `word_path` whose fields differ from those here.

        Raises:
            ConfigError: a field that decides the anchors differs.
        """
        for name in PATH_FIELDS:
            here, there = getattr(self, name), getattr(writers[self.paths], name, None)
            if there != here:
                raise ConfigError(
                    f"{name}: found {here} here and {there} in {self.paths}, expected the same. "
                    f"Set {name} of {self.paths}, or name another instance of word_path in `paths`."
                )

    def open(self, inputs: Inputs) -> AnchoredModel:
        """The model, with the anchors of the table."""
        measurement = load_measurement(self.model, inputs)
        return AnchoredModel(measurement, inputs.table(self.paths), self)

    def score(self, embedded: AnchoredModel, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""

        def path(row: int) -> Path:
            ids = np.array(explained.tokens.columns["input_ids"][row])
            text_tokens = torch.from_numpy(explained.offsets[row].is_text)
            baseline = baseline_rows(embedded, explained, row, self.baseline)
            points = baseline.expand(
                n_points(self.anchors, self.midpoints), *baseline.shape
            ).clone()
            points[:, text_tokens] = embedded.points(
                torch.from_numpy(ids)[text_tokens].to(baseline.device)
            )
            return quadrature(points, self.rule)

        count = n_points(self.anchors, self.midpoints) - (self.rule == "left")
        distance = (
            mean_distance(embedded, explained, embedded.points) if self.word_distance else None
        )
        return follow(
            *(embedded, explained, path, count, self.baseline, self.token_budget),
            *(self.output == "largest", distance),
        )

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each point of each query's path."""
        count = n_points(self.anchors, self.midpoints)
        return gradient_cost(self.model, work, count, self.token_budget)
