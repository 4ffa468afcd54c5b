"""What UDIG and DIG share: a path through anchor words, from a table or searched where it lacks."""

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
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.saliency.path import Path, Rule, baseline_rows, follow, quadrature
from stages.saliency.word_distance import mean_distance
from stages.stage import ConfigError, Cost, Inputs, Work
from stages.tokens.scores import TokenScores

PATH_FIELDS = ("model", "anchors", "neighbours", "strategy", "candidates", "baseline")


class Anchored(FromEmbeddings):
    """A model that knows the anchors of its words."""

    def __init__(self, measurement: Measurement, known: pa.Table, stage: "DiscretePath") -> None:
        """`known` is the table of the stage's anchors."""
        super().__init__(measurement)
        self._stage = stage
        ids = known["token_id"].to_pylist()
        anchors = known["anchors"].to_pylist()
        self._known: dict[int, list[int]] = dict(zip(ids, anchors, strict=True))

    def points(self, words: Int[Tensor, " words"]) -> Float[Tensor, "points words dim"]:
        """Points of the paths of some words."""
        stage, device = self._stage, self.table.device
        start = self.baseline(stage.baseline)
        missing = sorted(set(words.tolist()) - self._known.keys())
        if missing:
            found = search(
                self.table,
                torch.tensor(missing, device=device),
                start,
                self.baseline_id(stage.baseline),
                *(stage.anchors, stage.neighbours, stage.strategy, stage.candidates),
            )
            self._known.update(zip(missing, found.tolist(), strict=True))
        anchors = torch.tensor([self._known[word] for word in words.tolist()], dtype=torch.int64)
        anchors = anchors.reshape(len(words), stage.anchors).to(device)
        return walk(self.table, words, anchors, start, stage.midpoints)


@dataclass(frozen=True)
class DiscretePath(TokenScores, contract=True):
    """Scores of the tokens of every query; positive raises the explained output."""

    anchors: int = 30
    """Anchor words of a path, m."""
    neighbours: int = 50
    """Candidates for each, k."""
    strategy: Strategy = "maxcount"
    """Which candidate is taken; see `stages/saliency/anchors.py`."""
    midpoints: int = 0
    """Rounds of midpoints between the anchors, f: a path has 2^f (m + 1) + 1 points."""
    rule: Rule = "left"
    """Quadrature (`stages/saliency/path.py`)."""
    baseline: BaselineName = "mask"
    """Where paths begin: the token for masking or padding, or the zero vector."""
    output: Literal["predicted", "largest"] = "predicted"
    """The output of the query's own prediction, or, as the authors' code has it, at every point
    whichever is largest there."""
    word_distance: bool = False
    """Whether the mean distance of the path's points to the nearest word is computed, too."""
    paths: str = "word_path"
    """Instance of `word_path` that holds the anchors."""

    candidates: ClassVar[Candidates]
    """Which words are candidates."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed; see `check_anchors`."""
        check_anchors(self.anchors, self.neighbours, self.midpoints)

    @property
    def reads(self) -> tuple[str, ...]:
        """The text of the queries, and anchors."""
        return (*super().reads, self.paths)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Anchors as they are wanted here."""
        own = {name: getattr(self, name) for name in PATH_FIELDS}
        return {self.paths: {**own, "model": asdict(self.model)}}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses anchors that were searched in another way.

        Raises:
            ConfigError: they were.
        """
        for name in PATH_FIELDS:
            wanted, found = getattr(self, name), getattr(writers[self.paths], name, None)
            if found != wanted:
                raise ConfigError(
                    f"{name}: found {wanted} here and {found} in {self.paths}, expected the same. "
                    f"Set {name} of {self.paths}, or name another instance of word_path in `paths`."
                )

    def open(self, inputs: Inputs) -> Anchored:
        """The model and the anchors."""
        measurement = load_measurement(self.model, inputs)
        return Anchored(measurement, inputs.table(self.paths), self)

    def score(self, embedded: Anchored, units: ExplainedOutputs) -> list[Scored]:
        """See `TokenScores`."""

        def path(unit: int) -> Path:
            ids = np.array(units.tokens.columns["input_ids"][unit])
            moved = torch.from_numpy(units.offsets[unit].is_text)
            rows = baseline_rows(embedded, units, unit, self.baseline)
            points = rows.expand(n_points(self.anchors, self.midpoints), *rows.shape).clone()
            points[:, moved] = embedded.points(torch.from_numpy(ids)[moved].to(rows.device))
            return quadrature(points, self.rule)

        count = n_points(self.anchors, self.midpoints) - (self.rule == "left")
        distance = mean_distance(embedded, units, embedded.points) if self.word_distance else None
        return follow(
            *(embedded, units, path, count, self.baseline, self.token_budget),
            *(self.output == "largest", distance),
        )

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass for each point."""
        count = n_points(self.anchors, self.midpoints)
        return gradient_cost(self.model, work, count, self.token_budget)
