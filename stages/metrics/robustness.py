"""The share of examples whose value changes its sign with the rest of the training set.

Protocol of arXiv:2406.04606 (beta-robustness): some points are kept, the rest of the training set
is drawn anew several times, and each time a method values the points. The sign of most draws is
taken for the true one, with sgn(0) = +1; a point is not robust if any draw differs.

How it is read here. [derived]

- A training set is the points and companions, `examples` in all, so that one game values all points
  at once. The points are each other's companions in every set: of a point's companions a share of
  (points - 1) / (examples - 1) is not drawn anew.
- The paper's mean |score| is that of a point's mean over the draws: were it the mean over points
  and draws, the mean standard deviation could be sqrt(5) times as large at most, and for
  leave-one-out the paper has 3.8 times.
- What a set is worth must not hang on the draw. All sets are restrictions of one game, over
  everything that was drawn, with one ridge, chosen on all of that. Were it chosen for each set
  anew, signs would also turn with the ridge, which is no property of the method.

A method is a function from a game to values (`stages.game.game.PlaysGame`) that knows the worth of
sets and nothing else: `leave_one_out` and `freeshap` are such methods, `knn_shapley` is not.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from stages.catalogue import load
from stages.game.from_tables import player_ids, read_game
from stages.game.game import PlaysGame
from stages.game.sampling import Valuation
from stages.metrics.metric import Metric, Result
from stages.stage import ConfigError, DataError, Inputs, Steps

SURE = 2.0
"""Standard errors from zero beyond which the sign of a sampled value counts as certain."""


def non_robust(value: Float[np.ndarray, "draws points"]) -> Bool[np.ndarray, " points"]:
    """Whether a point's sign in any draw differs from that of most draws, with sgn(0) = +1."""
    is_positive = value >= 0
    of_most = 2 * is_positive.sum(0) > len(value)
    differs: np.ndarray = (is_positive != of_most).any(0)
    return differs


def surely_non_robust(
    value: Float[np.ndarray, "draws points"], stderr: Float[np.ndarray, "draws points"]
) -> Bool[np.ndarray, " points"]:
    """Whether a point has values of both signs, each certain despite the error of sampling.

    With a standard error of 0 the same as `non_robust`.
    """
    positive, negative = value >= SURE * stderr, value < -SURE * stderr
    return np.asarray(positive.any(0) & negative.any(0))


def summary(
    value: Float[np.ndarray, "draws points"], stderr: Float[np.ndarray, "draws points"]
) -> dict[str, float]:
    """The columns of the result row of one method and utility.

    non_robust, surely_non_robust: shares of the points; zeros: share of all values that are exactly
    0; mean_abs: mean over points of |mean over draws|; mean_sd: mean over points of the standard
    deviation over draws; stderr: root mean square of the standard errors of sampling, whose noise
    is part of mean_sd.
    """
    return {
        "non_robust": float(non_robust(value).mean()),
        "surely_non_robust": float(surely_non_robust(value, stderr).mean()),
        "zeros": float((value == 0).mean()),
        "mean_abs": float(np.abs(value.mean(0)).mean()),
        "mean_sd": float(value.std(0, ddof=1).mean()),
        "stderr": float(np.sqrt(np.square(stderr).mean())),
    }


def draw_sets(
    n_pool: int, n_examples: int, n_points: int, n_draws: int, seed: int
) -> Int64[np.ndarray, "draws examples"]:
    """Training sets, as row numbers of the pool; the first `n_points` are the same in all of them.

    Companions come from the rest of the pool, no row twice in a set; draws are independent, so that
    two sets may share companions.
    """
    generator = np.random.default_rng([seed, 0, 2])
    order = generator.permutation(n_pool)
    points, rest = order[:n_points], order[n_points:]
    drawn = [
        np.concatenate([points, generator.choice(rest, n_examples - n_points, replace=False)])
        for _ in range(n_draws)
    ]
    return np.stack(drawn)


@dataclass(frozen=True)
class Robustness(Valuation, Metric):
    """The share of points whose value changes its sign with its companions, for each method.

    Fields of the methods that are not among these are at their defaults. Cost: per method and draw
    that of its stage on `examples` rows; memory 32 k^2 bytes for the k rows drawn in all, at most
    points + draws (examples - points).
    """

    methods: tuple[str, ...] = ("leave_one_out", "freeshap")
    """Stages that play the game (`stages.game.game.PlaysGame`)."""
    examples: int = 500
    """Size of a training set, the points included."""
    points: int = 50
    """Examples whose values are compared over the draws."""
    draws: int = 5
    """Number of training sets; odd, so that most draws agree on a sign."""
    rounds: int = 12
    """Rounds of `freeshap`, for each training set."""

    def __post_init__(self) -> None:
        """Refuses fields out of range, and methods that play no game.

        Raises:
            ConfigError: a field is out of range, or a method does not play the game.
        """
        self.check()
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(
                f"methods: found {list(self.methods)}, expected at least one, each once. "
                "Name some of leave_one_out and freeshap."
            )
        if not 1 <= self.points < self.examples:
            raise ConfigError(
                f"points: found {self.points} with examples: {self.examples}, expected at least 1 "
                "and fewer than examples. Correct one of them."
            )
        if self.draws < 3 or self.draws % 2 == 0:
            raise ConfigError(
                f"draws: found {self.draws}, expected an odd number of at least 3, so that there "
                "is a sign of most. Set draws: 5."
            )
        self.players()

    def players(self) -> dict[str, PlaysGame]:
        """The methods' stages by name, with the fields that they share with this metric.

        Raises:
            ConfigError: a method is no stage, or no stage that plays the game.
        """
        stages: dict[str, PlaysGame] = {}
        for name in self.methods:
            cls = load(name)
            names = [f.name for f in dataclasses.fields(cls) if hasattr(self, f.name)]
            if not issubclass(cls, PlaysGame):
                raise ConfigError(
                    f"methods: found {name}, expected stages that value any set of examples by "
                    "what its subsets are worth. Name some of leave_one_out and freeshap."
                )
            stages[name] = cls(**{field: getattr(self, field) for field in names})
        return stages

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """One row for each method, semivalue and utility; details are values of single points.

        Raises:
            DataError: the run has too few examples to draw companions from.
        """
        pool = player_ids(inputs, self)
        if len(pool) <= self.examples:
            raise DataError(
                f"examples: found {self.examples}, expected fewer than the {len(pool)} labelled "
                "examples with features, so that companions can be drawn. Lower examples, or "
                "evaluate a run over a larger corpus."
            )
        players = self.players()
        stepped(0, len(players) * self.draws)
        sets = draw_sets(len(pool), self.examples, self.points, self.draws, self.seed)
        drawn, at = np.unique(sets, return_inverse=True)
        opened = read_game(inputs, self, pool[drawn])
        games = [opened.game.among(torch.from_numpy(row)) for row in at.reshape(sets.shape)]
        rows, details = [], []
        for nth, (name, method) in enumerate(players.items()):
            found = []
            for draw, game in enumerate(games):
                found.append(method.play(game, draw))
                stepped(nth * self.draws + draw + 1, len(players) * self.draws)
            value, stderr = (
                torch.stack([getattr(of_draw, part)[..., : self.points] for of_draw in found])
                for part in ("value", "stderr")
            )
            for row, semivalue in enumerate(found[0].semivalues):
                for column, utility in enumerate(self.utilities):
                    named = {"method": name, "semivalue": semivalue, "utility": utility}
                    one = value[:, row, column].numpy(), stderr[:, row, column].numpy()
                    rows.append({**named, **summary(*one)})
                    details += [
                        {**named, "example_id": example_id, "value": values, "stderr": errors}
                        for example_id, values, errors in zip(
                            pool[sets[0, : self.points]].tolist(),
                            one[0].T.tolist(),
                            one[1].T.tolist(),
                            strict=True,
                        )
                    ]
        worth = torch.stack([game.ends(self.utilities)[:, 1] for game in games]).mean(0)
        facts = {
            "n_pool": len(pool),
            "n_drawn": len(drawn),
            "n_queries": opened.facts["n_queries"],
            "engine": opened.facts["engine"],
            "ridge": opened.facts["ridge"],
            "damping": opened.facts["damping"],
            "utility_of_sets": dict(zip(self.utilities, worth.tolist(), strict=True)),
        }
        return Result(rows, facts, details)


METRIC = Robustness
