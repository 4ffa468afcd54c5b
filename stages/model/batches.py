"""Tokens of rows of text, and padded batches of them.

A shard is tokenised once. Its rows are then sorted by length and cut into batches of at most
`token_budget` padded tokens, so that little is spent on padding and memory has a bound.
"""

import copy
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from stages.model.first_part import first_part
from stages.model.networks import IGNORED
from stages.stage import ConfigError, DataError, ModelError

Span = tuple[int, int, int]
"""Span of a token: its text column (0 or 1), start and stop (exclusive) in characters there."""
TEMPLATE: Span = (-1, -1, -1)
"""Span of a token that is no piece of the text: special tokens, and the words of templates."""
REWRITTEN: Span = (-2, -1, -1)
"""Span of a token of the text whose characters are unknown, since a template rewrote the text."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of some rows.

    `columns` maps an argument of the network (`input_ids`, perhaps `token_type_ids`, `targets`) to
    one list of numbers per row. `positions` holds the index of the token whose output is read,
    where the model reads a single one. `spans`, where offsets were requested, holds a span per
    token.
    """

    columns: dict[str, list[list[int]]]
    positions: Int[np.ndarray, " rows"] | None = None
    spans: list[list[Span]] | None = None

    @property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """The number of tokens of each row."""
        return np.array([len(row) for row in self.columns["input_ids"]], dtype=np.int64)

    def take(self, rows: Int[np.ndarray, " kept"]) -> "Tokens":
        """The tokens of the rows with these numbers."""
        columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        positions = None if self.positions is None else self.positions[rows]
        return Tokens(columns, positions, self.spans and [self.spans[row] for row in rows])


def encode_text(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    """The tokenizer's encoding of texts in which everything is text.

    A special token that a text spells out, such as `</s>` or `[SEP]`, is encoded as the characters
    that it is. Special tokens come from the tokenizer and from templates alone.
    """
    return tokenizer(*texts, split_special_tokens=True, **options)


@functools.lru_cache(maxsize=4)
def with_marks(tokenizer: Any, marks: tuple[str, ...]) -> Any:
    """A tokenizer for which `encode_text` still takes these special tokens as tokens.

    A template writes them, and the caller takes them out of the texts in it.
    """
    if not marks:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer: found a {type(tokenizer).__name__}, expected a fast tokenizer for a "
            f"template with {', '.join(marks)}. Save tokenizer.json beside the weights."
        )
    state = json.loads(changed.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] &= token["content"] not in marks
    changed._tokenizer = Tokenizer.from_str(json.dumps(state))
    return changed


def tokenise(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    max_length: int,
    with_offsets: bool = False,
) -> Tokens:
    """The tokens of each text, or of the text and its pair where that is not None.

    Rows longer than `max_length` lose their end; of a pair, the longer member loses first. Special
    tokens that a text spells out are text.

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
        encoded = encode_text(
            tokenizer,
            [first_part(tokenizer, texts[row], max_length) for row in rows],
            [first_part(tokenizer, pairs[row] or "", max_length) for row in rows]
            if paired
            else None,
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_offsets_mapping=with_offsets,
        )
        for name in names:
            for row, values in zip(rows, encoded[name], strict=True):
                columns[name][row] = values
        for index, row in enumerate(rows if with_offsets else ()):
            spans[row] = _spans(encoded.sequence_ids(index), encoded["offset_mapping"][index])
    for row, values in enumerate(columns["input_ids"]):
        if not values:
            raise DataError(
                f"text: found no token in row {row} of the shard ({texts[row][:40]!r}), expected "
                "at least one. Drop empty rows from the source."
            )
    return Tokens(columns, spans=spans if with_offsets else None)


def tokenise_questions(
    tokenizer: Any, questions: Sequence[str | None], texts: Sequence[str], max_length: int
) -> Tokens:
    """The tokens of each question and then its text; column `is_context` marks those of the text.

    Rows longer than `max_length` lose the end of the text, and where the question alone has more
    than half of `max_length` tokens, also the end of the question.
    """
    rows = [
        encode_question(tokenizer, question, text, max_length)
        for question, text in zip(questions, texts, strict=True)
    ]
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    columns = {name: [list(row[name]) for row in rows] for name in names}
    parts = [row.sequence_ids(0) for row in rows]
    columns["is_context"] = [[int(part == 1) for part in row] for row in parts]
    # The question comes first, but is the column text_b, number 1.
    swapped = [[None if part is None else 1 - part for part in row] for row in parts]
    offsets = [row["offset_mapping"] for row in rows]
    spans = [_spans(*row) for row in zip(swapped, offsets, strict=True)]
    return Tokens(columns, spans=spans)


def _spans(parts: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """The span of each token, from the number of its sequence (None: special) and its offsets."""
    each = zip(parts, offsets, strict=True)
    return [TEMPLATE if part is None else (part, *characters) for part, characters in each]


def encode_question(tokenizer: Any, question: str | None, text: str, max_length: int) -> Any:
    """The tokenizer's encoding of one row of `tokenise_questions`, with offsets.

    Raises:
        DataError: there is no question.
    """
    if question is None:
        raise DataError(
            f"text: found no question about {text[:40]!r}, expected one in every row, for head: "
            "span. Set task: question_answering, or another head."
        )
    question, text = (first_part(tokenizer, part, max_length) for part in (question, text))
    is_long = len(encode_text(tokenizer, question)["input_ids"]) > max_length // 2
    return encode_text(
        tokenizer,
        question,
        text,
        truncation="longest_first" if is_long else "only_second",
        max_length=max_length,
        return_offsets_mapping=True,
    )


def batches(
    lengths: Int[np.ndarray, " rows"], token_budget: int
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Row numbers of each batch, longest rows first, so that a lack of memory shows at once.

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
    """The rows with these numbers as int64 tensors (rows, longest), padded on the right.

    Beside the columns of `tokens` there are `attention_mask`, and `position` where the model reads
    a single token.
    """
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
