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

Source: the reference of arXiv:2406.04606, Sec. 4 (methods.md 1.5 and 1.8).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.permutations import prior_units
from stages.game.utility import Utility, mean_utilities
from stages.game.utility import check_fields as check_utilities
from stages.model.learners import LastBlocks, Players, read_texts, read_vectors
from stages.model.seeded import generator_of, permutations
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.model.training import Learner, Training, prefix_outputs
from stages.stage import ConfigError, Cost, Inputs, Rows, Size, Split, Stage, Work
from stages.tables import SHAPLEY_ROUND
from storage.schema import TableSpec

OUTCOME = TableSpec(
    name="outcome",
    schema=pa.schema(
        [
            ("round", pa.int64()),
            ("subset", pa.int64()),
            ("size", pa.int64()),
            ("query_id", pa.int64()),
            ("logits", pa.list_(pa.float32())),
        ]
    ),
    key=("subset", "query_id"),
)
"""The logits of a query after training on a subset, which `round` and `subset` name."""

SUBSET = TableSpec(
    name="subset",
    schema=pa.schema(
        [
            ("round", pa.int64()),
            ("subset", pa.int64()),
            ("size", pa.int64()),
            ("example_ids", pa.list_(pa.int64())),
        ]
    ),
    key=("subset",),
)
"""The examples of a subset, in the order in which they joined."""


EACH_PREFIX, PREFIXES = 10_000, 100
"""Most examples of whose permutations each prefix is trained on by default, and how many are of
more."""


def marginals(
    outputs: Float[Tensor, "prefixes classes queries"],
    labels: Int64[Tensor, " queries"],
    order: Int64[np.ndarray, " examples"],
    sizes: tuple[int, ...],
    utilities: tuple[Utility, ...],
) -> Float[Tensor, "utilities examples"]:
    """Marginals of each example for each utility, from the `outputs` for prefixes of `order`.

    `sizes` are those of the prefixes. The gain between two sizes is shared equally by the examples
    that joined. Column i is example i, whatever its place in `order`; a row sums to
    U(all) - U(empty).
    """
    first = torch.zeros_like(outputs[:1])
    gains = mean_utilities(torch.cat([first, outputs]), labels, utilities).diff(dim=1)
    joined = torch.tensor(sizes).diff(prepend=torch.tensor([0]))
    shared = (gains / joined).repeat_interleave(joined, dim=1)
    scattered = torch.empty(len(utilities), len(order), dtype=torch.float64)
    scattered[:, torch.from_numpy(order)] = shared
    return scattered


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
    subsets: Literal["permutation", "random"] = "permutation"
    """All prefixes of a permutation, or random subsets of one size."""
    every: int | None = None
    """Of a permutation every so many-th prefix is trained on, and the whole; see Blocks above. null
    takes each of up to 10,000 examples, and of more so many that there are 100 prefixes."""
    share: float = 0.5
    """Part of the examples in a random subset."""
    repeats: int = 1
    """Trainings on each random subset, each visiting its examples in an order of its own: what
    differs between them is the noise of training."""
    utilities: tuple[Utility, ...] = ("accuracy", "cross_entropy")
    """Utilities of a prefix, means over the labelled queries."""
    per_round: int = 1
    """Permutations, or random subsets, in a round, which is the most that an interruption loses."""
    rounds: int = 20
    """Rounds wanted; more can be added later."""
    seed: int = 0
    """Seed of permutations and visiting orders, together with the round's number."""
    token_budget: int = 2048
    """Padded tokens per batch, where nothing is trained."""

    version: ClassVar[int] = 2
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
            self.rounds,
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
        """With all prefixes of few examples, and `PREFIXES` of many, where `every` is left open."""
        if self.every is not None:
            return self
        is_small = size.n_examples <= EACH_PREFIX or self.subsets == "random"
        return replace(self, every=1 if is_small else -(-size.n_examples // PREFIXES))

    @property
    def outside_key(self) -> frozenset[str]:
        """`repeats` of one training, as rows were before there was the field."""
        more = {"repeats"} if self.repeats == 1 else set()
        return frozenset({"rounds", "model.train"} | more)

    @property
    def n_rounds(self) -> int:
        """The rounds wanted."""
        return self.rounds

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
        """Outcomes, subsets, and for permutations the sums of their marginals."""
        tables = (OUTCOME, SUBSET)
        return (*tables, SHAPLEY_ROUND) if self.subsets == "permutation" else tables

    def open(self, inputs: Inputs) -> tuple[Players, Learner]:
        """Examples and queries; the untrained model, with what its frozen part gives of them."""
        if self._read_model is None:
            return read_vectors(inputs, self.embedding)
        return read_texts(inputs, self._read_model, self.last_blocks, self.token_budget)

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
        """Outcomes, subsets, and sums of marginals of one round."""
        players, learner = inputs.opened
        index, n = inputs.part.index, players.n
        queries = n + np.arange(len(players.query_ids))
        has_label = players.labels[n:] >= 0
        sizes, units = sizes_of(self, n), []
        joinings = permutations(n, self.per_round, self.seed, index)
        repeated = (joining for joining in joinings for _ in range(self.repeats))
        for draw, joining in enumerate(repeated):
            drawn = generator_of(f"retrain/{self.seed}/{index}/{draw}")
            visits = torch.randperm(n, generator=drawn).numpy()
            order, outputs = joining.numpy(), []
            by_size = prefix_outputs(
                *(learner, players.labels, order, visits, sizes, queries),
                *(self.training, self.token_budget),
            )
            for at, (size, logits) in enumerate(zip(sizes, by_size, strict=True)):
                name = (index, draw * len(sizes) + at, size)
                yield OUTCOME.name, _outcome(name, players.query_ids, logits)
                yield SUBSET.name, _subset(name, players.example_ids[order[:size]])
                outputs.append(logits)
            if self.subsets == "permutation":
                labels = players.labels[n:][has_label]
                stacked = torch.stack(outputs)[..., has_label]
                units.append(marginals(stacked, labels, order, sizes, self.utilities))
        if units:
            yield from _sums(index, players.example_ids, self.utilities, torch.stack(units))

    def cost(self, work: Work) -> Cost:
        """Every epoch of every training forward and backward, and the queries after each."""
        sizes = sizes_of(self, work.n_examples)
        draws = self.rounds * self.per_round * self.repeats
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
            memory_bytes=memory + 40 * work.n_examples + 2 * self.per_round * rows,
            note=f"{len(sizes)} prefixes of a permutation" if (self.every or 1) > 1 else "",
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
) -> Rows:
    """Rows of `SHAPLEY_ROUND` for round `index`, from the marginals of each permutation."""
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
            pa.array(np.full(len(ids), prior_units(len(ids), "uniform"))),
        ]
        yield SHAPLEY_ROUND.name, pa.RecordBatch.from_arrays(columns, schema=SHAPLEY_ROUND.schema)


STAGE = Retrain
