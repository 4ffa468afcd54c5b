"""The form of rows to learn from: what their columns hold, and which columns these are by name.

| form | columns |
|---|---|
| text | texts |
| prompt_completion | a prompt and a completion as texts |
| prompt_as_message | the same, read as conversations of two messages |
| prompt_and_messages | a prompt and a completion that are lists of messages, as in TRL |
| alpaca | an instruction, perhaps an input, and an output |
| messages | conversations of messages {role, content} |
| sharegpt | conversations of messages {from, value} |
| preference | two answers as texts, of which one was chosen, perhaps with their prompt |
| preference_messages | the same as lists of messages, as in TRL |
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from stages.corpus.cells import SourceRows, is_text
from stages.corpus.conversations import has_messages
from stages.corpus.source import LABELLED, Source
from stages.stage import DataError

Form = Literal[
    "text",
    "prompt_completion",
    "prompt_as_message",
    "prompt_and_messages",
    "alpaca",
    "messages",
    "sharegpt",
    "preference",
    "preference_messages",
]
CONVERSATIONS: tuple[Form, ...] = (
    *("prompt_as_message", "prompt_and_messages"),
    *("messages", "sharegpt"),
)
"""Forms whose rows are conversations."""
PAIRS: tuple[Form, ...] = ("preference", "preference_messages")
"""Forms whose rows are preferences."""
CARRIED: tuple[Form, ...] = (*CONVERSATIONS, "alpaca", *PAIRS)
"""Forms of which a row's text is made of cells that it does not hold as they were, which are hence
carried along: a conversation is stored without nulls and with the parts of its texts joined."""
INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"
SHAREGPT = ("conversations", "conversation")
"""Columns that are taken as conversations without being named."""
_DECIDING = {"system", "history"}
"""Columns beside which those of ShareGPT and Alpaca do not hold all of a conversation."""
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""Source: github.com/tatsu-lab/stanford_alpaca, README, "Data Release"."""
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
"""Source: as above, for an empty input."""


def completion_columns(source: Source, found: Sequence[str]) -> Source:
    """A source of completions that names exactly its columns; `found` are those that are there.

    Raises:
        DataError: the source names no column, and has none of a default name.
    """
    if source.prompt or source.messages:
        return replace(source, text=None)
    if source.text not in (None, "text"):
        return source
    if {"prompt", "completion"} <= set(found):
        return replace(source, prompt="prompt", completion="completion", text=None)
    if "messages" in found:
        return replace(source, messages="messages", text=None)
    if source.text in found:
        return source
    if not _DECIDING & set(found):
        talks = [name for name in SHAREGPT if name in found]
        if talks:
            return replace(source, messages=talks[0], text=None)
        if {INSTRUCTION, OUTPUT} <= set(found):
            return replace(source, prompt=INSTRUCTION, completion=OUTPUT, text=None)
    raise DataError(
        f"{source.path}: found the columns {', '.join(found)}, expected prompt and completion, "
        "messages, text, or, where no system or history stands beside them, conversations, or "
        "instruction and output among them for task: completion. Name the columns of one of these "
        "forms."
    )


def preference_columns(source: Source, found: Sequence[str]) -> Source:
    """A source of preferences that names exactly its columns; `found` are those that are there.

    Its prompt is one of them where it is named, or where there is a column `prompt`.
    """
    prompt = source.prompt or ("prompt" if "prompt" in found else None)
    chosen, rejected = source.chosen or "chosen", source.rejected or "rejected"
    return replace(source, text=None, prompt=prompt, chosen=chosen, rejected=rejected)


def form_of(
    given: Source,
    source: Source,
    empty: SourceRows,
    first: Callable[[str], Any],
    as_messages: bool = False,
) -> Form:
    """What the columns of a source of any task hold.

    `given` is the source as it was configured, `source` names exactly its columns, `empty` has
    their types. `first` gives the first cell of a column that is not null; it is asked where the
    type does not tell. With `as_messages` prompts and completions are conversations, as the rows
    are that they are the queries of.

    Raises:
        DataError: of prompt and completion one is texts and one lists of messages, or `turns` is
            set for rows that are no conversations.
    """
    form = _form_of(given, source, empty, first)
    if as_messages and form == "prompt_completion":
        form = "prompt_as_message"
    if source.turns != "all" and form not in CONVERSATIONS:
        raise DataError(
            f"{source.path}: found turns: {source.turns} for rows that are no conversations, "
            "expected messages to choose from. Remove turns: a completion is learned whole."
        )
    return form


SECOND = ("text_b", "text2", "sentence2", "question2", "hypothesis")
"""Names that second texts have in data sets of pairs."""


def notice(given: Source, source: Source, form: Form, found: Sequence[str]) -> str | None:
    """A sentence about columns that were taken by name, where a person may have meant others."""
    if source.task in LABELLED and source.text is not None and source.text_b is None:
        second = [name for name in SECOND if name in found]
        if second:
            return (
                f"{source.path}: the column {second[0]} is not read. If rows are pairs of texts, "
                f"name it by `text_b: {second[0]}`, in corpus and queries."
            )
    if source.task != "completion":
        return None
    others = [name for name in (*SHAREGPT, INSTRUCTION, OUTPUT) if name in found]
    if form == "text" and source.text == "text" and others:
        return (
            f"{source.path}: the column text is read, all of it learned, and not "
            f"{' and '.join(others)}. Others are named by `messages:`, or by `prompt:` and "
            "`completion:`."
        )
    if given.messages is None and source.messages in SHAREGPT:
        return (
            f"{source.path}: the column {source.messages} is read as conversations. Another is "
            "named by `messages:`."
        )
    if form == "prompt_as_message":
        return (
            f"{source.path}: {source.prompt} and {source.completion} are read as a message of the "
            "user and one of the assistant, as the corpus holds conversations."
        )
    if form == "alpaca":
        return (
            f"{source.path}: instruction, input and output are read as prompts, in Alpaca's own "
            "words, with completions. For a chat template write them as messages; for other words, "
            "as prompt and completion."
        )
    return None


def _form_of(given: Source, source: Source, empty: SourceRows, first: Callable[[str], Any]) -> Form:
    if source.task == "preference":
        return _form_of_pairs(given, source, empty, first)
    if source.messages:
        cell = _example(source.messages, empty, first)
        is_talk = isinstance(cell, list) and cell and isinstance(cell[0], dict)
        return "sharegpt" if is_talk and "role" not in cell[0] and "from" in cell[0] else "messages"
    if not (source.prompt and source.completion):
        return "text"
    if given.prompt is None and source.prompt == INSTRUCTION:
        return "alpaca"
    names = (source.prompt, source.completion)
    if all(_holds_messages(name, empty, first) for name in names):
        return "prompt_and_messages"
    if not any(_holds_lists(name, empty, first) for name in names):
        return "prompt_completion"
    raise DataError(
        f"{source.path}: found lists in one of {source.prompt} and {source.completion} and texts "
        "in the other, expected texts in both, or lists of messages in both. Write the other as "
        '[{"role": ..., "content": ...}].'
    )


def _form_of_pairs(
    given: Source, source: Source, empty: SourceRows, first: Callable[[str], Any]
) -> Form:
    names = [name for name in (source.chosen, source.rejected, source.prompt) if name]
    are_messages = all(_holds_messages(name, empty, first) for name in names[:2])
    holds = _holds_messages if are_messages else _holds_lists
    hold = [holds(name, empty, first) for name in names]
    has_prompt = len(hold) > 2 and (given.prompt is not None or hold[2])
    if hold[0] != hold[1] or (has_prompt and hold[2] != hold[0]):
        told = ", ".join(
            f"{'lists' if is_list else 'texts'} in {name}"
            for name, is_list in zip(names, hold, strict=True)
        )
        raise DataError(
            f"{source.path}: found {told}, expected texts in all of them, or lists of messages in "
            'all. Write the others as [{"role": ..., "content": ...}], or leave the prompt out: '
            "what both answers begin with is then their prompt."
        )
    return "preference_messages" if hold[0] else "preference"


def _holds_lists(name: str, empty: SourceRows, first: Callable[[str], Any]) -> bool:
    is_plain = is_text(empty.table[name].type) and name not in empty.mixed
    return not is_plain and isinstance(_example(name, empty, first), list)


def _holds_messages(name: str, empty: SourceRows, first: Callable[[str], Any]) -> bool:
    """Whether the cells of a column are lists, or JSON of messages, as CSV has them."""
    return _holds_lists(name, empty, first) or has_messages(first(name))


def _example(name: str, empty: SourceRows, first: Callable[[str], Any]) -> Any:
    """A cell as others of the column are; JSON is parsed, and of a typed list the type is shown."""
    if name not in empty.table.column_names:
        return None
    kind = empty.table[name].type
    if name not in empty.mixed and _is_list(kind):
        item = kind.value_type
        keys = [item.field(at).name for at in range(item.num_fields)]
        return [dict.fromkeys(keys)] if pa.types.is_struct(item) else []
    if name not in empty.mixed and not is_text(kind):
        return None
    cell = first(name)
    try:
        return json.loads(cell) if isinstance(cell, str) and name not in empty.mixed else cell
    except (ValueError, RecursionError):
        return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
