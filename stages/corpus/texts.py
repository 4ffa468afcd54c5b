"""The text of a row: a text, a pair, a prompt with its completion, a conversation, two answers.

Each of these is stored in two columns, `text` and `text_b`. A conversation is stored in `text` as
compact JSON (`stages.corpus.conversations`). In `text_b` are the tools that the assistant may call,
from a column `tools`, which is carried along, too; null without any. Of a preference both answers
are in `text_b` (`stages.corpus.preferences`).
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, is_text
from stages.corpus.conversations import TOOLS, read_conversation
from stages.corpus.forms import ALPACA, ALPACA_WITH_INPUT, CONVERSATIONS, INPUT, Form
from stages.corpus.preferences import read_pair
from stages.corpus.reasons import mark
from stages.corpus.source import Source

Format = Literal["text", "prompt_completion", "messages", "preference", "preference_messages"]
"""Content of the two columns."""


class Texts(NamedTuple):
    """The text columns of all rows of a source; the cells of rejected rows are meaningless."""

    text: pa.ChunkedArray
    text_b: pa.ChunkedArray
    format: Format


def read_texts(source: Source, form: Form, loaded: SourceRows, reasons: np.ndarray) -> Texts:
    """The texts of every row; rows whose texts are missing or malformed are marked in `reasons`.

    `source` names exactly the columns to read, which hold `form`
    (`stages.corpus.columns.with_columns`, `stages.corpus.forms.form_of`). Rows of a source without
    a text column get the empty text.
    """
    n_rows = loaded.table.num_rows
    none = pa.chunked_array([pa.nulls(n_rows, pa.string())])
    if form == "preference" or form == "preference_messages":
        return Texts(*_preferences(source, form, loaded, reasons), form)
    if form in CONVERSATIONS:
        return Texts(*_conversations(source, form, loaded, reasons), "messages")
    if source.prompt and source.completion:
        if form == "alpaca":
            prompt = _alpaca_prompts(source, loaded, reasons)
        else:
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


def _conversations(
    source: Source, form: Form, loaded: SourceRows, reasons: np.ndarray
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Conversations and their tools, where there is a column `tools`; marks unusable rows."""
    nothing: list[Any] = [None] * loaded.table.num_rows
    prompts, cells = nothing, nothing
    if form == "prompt_as_message":
        said = _strings(loaded, str(source.prompt), reasons, "prompt", may_be_empty=True)
        prompts = [[{"role": "user", "content": text}] for text in said.to_pylist()]
        said = _strings(loaded, str(source.completion), reasons, "completion")
        cells = [[{"role": "assistant", "content": text}] for text in said.to_pylist()]
    elif form == "prompt_and_messages":
        prompts, cells = (_written(loaded, str(n)) for n in (source.prompt, source.completion))
        for what, column in (("prompt", source.prompt), ("completion", source.completion)):
            mark(reasons, loaded.table[column].is_null(), f"null {what}")
    else:
        cells = _written(loaded, str(source.messages))
    tools = _written(loaded, TOOLS) if TOOLS in loaded.table.column_names else nothing
    read = [
        read_conversation(cell, of_tools, source.turns, prompt)
        for cell, of_tools, prompt in zip(cells, tools, prompts, strict=True)
    ]
    found = np.array([conversation.reason for conversation in read], dtype=object)
    for reason in sorted({conversation.reason for conversation in read} - {""}):
        mark(reasons, found == reason, reason)
    texts = pa.array([conversation.text for conversation in read], pa.string())
    text_of_tools = pa.array([conversation.tools for conversation in read], pa.string())
    return pa.chunked_array([texts]), pa.chunked_array([text_of_tools])


def _preferences(
    source: Source, form: Form, loaded: SourceRows, reasons: np.ndarray
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Prompts, and the chosen and the rejected answers; marks unusable rows."""
    nothing: list[Any] = [None] * loaded.table.num_rows
    if source.prompt is not None and loaded.is_typed:  # An empty cell of CSV is an empty prompt.
        cells = loaded.table[source.prompt]
        # Beside messages a prompt that is a text is not read.
        if form == "preference" or not is_text(cells.type) or source.prompt in loaded.mixed:
            mark(reasons, cells.is_null(), "null prompt")
    columns = []
    for name in (source.chosen, source.rejected, source.prompt, TOOLS):
        is_there = name is not None and name in loaded.table.column_names
        columns.append(_written(loaded, str(name)) if is_there else nothing)
    if source.prompt is not None and not loaded.is_typed:
        columns[2] = [cell or "" for cell in columns[2]]
    read = [read_pair(form, *cells) for cells in zip(*columns, strict=True)]
    found = np.array([pair.reason for pair in read], dtype=object)
    for reason in sorted({pair.reason for pair in read} - {""}):
        mark(reasons, found == reason, reason)
    texts, pairs = (pa.array([pair[at] for pair in read], pa.string()) for at in (0, 1))
    return pa.chunked_array([texts]), pa.chunked_array([pairs])


def _written(loaded: SourceRows, name: str) -> list[Any]:
    """The cells of a column of messages or tools, with the keys that were written.

    Objects of one type have the keys of all, null where one had none: an argument that only another
    call has is no argument.
    """
    cells, kind = loaded.values(name), loaded.table[name].type
    if name in loaded.mixed or not pa.types.is_nested(kind):
        return cells
    return [_without_nulls(cell, kind) for cell in cells]


def _without_nulls(cell: Any, kind: pa.DataType) -> Any:
    if cell is not None and pa.types.is_struct(kind):
        own = [field for field in kind if cell[field.name] is not None]
        return {field.name: _without_nulls(cell[field.name], field.type) for field in own}
    if cell is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return [_without_nulls(item, kind.value_type) for item in cell]
    return cell


def _alpaca_prompts(source: Source, loaded: SourceRows, reasons: np.ndarray) -> pa.ChunkedArray:
    """The prompts of rows with an instruction and perhaps an input, as Alpaca lays them out."""
    instructions = _strings(loaded, str(source.prompt), reasons, "instruction").to_pylist()
    inputs: list[Any] = [None] * len(instructions)
    if INPUT in loaded.table.column_names:
        inputs = loaded.values(INPUT)
        is_odd = [not isinstance(cell, str | None) for cell in inputs]
        mark(reasons, np.array(is_odd, dtype=bool), "text is not a string")
    prompts = [
        ALPACA_WITH_INPUT.format(instruction=instruction, input=cell)
        if isinstance(cell, str) and cell.strip()
        else ALPACA.format(instruction=instruction)
        for instruction, cell in zip(instructions, inputs, strict=True)
    ]
    return pa.chunked_array([pa.array(prompts, pa.string())])
