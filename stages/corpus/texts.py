"""The text of a row: one text, a pair, a prompt with its completion, or a conversation.

Each of these is stored in two columns, `text` and `text_b`. A conversation is stored in `text` as
compact JSON: a list of objects with role and content first, then any other key that is not null.
"""

import json
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SURROGATE, SourceRows, is_text
from stages.corpus.reasons import mark
from stages.corpus.source import Source

Format = Literal["text", "prompt_completion", "messages"]


class Texts(NamedTuple):
    """The text columns of all rows of a source; the cells of rejected rows are meaningless."""

    text: pa.ChunkedArray
    text_b: pa.ChunkedArray
    format: Format


def read_texts(source: Source, loaded: SourceRows, reasons: np.ndarray) -> Texts:
    """The texts of every row; rows whose texts are missing or malformed are marked in `reasons`.

    `source` names exactly the columns to read, as `stages.corpus.columns.with_columns` returns it.
    Rows of a source without a text column get the empty text.
    """
    n_rows = loaded.table.num_rows
    none = pa.chunked_array([pa.nulls(n_rows, pa.string())])
    if source.messages:
        return Texts(_conversations(loaded, source.messages, reasons), none, "messages")
    if source.prompt and source.completion:
        prompt = _strings(loaded, source.prompt, reasons, "prompt", may_be_empty=True)
        completion = _strings(loaded, source.completion, reasons, "completion")
        return Texts(prompt, completion, "prompt_completion")
    text_b = none
    if source.text is None:
        text = pa.chunked_array([pa.repeat(pa.scalar(""), n_rows)])
    else:
        text = _strings(loaded, source.text, reasons, "text")
    if source.text_b:
        text_b = _strings(loaded, source.text_b, reasons, "second text")
    return Texts(text, text_b, "text")


def _strings(
    loaded: SourceRows, name: str, reasons: np.ndarray, which: str, may_be_empty: bool = False
) -> Any:
    """The column `name` as strings, with its unusable rows marked in `reasons`.

    Unusable are null, other types than strings and, unless `may_be_empty`, empty strings; `which`
    is the word for the column in the reasons.
    """
    column = loaded.table[name]
    if may_be_empty and not loaded.is_typed:
        column = pc.fill_null(column, "")  # CSV does not tell an empty cell from none.
    mark(reasons, column.is_null(), f"null {which}")
    if name in loaded.mixed:
        values = loaded.values(name)
        mark(reasons, np.array([v is None for v in values], dtype=bool), f"null {which}")
        texts = [v if isinstance(v, str) else None for v in values]
        column = pa.chunked_array([pa.array(texts, pa.string())])
    elif not is_text(column.type):
        column = pa.chunked_array([pa.nulls(len(column), pa.string())])
    column = pc.cast(column, pa.string())
    mark(reasons, column.is_null(), "text is not a string")
    if not may_be_empty:
        is_empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
        mark(reasons, pc.fill_null(is_empty, False), f"empty {which}")
    return column


def _conversations(loaded: SourceRows, name: str, reasons: np.ndarray) -> pa.ChunkedArray:
    cells = loaded.values(name)
    mark(reasons, np.array([cell is None for cell in cells], dtype=bool), "null messages")
    conversations = [_messages(cell) for cell in cells]
    malformed = np.array([messages is None for messages in conversations], dtype=bool)
    mark(reasons, malformed, "messages are not a list of {role, content}")
    has_assistant = [
        any(m["role"] == "assistant" for m in messages or ()) for messages in conversations
    ]
    mark(reasons, ~np.array(has_assistant, dtype=bool), "messages without an assistant's")
    dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    texts = [None if messages is None else dump(messages) for messages in conversations]
    broken = np.array([bool(text and SURROGATE.search(text)) for text in texts], dtype=bool)
    mark(reasons, broken, "not UTF-8")
    whole = [None if is_broken else text for text, is_broken in zip(texts, broken, strict=True)]
    return pa.chunked_array([pa.array(whole, pa.string())])


def _messages(cell: Any) -> list[dict[str, Any]] | None:
    """The conversation in a cell, a list of messages or its JSON; None where the cell holds none.

    In every message role and content come first, and null values are left out.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    if not isinstance(cell, list) or not cell:
        return None
    for message in cell:
        if not isinstance(message, dict):
            return None
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            return None
    return [
        {"role": m["role"], "content": m["content"]}
        | {key: value for key, value in m.items() if value is not None}
        for m in cell
    ]
