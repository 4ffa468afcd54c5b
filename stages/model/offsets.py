"""Where the tokens of a row stand in its text: characters, columns and words.

A token of a model's input stands for a piece of the user's text, or for none: special tokens, the
words of a prompt's template and those of a chat template are the model's own. Token attribution
moves the first kind and leaves the second where it is.

Words are runs of letters, digits and apostrophes, single CJK characters, and single other signs;
a token belongs to the word that it begins in. [ours]
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.model.batches import MOVED, TEMPLATE, Span, Tokens
from stages.model.measurement import Measurement

COLUMNS = ("text", "text_b")

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+(?:['\u2019](?:(?![{_CJK}])\w)+)*|[^\w\s]")


class TokenOffsets(NamedTuple):
    """The tokens of one row."""

    is_text: np.ndarray
    """Whether a token is a piece of the text, by place in the row."""
    column: list[str | None]
    """text or text_b."""
    start: list[int | None]
    """First character in that column; NULL where a template rewrote the text."""
    end: list[int | None]
    word: list[int | None]
    """Number of the word in the row, from 0."""
    token: list[str]
    """The characters of the text; what the token reads where their place is unknown; or, of what is
    no piece of it, what the tokenizer calls the token."""


def token_offsets(measurement: Measurement, text: pa.Table, tokens: Tokens) -> list[TokenOffsets]:
    """Where each row's tokens stand, which `measurement.tokenise` made of the text with offsets."""
    columns = [text[name].to_pylist() for name in COLUMNS]
    if tokens.spans is None:
        raise ValueError("found tokens without offsets, expected those of tokenise(..., True)")
    each = zip(*columns, tokens.columns["input_ids"], tokens.spans, strict=True)
    return [
        _of_row(measurement.tokenizer, ids, spans, (first, second or ""))
        for first, second, ids, spans in each
    ]


def extended(tokenizer: Any, ids: Sequence[int], known: TokenOffsets) -> TokenOffsets:
    """The places of a longer row: those of `known`, then tokens that stand in no text.

    They count as text: a token that a model wrote is as much its input as the text before it.
    """
    special = set(tokenizer.all_special_ids)
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


def words_of(text: str) -> list[tuple[int, int]]:
    """First and behind-last character of every word."""
    return [match.span() for match in _WORD.finditer(text)]


def _of_row(
    tokenizer: Any, ids: Sequence[int], spans: Sequence[Span], texts: tuple[str, str]
) -> TokenOffsets:
    words: dict[tuple[int, int], int] = {}
    starts = [np.array([start for start, _ in words_of(text)]) for text in texts]
    ends = [np.array([end for _, end in words_of(text)]) for text in texts]
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
            known = where == MOVED[0]
            token.append(tokenizer.decode([i]) if known else tokenizer.convert_ids_to_tokens(i))
            continue
        text = texts[where]
        while first < last and text[first].isspace():
            first += 1
        at = int(np.searchsorted(ends[where], first, side="right"))
        inside = at < len(starts[where]) and starts[where][at] < max(last, first + 1)
        column.append(COLUMNS[where])
        start.append(first)
        end.append(last)
        word.append(words.setdefault((where, at), len(words)) if inside else None)
        token.append(text[first:last])
    is_text = np.array([where != TEMPLATE[0] for where, _, _ in spans], dtype=bool)
    return TokenOffsets(is_text, column, start, end, word, token)
