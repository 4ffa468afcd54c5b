"""How much likelier a model finds the chosen answer of a pair than the rejected one.

With the log-likelihoods of both answers behind the prompt, in nats, under the model of the run (the
policy p) and under a reference r,

    reward(a)     = beta * (log p(a) - log r(a))
    reward_margin = reward(chosen) - reward(rejected)
    loss          = -log sigmoid(reward_margin),

the implicit rewards and the loss of DPO (Rafailov et al. 2023, arXiv:2305.18290, equations 5 and
7). Log-likelihoods are sums over the tokens of an answer, its end among them, as DPO trains on.

The reference is the model that `reference` names, or else the run's without its `adapter`; a model
without one is its own reference, and then every margin is 0 and every loss log 2: where training
begins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from stages.corpus.preferences import SIDES, side_columns
from stages.model.answers import Reader, TokenLosses, answer_columns, told
from stages.model.measurement import load_measurement
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel, Trained
from stages.stage import ConfigError, Cost, Inputs, ModelError, Rows, Split, Stage, Work
from stages.tables import ANSWER_COLUMNS, ANSWER_MARGIN
from storage.schema import TableSpec

ANSWER_SIDE = TableSpec(
    name="answer_side",
    schema=pa.schema(
        [("id", pa.int64()), ("side", pa.string()), ("role", pa.string()), *ANSWER_COLUMNS]
    ),
    key=("id", "side"),
)
"""What `answer_loss` tells of an answer, of both answers of a pair; states are those in the row."""


class Readers(NamedTuple):
    """The policy, and the reference where it is another model."""

    policy: Reader
    reference: Reader | None


@dataclass(frozen=True)
class AnswerMargin(RunsModel, Stage):
    """Log-likelihoods, margin and DPO loss of each pair, of examples and queries.

    Four forward passes a pair, and two more where the reference is another model; no gradients.
    """

    model: ModelSpec
    """The language model, head: completion: the policy."""
    reference: ModelSpec | None = None
    """The reference model; its path, revision, adapter and dtype count. It reads texts with the
    tokenizer of `model`. By default `model` without its adapter."""
    beta: float = 0.1
    """The strength with which DPO holds to the reference: its KL divergence has this weight."""
    token_budget: int = 2048
    """Padded tokens per batch; changes the last bits of a number, hence part of the key."""

    version: ClassVar[int] = 3
    split: ClassVar[Split] = "shard"
    tasks: ClassVar[tuple[str, ...]] = ("preference",)
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train", "model.reduction"})

    def __post_init__(self) -> None:
        """Refuses a beta that weighs nothing.

        Raises:
            ConfigError: it is not a positive number.
        """
        if not 0 < self.beta < float("inf"):
            raise ConfigError(
                f"beta: found {self.beta}, expected a positive number. DPO is mostly trained with "
                "0.1."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per pair, and one for each of its sides."""
        return (ANSWER_MARGIN, ANSWER_SIDE)

    def open(self, inputs: Inputs) -> Readers:
        """The models.

        Raises:
            ModelError: the reference has other tokens than the policy.
        """
        own = load_measurement(self.model, inputs, by_sides=True)
        policy = Reader(own, self.token_budget, in_rows=True)
        reference = self._reference_model()
        if reference is None:
            return Readers(policy, None)
        other = load_measurement(reference, inputs, by_sides=True)
        if other.tokenizer.get_vocab() != own.tokenizer.get_vocab():
            raise ModelError(
                f"{reference.path}: found other tokens than in {self.model.path}, expected the "
                "same: log-likelihoods of other tokens cannot be compared. Name the checkpoint "
                "that the policy was trained from, with the policy's tokenizer beside it."
            )
        other.tokenizer = own.tokenizer
        return Readers(policy, Reader(other, self.token_budget, in_rows=True))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The beta of the loss."""
        return {"beta": self.beta}

    def compute(self, inputs: Inputs) -> Rows:
        """The margins of one shard."""
        text = inputs.table("text")
        if not text.num_rows:
            return
        readers: Readers = inputs.opened
        form = str(inputs.details("text").get("format", "preference"))
        columns = side_columns(text["text"].to_pylist(), text["text_b"].to_pylist(), form)
        read = readers.policy.read(*columns)
        policy, n_tokens = sums(read.tokens)
        reference = policy
        if readers.reference is not None:
            reference, _ = sums(readers.reference.losses(*columns))
        numbers = dpo(policy, reference, self.beta)
        is_read = (n_tokens > 0).all(1)
        if not is_read.all():
            inputs.tell("pairs have no margin whose answers max_length cuts off, one or both")
        names: Any = [text["id"].combine_chunks(), text["role"].combine_chunks()]
        counts = [pa.array(n_tokens[:, at]) for at in (0, 1)]
        values = [pa.array(column, mask=~is_read) for column in (*policy.T, *reference.T, *numbers)]
        yield (
            ANSWER_MARGIN.name,
            pa.RecordBatch.from_arrays([*names, *counts, *values], ANSWER_MARGIN.schema.names),
        )
        found = [told(*row) for row in zip(read.tokens, read.alone, strict=True)]
        twice = [pa.array(np.repeat(np.asarray(name), 2).tolist()) for name in names]
        of_sides = [twice[0], pa.array([*SIDES] * text.num_rows), twice[1]]
        of_sides += answer_columns(found, read.prompts, read.answers)
        yield ANSWER_SIDE.name, pa.RecordBatch.from_arrays(of_sides, ANSWER_SIDE.schema.names)

    def cost(self, work: Work) -> Cost:
        """Two forward passes per side, the second of the answer alone, and one of the reference."""
        size = network_size(self.model, None)
        n = work.n_examples + work.n_queries
        n_models = 1 + (self._reference_model() is not None)
        passes = 3 + n_models
        return Cost(
            forward_rows=passes * n,
            # The texts of a pair have its prompt once, which is read with both answers.
            flops=passes * size.forward_flops(work.n_tokens),
            written_bytes=2 * n * (8 * size.dim + 60) + 100 * n,
            memory_bytes=n_models * size.forward_bytes(self.token_budget)
            + 2 * (24 * size.dim + 100) * (n // max(1, work.n_shards)),
        )

    def _reference_model(self) -> ModelSpec | None:
        """The reference, read as the policy is; None where that is its own."""
        if self.reference is not None:
            own = self.reference
            return replace(
                self.model,
                path=own.path,
                revision=own.revision,
                adapter=own.adapter,
                dtype=own.dtype,
                train=Trained(),
            )
        return None if self.model.adapter is None else replace(self.model, adapter=None)


def sums(
    tokens: list[TokenLosses | None],
) -> tuple[Float64[np.ndarray, "pairs 2"], np.ndarray]:
    """Log-likelihoods of both answers of each pair, NaN without a token, and their tokens."""
    totals = [np.nan if row is None else -float(row.losses.sum(dtype=np.float64)) for row in tokens]
    counts = [0 if row is None else len(row.losses) for row in tokens]
    return np.array(totals).reshape(-1, 2), np.array(counts, dtype=np.int64).reshape(-1, 2)


def dpo(
    policy: Float64[np.ndarray, "pairs 2"], reference: Float64[np.ndarray, "pairs 2"], beta: float
) -> tuple[Float64[np.ndarray, " pairs"], Float64[np.ndarray, " pairs"]]:
    """The reward margin and the loss of each pair, from log-likelihoods: chosen, rejected."""
    rewards = beta * (policy - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    with np.errstate(invalid="ignore"):  # of pairs without a token
        return margin, np.logaddexp(0, -margin)


STAGE = AnswerMargin
