"""What training on the rows that are chosen would give, against random rows and all rows.

The labelled queries are divided into parts. For each part rows are chosen by the other queries
alone, and the regression on these rows is judged on the queries of the part: no query judges a
choice that it had a say in. Beside it stand the same regression on as many random rows and on all
rows, with the same ridge. It is the regression behind the values that is trained, not the model;
how far that carries is what `removal` and the benchmarks say. [ours]
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64

from stages.catalogue import load
from stages.game.from_tables import GameTables, labelled_queries, player_ids, read_game_tables
from stages.game.game import Game, PlaysGame
from stages.game.pool import Known, Pool, order_of, read_pool
from stages.game.sampling import Valuation
from stages.metrics.bootstrap import mean_of
from stages.metrics.metric import Metric, Result
from stages.metrics.refitted import best_rows
from stages.reading.supervision import read_labels
from stages.stage import ConfigError, DataError, Inputs, Steps

Method = Literal["freeshap", "coreset", "label_score"]
Choice = tuple[float, str, Int64[np.ndarray, " chosen"]]
"""A share of the rows, what chose them, and their positions."""


@dataclass(frozen=True)
class Selection(Valuation, Metric):
    """Utilities of what `select` would keep, of random rows, and of all rows.

    Costs `parts` times `rounds` rounds of `freeshap`, or a `coreset`, on `examples` rows, and a
    regression for each number of rows, draw and part.
    """

    methods: tuple[Method, ...] = ("freeshap",)
    """What chooses: the values of `freeshap` by each utility, the order of `coreset`, or the
    `label_score` of label issues, in which no query has a say."""
    keep: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    """Shares of the examples that are kept."""
    examples: int = 2000
    """Examples that are chosen from at most; of more, a random sample."""
    per_class: bool = True
    """Whether the same share of each class is chosen, or the best rows of all."""
    draws: int = 10
    """Random choices of rows for each share."""
    parts: int = 2
    """Parts of the queries."""
    rounds: int = 4
    """Rounds of `freeshap`, for each part."""
    predictions: str = "kernel_regression"
    """Instance with the out-of-sample predictions that `coreset` and `label_score` read."""
    noise: str = "label_noise"
    """Instance of `label_noise` over the same predictions."""
    resamples: int = 1000
    """Resamples of the bootstrap over queries."""

    def __post_init__(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: a field is out of range, or utilities of no class are asked for.
        """
        self.check()
        are_shares = bool(self.keep) and all(0 < share < 1 for share in self.keep)
        if not are_shares or len(set(self.keep)) < len(self.keep):
            raise ConfigError(
                f"keep: found {list(self.keep)}, expected different shares between 0 and 1. Say "
                "for example keep=[0.2]."
            )
        least = {"draws": 2, "parts": 2, "examples": 2, "rounds": 1, "resamples": 1, "seed": 0}
        for name, at_least in least.items():
            if getattr(self, name) < at_least:
                raise ConfigError(
                    f"{name}: found {getattr(self, name)}, expected at least {at_least}. Raise it."
                )
        if "loss" in self.utilities:
            raise ConfigError(
                "utilities: found loss, expected some of accuracy, cross_entropy, margin: the same "
                "share of each class is kept. Name others."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Features and labels, and what methods read beside them."""
        more = () if set(self.methods) <= {"freeshap"} else (self.predictions, self.noise)
        return (*super().reads, *more)

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """A row for each share and choice of rows; details are the parts' own numbers.

        Columns: keep, n_rows, by (`all`, `random`, a method, or the utility whose values chose),
        and each utility: its mean over the queries with the 95 % interval over queries, its
        standard deviation over random draws, and by how much it is above the mean of the random
        draws, likewise with its interval.

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
        candidates = self._candidates(inputs, tables)
        found: dict[tuple[float, str], np.ndarray] = {}
        details = []
        stepped(0, self.parts)
        for part in range(self.parts):
            is_own = part_of == part
            known = Known(query_ids[~is_own], answers[~is_own])
            judging = tables.game(query_ids[is_own], answers[is_own], by_query=True)
            choices: list[Choice] = [(1.0, "all", np.arange(n))]
            scores = self._scores(inputs, tables, candidates, known, part)
            for share in self.keep:
                count = max(1, round(share * n))
                choices += [
                    (share, by, best_rows(s, labels, count, self.per_class))
                    for by, s in scores.items()
                ]
                choices += [
                    (share, "random", generator.permutation(n)[:count]) for _ in range(self.draws)
                ]
            n_before: dict[tuple[float, str], int] = {}
            for share, by, taken in choices:
                worth = _worth(judging, taken, self.utilities)
                draw = n_before[share, by] = n_before.get((share, by), -1) + 1
                n_draws = self.draws if by == "random" else 1
                empty = np.empty((n_draws, len(self.utilities), len(query_ids)))
                found.setdefault((share, by), empty)[draw][:, is_own] = worth
                named = dict(zip(self.utilities, worth.mean(1).tolist(), strict=True))
                details.append({"part": part, "keep": share, "by": by, **named})
            stepped(part + 1, self.parts)
        rows = []
        for (share, by), worths in found.items():
            row: dict[str, Any] = {"keep": share, "n_rows": max(1, round(share * n)), "by": by}
            for at, utility in enumerate(self.utilities):
                random = found[share, "random"][:, at] if share < 1 else None
                row |= self._columns(utility, worths[:, at], random)
            rows.append(row)
        facts = {
            "n_pool": len(pool),
            "n_examples": n,
            "n_queries": len(query_ids),
            "engine": tables.facts["engine"],
            "ridge": tables.facts["ridge"],
        }
        return Result(rows, facts, details)

    def _columns(
        self,
        utility: str,
        worth: Float[np.ndarray, "draws queries"],
        random: Float[np.ndarray, "random_draws queries"] | None,
    ) -> dict[str, Any]:
        """A row's columns of one utility, with that of as many random rows beside."""
        by_draw, by_query = worth.mean(1), worth.mean(0)
        columns: dict[str, Any] = mean_of(by_query, self.resamples, self.seed).named(utility)
        columns[f"{utility}_sd"] = float(by_draw.std(ddof=1)) if len(by_draw) > 1 else None
        over = by_query - random.mean(0) if random is not None else by_query[:0]
        return columns | mean_of(over, self.resamples, self.seed).named(f"{utility}_over_random")

    def _labels(self, inputs: Inputs, ids: np.ndarray, n_classes: int) -> np.ndarray:
        """Labels of the examples with these ids."""
        labelled, labels = read_labels(inputs, "example", n_classes)
        found: np.ndarray = labels[np.searchsorted(labelled, ids)]
        return found

    def _candidates(self, inputs: Inputs, tables: GameTables) -> Pool | None:
        """The examples of the game that have predictions, where a method asks for these."""
        if set(self.methods) <= {"freeshap"}:
            return None
        pool = read_pool(inputs, self, self.predictions, self.noise)
        return pool.at(np.flatnonzero(np.isin(pool.ids, tables.example_ids)))

    def _scores(
        self, inputs: Inputs, tables: GameTables, candidates: Pool | None, known: Known, part: int
    ) -> dict[str, Float[np.ndarray, " examples"]]:
        """Scores of the examples by what chooses, the best highest, from these queries alone."""
        scores: dict[str, np.ndarray] = {}
        if "freeshap" in self.methods:
            value = self._valued(tables.game(known.ids, known.labels), part)
            scores |= dict(zip(self.utilities, value, strict=True))
        if candidates is None:
            return scores
        at = np.searchsorted(tables.example_ids, candidates.ids)
        if "label_score" in self.methods:
            scores["label_score"] = np.full(len(tables.example_ids), -np.inf)
            scores["label_score"][at] = candidates.score
        if "coreset" in self.methods:
            order = order_of(inputs, self, candidates, known, max(self.keep))
            scores["coreset"] = np.full(len(tables.example_ids), -np.inf)
            scores["coreset"][at[order.rows]] = -np.arange(len(order.rows), dtype=np.float64)
        return scores

    def _valued(self, game: Game, part: int) -> np.ndarray:
        """The Shapley values of all examples, a row for each utility."""
        cls = load("freeshap")
        names = [f.name for f in dataclasses.fields(cls) if hasattr(self, f.name)]
        method = cls(**{name: getattr(self, name) for name in names})
        assert isinstance(method, PlaysGame)
        value: np.ndarray = method.play(game, part).value[0].numpy()
        return value


def _worth(
    game: Game, rows: np.ndarray, utilities: tuple[Any, ...]
) -> Float[np.ndarray, "utilities queries"]:
    """Each utility of the regression on these rows, for every query."""
    worth: np.ndarray = game.among(torch.from_numpy(rows)).ends(utilities)[:, 1].numpy()
    return worth


METRIC = Selection
