"""Answers to questions: the span of the text with the highest start and end logits.

The answer is the pair of tokens, start before or at end and at most `longest` tokens, whose start
and end logits have the largest sum. Its probability is the product of the two softmaxes over the
tokens of the text.

Source: Devlin et al. 2019, arXiv:1810.04805, section 4.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.model.batches import batches
from stages.model.measurement import Measurement, load_measurement
from stages.model.offsets import token_offsets
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.stage import ConfigError, Cost, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

ANSWER = TableSpec(
    name="answer",
    schema=pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            ("answer", pa.string()),
            ("char_start", pa.int64()),
            ("char_end", pa.int64()),
            ("token_start", pa.int64()),
            ("token_end", pa.int64()),
            ("logit", pa.float64()),
            ("probability", pa.float64()),
        ]
    ),
    key=("role", "id"),
)
"""Where the text answers the question, in characters of `text` and in tokens of the model's input,
the last one included; `logit` is the sum of both. NULL where `max_length` left nothing of the text.
"""


@dataclass(frozen=True)
class AnswerSpan(RunsModel, Stage):
    """The best answer to every question."""

    model: ModelSpec
    """The question-answering model, head: span."""
    longest: int = 15
    """Tokens of an answer at most."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    tasks: ClassVar[tuple[str, ...]] = ("question_answering",)
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})

    def __post_init__(self) -> None:
        """Refuses a longest answer below one token.

        Raises:
            ConfigError: it is.
        """
        if self.longest < 1:
            raise ConfigError(
                f"longest: found {self.longest}, expected at least 1 token. Correct it."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Texts and questions."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One answer per row."""
        return (ANSWER,)

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses a model without start and end logits.

        Raises:
            ConfigError: it has another head.
        """
        if self.model.kind.explains != "answer":
            raise ConfigError(
                f"model: found head: {self.model.head}, expected head: span, which knows where "
                "answers start and end. Set it in model."
            )

    def open(self, inputs: Inputs) -> Measurement:
        """The model and its tokenizer."""
        return load_measurement(self.model, inputs)

    def compute(self, inputs: Inputs) -> Rows:
        """Answers of one shard."""
        measurement: Measurement = inputs.opened
        text = inputs.table("text")
        tokens = measurement.tokenise(text, with_offsets=True)
        places = token_offsets(measurement, text, tokens)
        names = ("id", "role", "text")
        ids, roles, texts = (text[name].to_pylist() for name in names)
        for rows in batches(tokens.lengths, self.token_budget):
            batch = measurement.batch(tokens, rows)
            with torch.no_grad():
                logits = measurement.outputs(batch).double().cpu()
            answers = []
            for row, own in zip(rows.tolist(), logits, strict=True):
                answer = {"id": ids[row], "role": roles[row]}
                if any(tokens.columns["is_context"][row]):
                    start, end = best_span(own, self.longest)
                    first, last = places[row].start[start], places[row].end[end]
                    logit = float(own[0, start] + own[1, end])
                    span = texts[row][first:last]
                    answer |= {"answer": span, "char_start": first, "char_end": last}
                    answer |= {"token_start": start, "token_end": end, "logit": logit}
                    answer |= {"probability": float(torch.exp(logit - own.logsumexp(1).sum()))}
                answers.append(answer)
            yield ANSWER.name, pa.RecordBatch.from_pylist(answers, schema=ANSWER.schema)

    def cost(self, work: Work) -> Cost:
        """One forward pass per row."""
        size = network_size(self.model, work.n_classes)
        n_rows = work.n_examples + work.n_queries
        return Cost(
            forward_rows=n_rows,
            flops=size.forward_flops(work.n_tokens),
            written_bytes=n_rows * 100,
            memory_bytes=size.forward_bytes(self.token_budget),
        )


def best_span(logits: Float[Tensor, "two tokens"], longest: int) -> tuple[int, int]:
    """First and last token of the span with the largest sum of logits, the earliest among equals.

    `logits` are start and end logits; a span has at most `longest` tokens.
    """
    n = logits.shape[1]
    sums = logits[0][:, None] + logits[1][None, :]
    is_span = torch.ones(n, n, dtype=torch.bool).triu().tril(longest - 1)
    at = int(sums.masked_fill(~is_span, -torch.inf).argmax())
    return at // n, at % n


STAGE = AnswerSpan
