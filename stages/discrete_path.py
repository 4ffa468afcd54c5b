"""What UDIG and DIG share: a path through anchor words, from a table or searched where it lacks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from stages.anchors import n_points, search, walk
from stages.embedded import Embedded
from stages.explained import Scored, Units, queries
from stages.path import Path, baseline_rows, follow, quadrature
from stages.stage import ConfigError, Inputs
from stages.word_distance import mean_distance

PATH_FIELDS = ("model", "anchors", "neighbours", "strategy", "baseline")


class Anchored:
    """A model with the anchors of its words.

    Attributes:
        embedded: The model.
    """

    def __init__(self, embedded: Embedded, known: pa.Table, stage: Any, candidates: Any) -> None:
        """`stage` is one of `udig` or `dig`; `known` the table of its anchors."""
        self.embedded = embedded
        self._stage, self._candidates = stage, candidates
        ids = known["token_id"].to_pylist()
        anchors = known["anchors"].to_pylist()
        self._known: dict[int, list[int]] = dict(zip(ids, anchors, strict=True))

    def points(self, words: Int[Tensor, " words"]) -> Tensor:
        """Points of the paths of some words: (points, words, dim)."""
        embedded, stage = self.embedded, self._stage
        missing = sorted(set(words.tolist()) - self._known.keys())
        if missing:
            found = search(
                embedded.table,
                torch.tensor(missing, device=embedded.table.device),
                embedded.baseline(stage.baseline),
                embedded.baseline_id(stage.baseline),
                *(stage.anchors, stage.neighbours, stage.strategy, self._candidates),
            )
            self._known.update(zip(missing, found.tolist(), strict=True))
        anchors = torch.tensor([self._known[word] for word in words.tolist()], dtype=torch.int64)
        anchors = anchors.reshape(len(words), stage.anchors).to(embedded.table.device)
        start = embedded.baseline(stage.baseline)
        return walk(embedded.table, words, anchors, start, stage.midpoints)


def path_fields(stage: Any, candidates: str) -> Mapping[str, Any]:
    """What such a stage asks of the stage `word_path`."""
    own = {name: getattr(stage, name) for name in PATH_FIELDS if name != "model"}
    return {**own, "candidates": candidates}


def check_paths(stage: Any, candidates: str, name: str, paths: Any) -> None:
    """Refuses anchors that were searched in another way.

    Raises:
        ConfigError: they were.
    """
    wanted = {**path_fields(stage, candidates), "model": stage.model}
    for field, value in wanted.items():
        if getattr(paths, field, None) != value:
            raise ConfigError(
                f"{field}: found {value} here and {getattr(paths, field, None)} in {name}, "
                f"expected the same. Set {field} of {name}, or name another instance of word_path "
                "in `paths`."
            )


def score(stage: Any, anchored: Anchored, inputs: Inputs) -> tuple[Units, list[Scored]]:
    """What is explained of a block of queries, and the scores along the discrete paths."""
    embedded = anchored.embedded
    units = queries(embedded, inputs, stage.token_budget, stage.continuation)

    def path(unit: int) -> Path:
        ids = np.array(units.tokens.columns["input_ids"][unit])
        moved = torch.from_numpy(units.places[unit].is_moved)
        rows = baseline_rows(embedded, units, unit, stage.baseline)
        points = rows.expand(n_points(stage.anchors, stage.midpoints), *rows.shape).clone()
        points[:, moved] = anchored.points(torch.from_numpy(ids)[moved].to(rows.device))
        return quadrature(points, stage.rule)

    count = n_points(stage.anchors, stage.midpoints) - (stage.rule == "left")
    distance = mean_distance(embedded, units, anchored.points) if stage.word_distance else None
    return units, follow(
        *(embedded, units, path, count, stage.baseline, stage.token_budget),
        *(stage.output == "largest", distance),
    )
