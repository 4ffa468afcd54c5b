"""From rows of text to padded batches, and from a batch's results back to rows of a table.

A shard is tokenised once. Its rows are then sorted by length and cut into batches of at most
`token_budget` padded tokens, so that little is spent on padding and memory has a bound.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stages.model.networks import IGNORED
from stages.stage import ConfigError, DataError

Span = tuple[int, int, int]
"""Of a token: its text column (0 or 1), its first and its behind-last character there."""
TEMPLATE: Span = (-1, -1, -1)
"""Of a token that is no piece of the text: special ones, and the words of templates."""
MOVED: Span = (-2, -1, -1)
"""Of a piece of the text that a template has moved nobody knows where to."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of some rows.

    `columns` maps an argument of the network (`input_ids`, perhaps `token_type_ids`, `targets`) to
    one list of numbers per row; `positions` holds the token whose output is read, where it is one;
    `spans`, where they were asked for, says of each token which characters it stands for.
    """

    columns: dict[str, list[list[int]]]
    positions: Int[np.ndarray, " rows"] | None = None
    spans: list[list[Span]] | None = None

    @property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """Tokens per row."""
        return np.array([len(row) for row in self.columns["input_ids"]], dtype=np.int64)

    def take(self, rows: Int[np.ndarray, " kept"]) -> "Tokens":
        """The named rows."""
        columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        positions = None if self.positions is None else self.positions[rows]
        return Tokens(columns, positions, self.spans and [self.spans[row] for row in rows])


def tokenise(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    max_length: int,
    with_offsets: bool = False,
) -> Tokens:
    """Tokens of each text, or of the text and its pair where that is not None.

    Rows longer than `max_length` lose their end; of a pair, the longer member loses first.

    Raises:
        DataError: a row has no token at all.
    """
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    columns: dict[str, list[list[int]]] = {name: [[] for _ in texts] for name in names}
    spans: list[list[Span]] = [[] for _ in texts]
    for paired in (False, True):
        rows = [row for row, pair in enumerate(pairs) if (pair is not None) == paired]
        if not rows:
            continue
        encoded = tokenizer(
            [texts[row] for row in rows],
            [pairs[row] for row in rows] if paired else None,
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_offsets_mapping=with_offsets,
        )
        for name in names:
            for row, values in zip(rows, encoded[name], strict=True):
                columns[name][row] = values
        for at, row in enumerate(rows if with_offsets else ()):
            spans[row] = _spans(encoded.sequence_ids(at), encoded["offset_mapping"][at])
    for row, values in enumerate(columns["input_ids"]):
        if not values:
            raise DataError(
                f"text: found no token in row {row} of the shard ({texts[row]!r}), expected at "
                "least one. Drop empty rows from the source."
            )
    return Tokens(columns, spans=spans if with_offsets else None)


def tokenise_questions(
    tokenizer: Any, questions: Sequence[str | None], texts: Sequence[str], max_length: int
) -> Tokens:
    """Each question and then the text it asks about; `is_context` marks tokens of the text.

    Rows longer than `max_length` lose the end of the text, and with a question of more than half of
    it also the end of the question.
    """
    rows = [
        encode_question(tokenizer, question, text, max_length)
        for question, text in zip(questions, texts, strict=True)
    ]
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    columns = {name: [list(row[name]) for row in rows] for name in names}
    parts = [row.sequence_ids(0) for row in rows]
    columns["is_context"] = [[int(part == 1) for part in row] for row in parts]
    # The second column, the question, is read first.
    swapped = [[None if part is None else 1 - part for part in row] for row in parts]
    offsets = [row["offset_mapping"] for row in rows]
    spans = [_spans(*row) for row in zip(swapped, offsets, strict=True)]
    return Tokens(columns, spans=spans)


def _spans(parts: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """Of each token its text, given as the number of the sequence, and its characters."""
    each = zip(parts, offsets, strict=True)
    return [TEMPLATE if part is None else (part, *characters) for part, characters in each]


def encode_question(tokenizer: Any, question: str | None, text: str, max_length: int) -> Any:
    """One row of `tokenise_questions` as the tokenizer gives it, with its offsets.

    Raises:
        DataError: there is no question.
    """
    if question is None:
        raise DataError(
            f"text: found no question about {text[:40]!r}, expected one in every row, for head: "
            "span. Set task: question_answering, or another head."
        )
    is_long = len(tokenizer(question)["input_ids"]) > max_length // 2
    return tokenizer(
        question,
        text,
        truncation="longest_first" if is_long else "only_second",
        max_length=max_length,
        return_offsets_mapping=True,
    )


def batches(
    lengths: Int[np.ndarray, " rows"], token_budget: int
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Row numbers of each batch, longest rows first: what does not fit in memory fails at once.

    Rows times the longest row stays within `token_budget`, except that a batch has at least one
    row. Each row comes once; the order depends on the lengths alone.

    Raises:
        ConfigError: the budget is not positive.
    """
    if token_budget < 1:
        raise ConfigError(
            f"token_budget: found {token_budget}, expected a positive number of tokens. Raise it."
        )
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        n_rows = max(1, token_budget // max(1, int(lengths[order[start]])))
        yield order[start : start + n_rows]
        start += n_rows


def pad(
    tokens: Tokens, rows: Int[np.ndarray, " rows"], pad_id: int, device: str
) -> dict[str, Tensor]:
    """The named rows as int64 tensors (rows, longest), padded on the right, with their mask."""
    lengths = np.array([len(tokens.columns["input_ids"][row]) for row in rows])
    real = np.arange(int(lengths.max())) < lengths[:, None]
    padded = {"attention_mask": real.astype(np.int64)}
    for name, column in tokens.columns.items():
        filler = {"input_ids": pad_id, "targets": IGNORED}.get(name, 0)
        values = np.full(real.shape, filler, dtype=np.int64)
        values[real] = np.concatenate([column[row] for row in rows])
        padded[name] = values
    if tokens.positions is not None:
        padded["position"] = tokens.positions[rows]
    return {name: torch.from_numpy(values).to(device) for name, values in padded.items()}
