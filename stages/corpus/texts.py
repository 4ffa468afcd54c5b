"""The text of a row: one text, a pair, a prompt with its completion, or a conversation.

Each of these is stored in two columns, `text` and `text_b`. A conversation is stored in `text` as
compact JSON: a list of objects with role and content first, then any other key that is not null. In
`text_b` are the tools that the assistant may call, from a column `tools`, which is carried along,
too; null without any.
"""

import json
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, is_broken, is_text
from stages.corpus.reasons import mark
from stages.corpus.source import Source

TOOLS = "tools"
"""Column of the functions that a conversation may call, by the name that trainers give it."""
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
        return Texts(*_conversations(loaded, source.messages, reasons), "messages")
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


class Conversation(NamedTuple):
    """The conversation in a cell, with its tools, as they are stored."""

    text: str | None
    """None where there is none."""
    tools: str | None = None
    reason: str = ""
    """Why it is no row to learn from; empty where it is one."""


def read_conversation(messages: Any, tools: Any = None) -> Conversation:
    """The conversation in a cell: a list of messages or its JSON; `tools` likewise.

    In every message role and content come first, and null values are left out. Content that is a
    list of parts is the text of all parts; of a message that only calls tools it is empty.
    """
    if messages is None:
        return Conversation(None, reason="null messages")
    found = _parsed(messages)
    if not found or not all(_is_message(message) for message in found):
        return Conversation(None, reason="messages are not a list of {role, content}")
    contents = [_content(message) for message in found]
    if None in contents:
        reason = "messages with a part that is no text, such as an image"
        return Conversation(None, reason=reason)
    has_tools = tools is not None and tools not in ("", "null")
    read_tools = _parsed(tools) if has_tools else []
    if read_tools is None or not all(isinstance(tool, dict) for tool in read_tools):
        return Conversation(None, reason="tools are not a list of functions")
    stored = [
        {"role": m["role"], "content": content}
        | {key: value for key, value in m.items() if value is not None and key != "content"}
        for m, content in zip(found, contents, strict=True)
    ]
    dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    text, text_of_tools = dump(stored), dump(read_tools) if read_tools else None
    if is_broken(text + (text_of_tools or "")):
        return Conversation(None, reason="not UTF-8")
    said = [
        bool(m["content"].strip() or m.get("tool_calls"))
        for m in stored
        if m["role"] == "assistant"
    ]
    reason = "messages of the assistant are empty" if said else "messages without an assistant's"
    return Conversation(text, text_of_tools, "" if any(said) else reason)


def _conversations(
    loaded: SourceRows, name: str, reasons: np.ndarray
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Conversations and their tools, where there is a column `tools`; marks unusable rows."""
    cells = loaded.values(name)
    tools = loaded.values(TOOLS) if TOOLS in loaded.table.column_names else [None] * len(cells)
    read = [read_conversation(*row) for row in zip(cells, tools, strict=True)]
    found = np.array([conversation.reason for conversation in read], dtype=object)
    for reason in sorted({conversation.reason for conversation in read} - {""}):
        mark(reasons, found == reason, reason)
    texts = pa.array([conversation.text for conversation in read], pa.string())
    of_tools = pa.array([conversation.tools for conversation in read], pa.string())
    return pa.chunked_array([texts]), pa.chunked_array([of_tools])


def _parsed(cell: Any) -> list[Any] | None:
    """The list in a cell, or in its JSON; None where it holds none."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return cell if isinstance(cell, list) else None


def _is_message(message: Any) -> bool:
    """Whether this is a message with a role, and with content or calls of tools."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if content is None:
        return message["role"] == "assistant" and bool(message.get("tool_calls"))
    is_list = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    return isinstance(content, str) or is_list


def _content(message: dict[str, Any]) -> str | None:
    """The text of a message; None where one of its parts is no text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    texts = [part.get("text") for part in content if part.get("type") == "text"]
    is_text = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if is_text else None
