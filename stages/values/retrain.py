"""The model really trained on subsets of the examples: the truth that other methods estimate.

A round draws permutations of the examples as `freeshap` does, from its seed and number alone. It
trains on prefixes of them: of all sizes for Shapley values, or of one size, which are random
subsets. Each training leaves the model's outputs for every query. The empty set is not trained on:
its utility is that of equal outputs, as in `stages.game.utility`.

Within a training the examples are visited in an order of its own, drawn once for each permutation
and the same in every epoch (the paper does not shuffle either), so that what a set is worth depends
on its members and not on who joined last. Values are of the utility's mean over such orders.

**Blocks.** Training on every s-th prefix alone costs a s-th, and the gain of a block is shared
equally by the s examples that joined in it. That is an unbiased estimate of the mean marginal over
an example's block, not of its Shapley value: every example is mixed with s - 1 companions drawn at
random, so that its value phi becomes a phi + (1 - a) mean(phi), a = (n - s) / (s (n - 1)), up to
interactions within a block. Ranks, correlations and the sum stay; the spread of the values and
their standard errors shrink by a, and no sign is an example's own. At equal cost it is less noisy
than single marginals wherever the noise of the training itself is what matters. [derived]

**G-Shapley** (`training: {kind: one_pass}`) looks at the model after each of the gradient steps of
one epoch in the order of the permutation, so that a permutation costs a single pass: an estimate of
Ghorbani and Zou 2019, arXiv:1904.02868, and no truth, for the last to join has always moved the
model last.

**Reused coalitions** (`regression_msr`, `adalina`) are of drawn sizes, and each outcome counts for
all examples (`stages/game/sample_reuse.py`); a marginal along a permutation counts for one and has
the noise of two trainings. A unit is `coalitions` of them and one training on all; a coalition and
its complement are visited in one order.

Source: the reference of arXiv:2406.04606, Sec. 4.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.permutations import prior_units
from stages.game.sample_reuse import REUSING, Reuse, check_coalitions, check_size, regression_bytes
from stages.game.trainings import Walk, coalition_unit, marginals, reused
from stages.game.utility import Utility
from stages.game.utility import check_fields as check_utilities
from stages.model.learners import LastBlocks, Players, read_texts, read_vectors
from stages.model.seeded import generator_of, permutations
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.model.training import Learner, Training, prefix_outputs
from stages.stage import ConfigError, Cost, Inputs, Rows, Size, Split, Stage, Work
from stages.tables import OUTCOME, SHAPLEY_ROUND, SUBSET
from storage.schema import TableSpec

Subsets = Literal["auto", "permutation", "random", "regression_msr", "adalina"]
ROUNDS = 20
"""Permutations that are trained on by default, or a quarter as many units of coalitions."""
MOST_REUSED = 1_000
"""Most examples of which `subsets: auto` takes coalitions, of which a unit has thousands then."""
PER_EXAMPLE = 4
"""Coalitions of a unit for each example, by default."""
EACH_PREFIX, PREFIXES = 10_000, 100
"""Most examples of whose permutations each prefix is trained on, and how many are of more."""


@dataclass(frozen=True)
class Retrain(RunsModel, Stage):
    """Outcomes of real trainings on subsets, and Shapley values from those on prefixes.

    Memory of a task: the model with two numbers of Adam and a gradient for every trained weight,
    the activations of a batch, and with `last_blocks` the hidden states of all rows; or for a head
    alone all vectors. Beside it the rows of a round: 8 bytes for each member of its subsets.
    """

    model: ModelSpec | None = None
    """The model that is trained; its `train` concerns gradients alone and is not looked at. A fresh
    head begins at zero for `head: probe`, so that no label was seen, and where `seed` says for
    `random`. null trains a head on the vectors of `embedding`."""
    last_blocks: LastBlocks = 0
    """Trained beside the head: the last so many blocks of the trunk with all their weights, or
    `all` of the model. With 0 and `head: probe` it is the head alone, on frozen embeddings."""
    embedding: str = "embedding"
    """Feature table that a head alone is trained on: an instance of `embedding`, or `features`."""
    training: Training = field(default_factory=Training)
    """How the model is trained on a subset."""
    subsets: Subsets = "auto"
    """All prefixes of a permutation; random subsets of one size; or coalitions of drawn sizes, from
    which values are estimated as the name says; see Reused coalitions above. `auto` is
    regression_msr for up to 1,000 examples that are trained on anew, where `every` and `rounds` are
    left open, and else permutation."""
    every: int | None = None
    """Of a permutation every so many-th prefix is trained on, and the whole; see Blocks above. null
    takes each of up to 10,000 examples, and of more so many that there are 100 prefixes."""
    coalitions: int | None = None
    """Coalitions in a unit of `regression_msr` and `adalina`; null takes 4 for each example."""
    share: float = 0.5
    """Part of the examples in a random subset."""
    repeats: int = 1
    """Trainings on each random subset, each visiting its examples in an order of its own: what
    differs between them is the noise of training."""
    utilities: tuple[Utility, ...] = ("accuracy", "cross_entropy")
    """Utilities of a prefix, means over the labelled queries."""
    per_round: int = 1
    """Permutations, random subsets or units of coalitions in a round, all that is lost at once."""
    rounds: int | Literal["auto"] = "auto"
    """Rounds wanted; more can be added later. `auto` is 20; 5 of coalitions, as many trainings."""
    seed: int = 0
    """Seed of permutations and visiting orders, together with the round's number."""
    token_budget: int = 2048
    """Padded tokens per batch, where nothing is trained."""

    version: ClassVar[int] = 3
    split: ClassVar[Split] = "round"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuses fields that nothing can be trained or drawn with.

        Raises:
            ConfigError: a field is out of its range, or would be without effect.
        """
        check_utilities(self.utilities, 1.0)
        if "loss" in self.utilities:
            raise ConfigError(
                "utilities: found loss, expected some of accuracy, cross_entropy, margin: loss is "
                "that of the game of gradients. Name others."
            )
        counts = (
            1 if self.every is None else self.every,
            self.per_round,
            self.n_rounds,
            self.token_budget,
            self.repeats,
        )
        if min(counts) < 1 or self.seed < 0 or not 0 < self.share <= 1:
            raise ConfigError(
                f"retrain: found every, per_round, rounds, token_budget, repeats: {counts}, seed: "
                f"{self.seed}, share: {self.share}, expected at least 1 and 0, and a share in "
                "(0, 1]. Correct them."
            )
        if self.repeats > 1 and (self.subsets != "random" or self.training.kind == "one_pass"):
            raise ConfigError(
                f"retrain: found repeats: {self.repeats} with subsets: {self.subsets} and "
                f"training.kind: {self.training.kind}, expected random subsets trained on anew, "
                "which an order of visits tells apart. Set subsets: random, or repeats: 1."
            )
        if self.last_blocks != "all" and self.last_blocks < 0:
            raise ConfigError(
                f"retrain: found last_blocks: {self.last_blocks}, expected 0 or more, or all. "
                "Raise it."
            )
        if self.subsets in REUSING:
            if self.coalitions is not None:
                check_coalitions(cast(Reuse, self.subsets), self.coalitions)
            if self.training.kind == "one_pass":
                raise ConfigError(
                    f"training: found kind: one_pass with subsets: {self.subsets}, expected anew: "
                    "one pass is looked at along a permutation. Set subsets: permutation."
                )
        if self.model is None and self.last_blocks != 0:
            raise ConfigError(
                f"retrain: found last_blocks: {self.last_blocks} without a model, expected 0, for "
                "there is nothing but a head. Name a model."
            )
        if self.embedding != "embedding" and self._read_model is not None:
            raise ConfigError(
                f"retrain: found embedding: {self.embedding} where the text is read, expected "
                "last_blocks: 0 with head: probe. Set model: null in this stage."
            )

    def sized(self, size: Size) -> "Retrain":
        """Which subsets of so many examples, and where `every` is left open how many prefixes."""
        is_small = size.n_examples <= EACH_PREFIX or self.subsets == "random"
        every = 1 if is_small else -(-size.n_examples // PREFIXES)
        stage = replace(self, subsets=self._subsets_of(size.n_examples))
        return replace(stage, rounds=stage.n_rounds, every=self.every or every)

    def _subsets_of(self, n: int) -> Subsets:
        """`subsets`, or what `auto` is for `n` examples."""
        if self.subsets != "auto":
            return self.subsets
        is_open = self.every is None and self.rounds == "auto" and self.training.kind == "anew"
        return "regression_msr" if is_open and n <= MOST_REUSED else "permutation"

    @property
    def n_rounds(self) -> int:
        """The rounds wanted."""
        if self.rounds == "auto":
            return ROUNDS // PER_EXAMPLE if self.subsets in REUSING else ROUNDS
        return self.rounds

    @property
    def outside_key(self) -> frozenset[str]:
        """What changes no row of a round: their number, and fields of other subsets.

        `repeats` of one training, as rows were before there was the field.
        """
        unused = {"coalitions": self.subsets not in REUSING, "repeats": self.repeats == 1}
        named = (name for name, is_unused in unused.items() if is_unused)
        return frozenset({"rounds", "model.train", *named})

    @property
    def _read_model(self) -> ModelSpec | None:
        """The model, where it reads the text; None for a head alone."""
        is_head_alone = self.last_blocks == 0 and self.model and self.model.kind.is_fitted
        return None if is_head_alone else self.model

    @property
    def reads(self) -> tuple[str, ...]:
        """The text or, for a head alone, its vectors; and the labels."""
        return (self.embedding if self._read_model is None else "text", "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Outcomes, subsets, and but for random ones the sums of units."""
        tables = (OUTCOME, SUBSET)
        return tables if self.subsets == "random" else (*tables, SHAPLEY_ROUND)

    def open(self, inputs: Inputs) -> tuple[Players, Learner]:
        """Examples and queries; the untrained model, with what its frozen part gives of them."""
        model, budget = self._read_model, self.token_budget
        if model is None:
            players, learner = read_vectors(inputs, self.embedding)
        else:
            players, learner = read_texts(inputs, model, self.last_blocks, budget)
        check_size(self.subsets, players.n)
        return players, learner

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Counts of examples, queries, labelled queries and trained weights."""
        players, learner = inputs.opened
        return {
            "n_examples": players.n,
            "n_queries": len(players.query_ids),
            "n_unlabelled_queries": int((players.labels < 0).sum()),
            "n_trained": sum(weights.numel() for weights in learner.start),
        }

    def compute(self, inputs: Inputs) -> Rows:
        """Outcomes, subsets, and sums of the units of one round."""
        players, learner = inputs.opened
        index, n = inputs.part.index, players.n
        queries = n + np.arange(len(players.query_ids))
        has_label = players.labels[n:] >= 0
        labels, units, count = players.labels[n:][has_label], [], 0
        for unit in self._units(n, index):
            outputs = []
            for order, sizes, visits in unit:
                by_size = prefix_outputs(
                    *(learner, players.labels, order, visits, sizes, queries),
                    *(self.training, self.token_budget),
                )
                for size, logits in zip(sizes, by_size, strict=True):
                    name = (index, count, size)
                    yield OUTCOME.name, _outcome(name, players.query_ids, logits)
                    yield SUBSET.name, _subset(name, players.example_ids[order[:size]])
                    outputs.append(logits)
                    count += 1
            if self.subsets != "random":
                stacked = torch.stack(outputs)[..., has_label]
                units.append(self._values(unit, stacked, labels))
        if units:
            n_prior = 0 if self.subsets in REUSING else prior_units(n, "uniform")
            ids, stacked = players.example_ids, torch.stack(units)
            yield from _sums(index, ids, self.utilities, stacked, n_prior)

    def _units(self, n: int, index: int) -> Iterator[list[Walk]]:
        """What the units of round `index` are trained on, from seed and index alone."""
        if self.subsets not in REUSING:
            orders = permutations(n, self.per_round, self.seed, index)
            repeated = (order for order in orders for _ in range(self.repeats))
            for draw, order in enumerate(repeated):
                drawn = generator_of(f"retrain/{self.seed}/{index}/{draw}")
                visits = torch.randperm(n, generator=drawn).numpy()
                yield [Walk(order.numpy(), sizes_of(self, n), visits)]
            return
        kind, generator = cast(Reuse, self.subsets), np.random.default_rng([self.seed, index])
        for _ in range(self.per_round):
            yield coalition_unit(n, self._n_coalitions(n), kind, generator)

    def _values(
        self,
        unit: list[Walk],
        outputs: Float[Tensor, "trainings classes queries"],
        labels: Int64[Tensor, " queries"],
    ) -> Float[Tensor, "utilities examples"]:
        """The values that a unit estimates."""
        if self.subsets in REUSING:
            return reused(unit, outputs, labels, self.utilities, cast(Reuse, self.subsets))
        ((order, sizes, _),) = unit
        return marginals(outputs, labels, order, sizes, self.utilities)

    def _n_coalitions(self, n: int) -> int:
        """Coalitions of a unit, beside all examples."""
        return self.coalitions or max(4, PER_EXAMPLE * n)

    def _how(self, n_trainings: int) -> str:
        """What the trainings of a unit are, for `Cost.note`."""
        if self.subsets in REUSING:
            return f"{self.subsets}: units of {n_trainings:,} trainings"
        return f"{n_trainings} prefixes of a permutation" if (self.every or 1) > 1 else ""

    def cost(self, work: Work) -> Cost:
        """Every epoch of every training forward and backward, and the queries after each."""
        sizes = sizes_of(self, work.n_examples)
        if self.subsets in REUSING:  # half of the examples on average
            half = (work.n_examples // 2,) * self._n_coalitions(work.n_examples)
            sizes = (*half, work.n_examples)
        regressed = regression_bytes(work.n_examples) if self.subsets == "regression_msr" else 0
        draws = self.n_rounds * self.per_round * self.repeats
        is_once = self.training.kind == "one_pass"
        seen = work.n_examples if is_once else self.training.epochs * sum(sizes)
        predicted = len(sizes) * work.n_queries
        flops, memory = 2.0 * work.dim * work.n_classes, 4 * work.dim * work.n_examples
        rows = len(sizes) * work.n_queries * (4 * work.n_classes + 40) + 8 * sum(sizes)
        if self._read_model is not None:
            size = network_size(self._read_model, work.n_classes)
            n_tokens = work.n_tokens / max(1, work.n_examples + work.n_queries)
            of_blocks = self.last_blocks if self.last_blocks != "all" else size.n_states - 1
            flops = of_blocks / (size.n_states - 1) * size.forward_flops(round(n_tokens))
            memory = size.forward_bytes(self.token_budget) + 16 * size.n_parameters
        return Cost(
            forward_rows=draws * (seen + predicted),
            backward_rows=draws * seen,
            flops=draws * flops * (3 * seen + predicted),
            written_bytes=draws * (predicted * (4 * work.n_classes + 24) + 8 * sum(sizes)),
            memory_bytes=memory + regressed + 40 * work.n_examples + 2 * self.per_round * rows,
            note=self._how(len(sizes)),
        )


def sizes_of(stage: Retrain, n: int) -> tuple[int, ...]:
    """Sizes of the prefixes of one permutation of `n` examples that are trained on."""
    if stage.subsets == "random":
        return (max(1, round(stage.share * n)),)
    every = stage.every or 1
    return (*range(every, n, every), n)


def _outcome(
    name: tuple[int, int, int],
    query_ids: Int64[np.ndarray, " queries"],
    logits: Float[Tensor, "classes queries"],
) -> pa.RecordBatch:
    """Rows of `OUTCOME` for one training; `name` is its round, subset and size."""
    flat = pa.array(logits.T.numpy().astype(np.float32).reshape(-1))
    columns = [pa.array(np.full(len(query_ids), number, dtype=np.int64)) for number in name]
    lists = pa.FixedSizeListArray.from_arrays(flat, len(logits))
    return pa.RecordBatch.from_arrays([*columns, pa.array(query_ids), lists], OUTCOME.schema.names)


def _subset(name: tuple[int, int, int], members: Int64[np.ndarray, " members"]) -> pa.RecordBatch:
    """The row of `SUBSET` for one training; `name` is its round, subset and size."""
    ids = pa.array([members], pa.list_(pa.int64()))
    columns = [pa.array([number], pa.int64()) for number in name]
    return pa.RecordBatch.from_arrays([*columns, ids], schema=SUBSET.schema)


def _sums(
    index: int,
    ids: Int64[np.ndarray, " examples"],
    utilities: tuple[Utility, ...],
    units: Float[Tensor, "units utilities examples"],
    n_prior: int,
) -> Rows:
    """Rows of `SHAPLEY_ROUND` for round `index`, from the values that each unit estimates."""
    counts = pa.array(np.full(len(ids), len(units), dtype=np.int64))
    for name, of_units in zip(utilities, units.unbind(1), strict=True):
        columns = [
            pa.array(np.full(len(ids), index, dtype=np.int64)),
            pa.array(["shapley"] * len(ids), pa.string()),
            pa.array([name] * len(ids), pa.string()),
            pa.array(ids),
            pa.array(of_units.sum(0).numpy()),
            pa.array(of_units.square().sum(0).numpy()),
            counts,
            counts,
            pa.array(np.full(len(ids), n_prior)),
        ]
        yield SHAPLEY_ROUND.name, pa.RecordBatch.from_arrays(columns, schema=SHAPLEY_ROUND.schema)


STAGE = Retrain
