"""The offsets of a row's tokens in its text: columns, characters and words.

A token of a model's input is a piece of the user's text, or none: special tokens, the words of a
prompt's template and those of a chat template are no pieces of it. Token attribution changes the
embeddings of the first kind and leaves those of the second as they are.

A token belongs to the word of `stages.reading.words` that it begins in.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.model.batches import REWRITTEN, TEMPLATE, Span, Tokens
from stages.model.chats import special_ids
from stages.model.measurement import Measurement
from stages.reading.words import words_of

COLUMNS = ("text", "text_b")


class TokenOffsets(NamedTuple):
    """The offsets of the tokens of one row; every list has one entry per token."""

    is_text: np.ndarray
    """Whether the token is a piece of the text; boolean."""
    column: list[str | None]
    """Name of its text column, `text` or `text_b`; None where it is unknown, or the token no
    text."""
    start: list[int | None]
    """First character in that column; None where a template rewrote the text."""
    end: list[int | None]
    """Last character in that column, exclusive."""
    word: list[int | None]
    """Number of the token's word among those of the row, from 0."""
    token: list[str]
    """The characters of the text; the decoded token where their offsets are unknown; or, of a token
    that is no piece of the text, the tokenizer's name for it."""


def token_offsets(measurement: Measurement, text: pa.Table, tokens: Tokens) -> list[TokenOffsets]:
    """The offsets of each row's tokens, where `tokens` is `measurement.tokenise(text, True)`."""
    columns = [text[name].to_pylist() for name in COLUMNS]
    if tokens.spans is None:
        raise ValueError("found tokens without offsets, expected those of tokenise(..., True)")
    each = zip(*columns, tokens.columns["input_ids"], tokens.spans, strict=True)
    return [
        _of_row(measurement.tokenizer, ids, spans, (first, second or ""))
        for first, second, ids, spans in each
    ]


def extended(tokenizer: Any, ids: Sequence[int], known: TokenOffsets) -> TokenOffsets:
    """The offsets of a row that begins with the tokens of `known`, which it extends.

    The tokens behind them have no characters. Except for special ones they count as text: a token
    that a model wrote is as much its input as the text before it.
    """
    special = special_ids(tokenizer)
    more = list(ids[len(known.token) :])
    n = len(ids)
    none: list[None] = [None] * len(more)
    return TokenOffsets(
        np.append(known.is_text, [i not in special for i in more])[:n].astype(bool),
        [*known.column, *none][:n],
        [*known.start, *none][:n],
        [*known.end, *none][:n],
        [*known.word, *none][:n],
        [*known.token, *(tokenizer.decode([i]) for i in more)][:n],
    )


def _of_row(
    tokenizer: Any, ids: Sequence[int], spans: Sequence[Span], texts: tuple[str, str]
) -> TokenOffsets:
    words: dict[tuple[int, int], int] = {}
    bounds = [np.array(words_of(text), np.int64).reshape(-1, 2).T for text in texts]
    starts, ends = [start for start, _ in bounds], [end for _, end in bounds]
    column: list[str | None] = []
    start: list[int | None] = []
    end: list[int | None] = []
    word: list[int | None] = []
    token: list[str] = []
    for i, (where, first, last) in zip(ids, spans, strict=True):
        if where < 0:
            column.append(None)
            start.append(None)
            end.append(None)
            word.append(None)
            is_rewritten = where == REWRITTEN[0]
            token.append(
                tokenizer.decode([i]) if is_rewritten else tokenizer.convert_ids_to_tokens(i)
            )
            continue
        text = texts[where]
        while first < last and text[first].isspace():
            first += 1
        index = int(np.searchsorted(ends[where], first, side="right"))
        inside = index < len(starts[where]) and starts[where][index] < max(last, first + 1)
        column.append(COLUMNS[where])
        start.append(first)
        end.append(last)
        word.append(words.setdefault((where, index), len(words)) if inside else None)
        token.append(text[first:last])
    is_text = np.array([where != TEMPLATE[0] for where, _, _ in spans], dtype=bool)
    return TokenOffsets(is_text, column, start, end, word, token)
