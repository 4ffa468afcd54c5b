"""What training on the rows of the largest values would give, against random rows and all rows.

The labelled queries are divided into parts. For each part the examples are valued on the other
queries alone, the rows with the largest values are taken, and the regression on these is judged on
the queries of the part: no query judges a choice that it had a say in. Beside it stand the same
regression on as many random rows and on all rows, with the same ridge. It is the regression behind
the values that is trained, not the model; how far that carries is what `removal` and the benchmarks
say. [ours]
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stages.catalogue import load
from stages.game.from_tables import labelled_queries, player_ids, read_game_tables
from stages.game.game import Game, PlaysGame
from stages.game.sampling import Valuation
from stages.metrics.metric import Metric, Result
from stages.metrics.refitted import best_rows
from stages.reading.supervision import read_labels
from stages.stage import ConfigError, DataError, Inputs, Steps


@dataclass(frozen=True)
class Selection(Valuation, Metric):
    """Utilities of what `select` would keep, of random rows, and of all rows.

    Costs `parts` times `rounds` rounds of `freeshap` on `examples` rows, and a regression for each
    number of rows, draw and part.
    """

    keep: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    """Shares of the examples that are kept."""
    examples: int = 2000
    """Examples that are valued at most; of more, a random sample."""
    draws: int = 10
    """Random choices of rows for each share."""
    parts: int = 2
    """Parts of the queries."""
    rounds: int = 4
    """Rounds of `freeshap`, for each part."""

    def __post_init__(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: a field is out of range, or utilities of no class are asked for.
        """
        self.check()
        if not self.keep or not all(0 < share < 1 for share in self.keep):
            raise ConfigError(
                f"keep: found {list(self.keep)}, expected shares between 0 and 1. Say for example "
                "keep=[0.2]."
            )
        if self.draws < 2 or self.parts < 2 or self.examples < 2 or self.rounds < 1:
            raise ConfigError(
                f"selection: found draws: {self.draws}, parts: {self.parts}, examples: "
                f"{self.examples}, rounds: {self.rounds}, expected at least 2, 2, 2 and 1. Raise "
                "them."
            )
        if "loss" in self.utilities:
            raise ConfigError(
                "utilities: found loss, expected some of accuracy, cross_entropy, margin: the same "
                "share of each class is kept. Name others."
            )

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """A row for each share and choice of rows; details are the parts' own numbers.

        Columns: keep, n_rows, by (`all`, `random`, or the utility whose values chose), and each
        utility with its standard deviation over random draws; means over the queries.

        Raises:
            DataError: there are fewer labelled queries than parts.
        """
        pool = player_ids(inputs, self)
        generator = np.random.default_rng([self.seed, 0, 3])
        chosen = np.sort(generator.permutation(pool)[: self.examples])
        tables = read_game_tables(inputs, self, chosen)
        labels = self._labels(inputs, tables.example_ids, tables.n_classes)
        query_ids, answers = labelled_queries(inputs, tables.n_classes)
        is_usable = np.isin(query_ids, tables.query_ids)
        query_ids, answers = query_ids[is_usable], answers[is_usable]
        if len(query_ids) < self.parts:
            raise DataError(
                f"label: found {len(query_ids)} labelled queries with features, expected at least "
                f"{self.parts}, one for each part. Label more."
            )
        n = len(tables.example_ids)
        part_of = generator.permutation(len(query_ids)) % self.parts
        found: dict[tuple[float, str], list[np.ndarray]] = {}
        details = []
        stepped(0, self.parts)
        for part in range(self.parts):
            is_own = part_of == part
            valuing = tables.game(query_ids[~is_own], answers[~is_own])
            judging = tables.game(query_ids[is_own], answers[is_own])
            value = self._valued(valuing, part)
            choices: list[tuple[float, str, np.ndarray]] = [(1.0, "all", np.arange(n))]
            for share in self.keep:
                count = max(1, round(share * n))
                choices += [
                    (share, utility, best_rows(value[row], labels, count))
                    for row, utility in enumerate(self.utilities)
                ]
                choices += [
                    (share, "random", generator.permutation(n)[:count]) for _ in range(self.draws)
                ]
            for share, by, taken in choices:
                worth = _worth(judging, taken, self.utilities)
                found.setdefault((share, by), []).append(worth * is_own.mean())
                named = dict(zip(self.utilities, worth.tolist(), strict=True))
                details.append({"part": part, "keep": share, "by": by, **named})
            stepped(part + 1, self.parts)
        rows = []
        for (share, by), parts in found.items():
            # Means over the queries of all parts, for each draw.
            drawn = np.stack(parts).reshape(self.parts, -1, len(self.utilities)).sum(0)
            row: dict[str, Any] = {"keep": share, "n_rows": max(1, round(share * n)), "by": by}
            for at, utility in enumerate(self.utilities):
                row[utility] = float(drawn[:, at].mean())
                row[f"{utility}_sd"] = float(drawn[:, at].std(ddof=1)) if len(drawn) > 1 else None
            rows.append(row)
        facts = {
            "n_pool": len(pool),
            "n_examples": n,
            "n_queries": len(query_ids),
            "engine": tables.facts["engine"],
            "ridge": tables.facts["ridge"],
        }
        return Result(rows, facts, details)

    def _labels(self, inputs: Inputs, ids: np.ndarray, n_classes: int) -> np.ndarray:
        """Labels of the examples with these ids."""
        labelled, labels = read_labels(inputs, "example", n_classes)
        found: np.ndarray = labels[np.searchsorted(labelled, ids)]
        return found

    def _valued(self, game: Game, part: int) -> np.ndarray:
        """The Shapley values of all examples, a row for each utility."""
        cls = load("freeshap")
        names = [f.name for f in dataclasses.fields(cls) if hasattr(self, f.name)]
        method = cls(**{name: getattr(self, name) for name in names})
        assert isinstance(method, PlaysGame)
        value: np.ndarray = method.play(game, part).value[0].numpy()
        return value


def _worth(game: Game, rows: np.ndarray, utilities: tuple[Any, ...]) -> np.ndarray:
    """Each utility of the regression on these rows."""
    worth: np.ndarray = game.among(torch.from_numpy(rows)).ends(utilities)[:, 1].numpy()
    return worth


METRIC = Selection
