"""Bad answers in a corpus of completions, each with the reason.

Every example is compared with bad answers that were made of the corpus's own rows
(`planted_answers`); `stages/surrogate/answer_mixture.py` has the formulas. Reasons are the kinds
planted, and what needs no model:

    another answer   it may answer a prompt much like this one, but not this one
    off topic        it has nothing to do with the prompt
    cut off          it ends in the middle
    garbled          it is not what anyone writes
    empty            it has no letter or digit

Kinds that a model cannot tell from right answers are found by no score; their share comes out near
0, and no such row is flagged. So it is with the other class's word where a task has few answers.
Answers that many rows share are therefore also taken for classes
(`stages/surrogate/answer_classes.py`): `p_other_class` orders them, and decides nothing. As a flag
it was right too seldom (`scripts/benchmarks/answers.md`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64

from stages.model.answers import answer_of
from stages.reading.drawn import is_drawn
from stages.reading.vectors import matrix_of
from stages.stage import Cost, DataError, Inputs, Role, Rows, Split, Stage, Work, check_alike
from stages.surrogate.answer_classes import AnswerClasses, fit_answer_classes
from stages.surrogate.answer_mixture import (
    BLOCK,
    NUMBERS,
    Measured,
    Mixture,
    Reference,
    features_of,
    fit_mixture,
    reference_of,
)
from storage.schema import TableSpec

ANSWER_ISSUE = TableSpec(
    name="answer_issue",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("p_wrong", pa.float64()),
            ("reason", pa.string()),
            ("p_reason", pa.float64()),
            ("is_answer_issue", pa.bool_()),
            ("p_other_class", pa.float64()),
        ]
    ),
    key=("example_id",),
)
"""The probability that an answer is bad, the likeliest reason and its probability if it is bad; of
an answer that is a class, the probability that it should be another one, else null."""

EMPTY, NOBODY = "empty", -1
LEAST = 30
"""Examples below which there is nothing to compare with."""


class Judge(NamedTuple):
    """What rows are compared with, and what tells bad ones."""

    reference: Reference
    mixture: Mixture
    n_planted: int
    classes: AnswerClasses | None
    """None where no two answers are frequent."""


@dataclass(frozen=True)
class AnswerIssues(Stage):
    """The probability that each answer is bad, the reason, and a decision.

    Flagged are those that are likelier bad than right. A task holds the vectors of `compared`
    examples and of a shard; cost: an inner product for every row and row compared with.
    """

    losses: str = "answer_loss"
    """Instance of `answer_loss`."""
    planted: str = "planted_answers"
    """Instance of `planted_answers` over the same losses."""
    compared: int = 8192
    """Most examples that others are compared with, drawn by a hash of their ids."""
    random_seed: int = 0
    """Of the parts that fits leave out."""

    version: ClassVar[int] = 6
    judges_rows: ClassVar[bool] = True
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("example",)
    roles: ClassVar[tuple[Role, ...]] = ("example",)
    tasks: ClassVar[tuple[str, ...]] = ("completion",)
    instead: ClassVar[Mapping[str, str]] = {
        "classification": "label_issues",
        "preference": "preference_issues",
    }

    @property
    def seed(self) -> int:
        """The seed of the parts."""
        return self.random_seed

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts, and what is measured of rows and of planted ones."""
        return ("text", self.losses, self.planted)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Planted answers measured alike."""
        return {self.planted: {"losses": self.losses}}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses planted answers beside other losses.

        Raises:
            ConfigError: they are.
        """
        if self.planted in writers:
            check_alike(self.planted, writers[self.planted], {"losses": self.losses})

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per example with an answer of which a token is read."""
        return (ANSWER_ISSUE,)

    def open(self, inputs: Inputs) -> Judge:
        """What tells bad answers, learned once per worker.

        Raises:
            DataError: nothing was planted.
        """
        every = [_answered(t)["id"].to_numpy() for t in inputs.by_shard(self.losses, "example")]
        drawn = np.concatenate(every) if every else np.zeros(0, np.int64)
        drawn = drawn[is_drawn(drawn, self.compared)]
        if len(drawn) < LEAST:
            raise DataError(
                f"{self.losses}: found {len(drawn)} examples with an answer of which a token is "
                f"read, expected at least {LEAST}. Raise max_length, or leave answer_issues out."
            )
        few = [
            table.filter(pc.is_in(table["id"], pa.array(drawn)))
            for table in inputs.by_shard(self.losses, "example")
        ]
        ids, measured = _measured(pa.concat_tables(few).sort_by("id"))
        reference = reference_of(ids, measured)
        parts = [_answered(table) for table in inputs.by_shard(self.planted, "example")]
        planted = pa.concat_tables(parts).sort_by([("kind", "ascending"), ("id", "ascending")])
        if not planted.num_rows:
            raise DataError(
                f"{self.planted}: found no planted answer, expected some to learn from. Raise "
                "rows, or leave answer_issues out."
            )
        of, bad = _measured(planted)
        donors = pc.fill_null(planted["donor_id"], NOBODY).to_numpy()
        is_known = np.isin(of, ids)
        sources = np.searchsorted(ids, of).clip(max=len(ids) - 1)
        mixture = fit_mixture(
            features_of(ids[:, None], measured, reference),
            features_of(np.column_stack([of, donors]), bad, reference)[is_known],
            [str(kind) for kind in np.array(planted["kind"].to_pylist())[is_known]],
            sources[is_known],
            self.random_seed,
        )
        # Answers that are bad in another way would be taken for another class.
        found = mixture.posterior(features_of(ids[:, None], measured, reference))
        is_right = found[:, 0] > 0.5
        texts = [
            table.filter(pc.is_in(table["id"], pa.array(ids[is_right])))
            for table in inputs.by_shard("text", "example")
        ]
        answers = _answers(inputs, pa.concat_tables(texts).sort_by("id"))
        classes = fit_answer_classes(ids[is_right], answers, measured.prompts[is_right])
        return Judge(reference, mixture, int(is_known.sum()), classes)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The share of each kind among all rows, how well it is told, and answers as classes."""
        judge: Judge = inputs.opened
        found = judge.mixture
        words = sorted(judge.classes.words) if judge.classes else []
        return {
            "shares": dict(zip(found.kinds, found.shares[1:].tolist(), strict=True)),
            "areas": dict(zip(found.kinds, found.areas.round(4).tolist(), strict=True)),
            "n_planted": judge.n_planted,
            "answers_as_classes": words,
        }

    def compute(self, inputs: Inputs) -> Rows:
        """The judgements of one shard."""
        judge: Judge = inputs.opened
        table = _answered(inputs.table(self.losses, "example")).sort_by("id")
        if not table.num_rows:
            return
        ids, measured = _measured(table)
        posterior = judge.mixture.posterior(features_of(ids[:, None], measured, judge.reference))
        text = inputs.table("text", "example").sort_by("id")
        answers = _answers(inputs, text.filter(pc.is_in(text["id"], pa.array(ids))))
        p_wrong = 1 - posterior[:, 0]
        kinds = np.array(judge.mixture.kinds)
        reasons = kinds[posterior[:, 1:].argmax(1)].tolist()
        p_reason = posterior[:, 1:].max(1) / np.maximum(p_wrong, 1e-300)
        p_other = np.full(len(ids), np.nan)
        if judge.classes is not None:
            p_other = judge.classes.wrong(ids, answers, measured.prompts)
        for row, answer in enumerate(answers):
            if not any(map(str.isalnum, answer)):
                p_wrong[row], reasons[row], p_reason[row] = 1.0, EMPTY, 1.0
        columns = [ids, p_wrong, reasons, np.clip(p_reason, 0, 1), p_wrong > 0.5]
        arrays = [*map(pa.array, columns), pa.array(p_other, from_pandas=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=ANSWER_ISSUE.schema)
        yield ANSWER_ISSUE.name, batch

    def cost(self, work: Work) -> Cost:
        """An inner product for every row and row compared with."""
        n, most = work.n_examples, min(self.compared, work.n_examples)
        per_shard = n // max(1, work.n_shards)
        return Cost(
            flops=float(n) * most * work.dim,
            written_bytes=48 * n,
            memory_bytes=28 * work.dim * (most + per_shard) + 8 * most * BLOCK + 8 * n,
        )


def _answers(inputs: Inputs, text: pa.Table) -> list[str]:
    """The answers of some rows of the texts."""
    form = str(inputs.details("text").get("format", "text"))
    rows = zip(text["text"].to_pylist(), text["text_b"].to_pylist(), strict=True)
    return [answer_of(*row, form) for row in rows]


def _answered(table: pa.Table) -> pa.Table:
    """The rows with an answer of which a token is read."""
    return table.filter(pc.greater(table["n_tokens"], 0))


def _measured(table: pa.Table) -> tuple[Int64[np.ndarray, " rows"], Measured]:
    """Ids of the rows, and what was measured of them."""
    numbers: Float64[np.ndarray, "rows five"] = np.column_stack(
        [pc.cast(table[name], pa.float64()).to_numpy() for name in NUMBERS]
    )
    vectors = matrix_of(table["vector"]).astype(np.float32)
    half = vectors.shape[1] // 2
    return table["id"].to_numpy(), Measured(numbers, vectors[:, :half], vectors[:, half:])


STAGE = AnswerIssues
