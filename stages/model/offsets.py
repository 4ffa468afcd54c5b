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

from stages.model.batches import Tokens, encode_question
from stages.model.measurement import Measurement
from stages.model.templates import completion_offsets, plain_texts, prompt_offsets
from stages.stage import ModelError

COLUMNS = ("text", "text_b")
NOWHERE = (-1, -1, -1)
"""Of a token that is no piece of the text."""
SOMEWHERE = (-2, -1, -1)
"""Of a piece of the text that a template has moved nobody knows where to."""

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+(?:['\u2019](?:(?![{_CJK}])\w)+)*|[^\w\s]")


class Places(NamedTuple):
    """The tokens of one row."""

    is_moved: np.ndarray
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


def locate(measurement: Measurement, text: pa.Table, tokens: Tokens) -> list[Places]:
    """The places of each row's tokens, which `measurement.tokenise` made of the text table.

    Raises:
        ModelError: the tokenizer does not say where its tokens begin.
    """
    tokenizer = measurement.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"{measurement.spec.path}: found a tokenizer without character offsets "
            f"({type(tokenizer).__name__}), expected a fast one. Save tokenizer.json beside the "
            "weights."
        )
    columns = [text[name].to_pylist() for name in COLUMNS]
    found = []
    for row, (first, second) in enumerate(zip(*columns, strict=True)):
        ids = tokens.columns["input_ids"][row]
        spans = _spans(measurement, first, second)
        if len(spans) != len(ids):
            raise ModelError(
                f"{measurement.spec.path}: found {len(spans)} offsets for {len(ids)} tokens, "
                "expected one each. Use the tokenizer that was saved with the model."
            )
        found.append(_places(tokenizer, ids, spans, (first, second or "")))
    return found


def nowhere(tokenizer: Any, ids: Sequence[int], known: Places) -> Places:
    """The places of a longer row: those of `known`, then tokens that moved from no text.

    They are moved as well: a token that a model wrote is as much its input as the text before it.
    """
    special = set(tokenizer.all_special_ids)
    more = list(ids[len(known.token) :])
    n = len(ids)
    none: list[None] = [None] * len(more)
    return Places(
        np.append(known.is_moved, [i not in special for i in more])[:n].astype(bool),
        [*known.column, *none][:n],
        [*known.start, *none][:n],
        [*known.end, *none][:n],
        [*known.word, *none][:n],
        [*known.token, *(tokenizer.decode([i]) for i in more)][:n],
    )


def words_of(text: str) -> list[tuple[int, int]]:
    """First and behind-last character of every word."""
    return [match.span() for match in _WORD.finditer(text)]


def _spans(measurement: Measurement, first: str, second: str | None) -> list[tuple[int, int, int]]:
    """Column, first and behind-last character of each token of a row."""
    spec, tokenizer = measurement.spec, measurement.tokenizer
    if measurement.reads_prompt and spec.prompt is not None:
        return prompt_offsets(
            tokenizer, spec.prompt, first, second, spec.max_length, measurement.is_masked
        )
    if measurement.reads_completion:
        keeps_end = spec.truncation_mode == "keep_end"
        return completion_offsets(
            tokenizer, first, second, measurement.form, spec.max_length, keeps_end
        )
    if measurement.reads_question:
        # The second column, the question, is read first.
        encoded = encode_question(tokenizer, second, first, spec.max_length)
        parts = [None if part is None else 1 - part for part in encoded.sequence_ids(0)]
    else:
        (one,), (other,) = plain_texts([first], [second], measurement.form)
        encoded = tokenizer(
            one, other, truncation=True, max_length=spec.max_length, return_offsets_mapping=True
        )
        parts = encoded.sequence_ids(0)
    spans = [
        NOWHERE if part is None else (part, start, end)
        for part, (start, end) in zip(parts, encoded["offset_mapping"], strict=True)
    ]
    if measurement.form == "prompt_completion":
        # The two are read as one text.
        cut = len(first)
        spans = [(1, s - cut, e - cut) if c == 0 and s >= cut else (c, s, e) for c, s, e in spans]
    if measurement.form == "messages":
        spans = [SOMEWHERE if c >= 0 else (c, s, e) for c, s, e in spans]
    return spans


def _places(
    tokenizer: Any, ids: Sequence[int], spans: list[tuple[int, int, int]], texts: tuple[str, str]
) -> Places:
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
            known = where == SOMEWHERE[0]
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
    moved = np.array([where != NOWHERE[0] for where, _, _ in spans], dtype=bool)
    return Places(moved, column, start, end, word, token)
