"""Conversations in the cells of a source, as rows hold them, and which messages are learned.

A cell is a list of messages, or its JSON. A message is {role, content}, or {from, value} as in
ShareGPT. A row holds compact JSON: a list of objects with role and content first, then any other
key that is not null.

All messages of the assistant are learned but those with a mark: `weight: 0` (fine-tuning files of
OpenAI) or `train: false` (Axolotl). Which turns a corpus learns is written into its rows as such
marks, so a row says of itself what is learned of it.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from stages.corpus.cells import as_json, is_broken

TOOLS = "tools"
"""Column of the functions that a conversation may call, by the name that trainers give it."""
Turns = Literal["all", "last"]
"""Which messages of the assistant a corpus learns."""
MARKS = ("weight", "train")
"""Keys of a message that say whether it is learned; no part of the conversation itself."""
_INNER_MARKS = ("train_detail",)
"""Keys that say it of parts of a message."""
ASSISTANT = "assistant"
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), ASSISTANT),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "function_call": ASSISTANT,
}
"""The role of a message by who it is `from` in ShareGPT."""

MALFORMED = "messages are not a list of {role, content}"
UNKNOWN_SPEAKER = "messages from others than human, gpt, system or tool"
NO_CALL = "messages with a function_call that is no JSON of a function"
NO_TEXT = "messages with a part that is no text, such as an image"
WRONG_MARK = "messages with a weight that is not 0 or 1, or train that is not true or false"
INNER_MARK = "messages with marks for parts of them (train_detail)"
MARKED_OTHERS = "messages of others than the assistant are marked to be learned"
NO_ASSISTANT = "messages without an assistant's"
NONE_LEARNED = "messages of which none is to be learned"
EMPTY = "messages of the assistant are empty"
NO_TOOLS = "tools are not a list of functions"
REASONS = (
    *(MALFORMED, UNKNOWN_SPEAKER, NO_CALL, NO_ASSISTANT, NO_TEXT, WRONG_MARK, INNER_MARK),
    *(MARKED_OTHERS, NONE_LEARNED, EMPTY, NO_TOOLS),
)
"""Why a conversation is no row to learn from."""


class Conversation(NamedTuple):
    """The conversation in a cell, with its tools, as they are stored."""

    text: str | None
    """None where there is none."""
    tools: str | None = None
    reason: str = ""
    """Why it is no row to learn from; empty where it is one."""


class _Refused(Exception):
    """A cell holds no conversation; the message is one of `REASONS`."""


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether a model is trained to write a message: an assistant's that no mark leaves out."""
    return message["role"] == ASSISTANT and all(message.get(mark, True) for mark in MARKS)


def said(message: Mapping[str, Any]) -> str:
    """What a message says: its text, and a line for each function that it calls, with arguments.

    Ids of calls, which differ where nothing else does, are left out.
    """
    lines = [message.get("content") or ""]
    for function in functions_called(message):
        arguments = function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else as_json(arguments)
        lines.append(f"{function.get('name')} {text}")
    return "\n".join(line for line in lines if line)


def functions_called(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The functions that a message calls: name and arguments of each."""
    calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
    functions = [call.get("function", call) for call in calls]
    return [function for function in functions if isinstance(function, dict)]


def read_conversation(
    messages: Any, tools: Any = None, turns: Turns = "all", prompt: Any = None
) -> Conversation:
    """The conversation in a cell: a list of messages or its JSON; `tools` likewise.

    In every message role and content come first, and null values are left out. Content that is a
    list of parts is the text of all parts; of a message that only calls tools it is empty. Messages
    of a `prompt` come before, and none of them is learned.
    """
    if messages is None:
        return Conversation(None, reason="null messages")
    try:
        stored = _messages(messages)
        before = _messages(prompt) if prompt else []
        read_tools = _tools(tools)
    except _Refused as refused:
        return Conversation(None, reason=str(refused))
    if turns == "last":
        last = max((at for at, m in enumerate(stored) if m["role"] == ASSISTANT), default=0)
        stored = [_left_out(m) if at < last else m for at, m in enumerate(stored)]
    stored = [*map(_left_out, before), *stored]
    text, text_of_tools = as_json(stored), as_json(read_tools) if read_tools else None
    if is_broken(text + (text_of_tools or "")):
        return Conversation(None, reason="not UTF-8")
    return Conversation(text, text_of_tools, _nothing_to_learn(stored))


def listed(cell: Any) -> list[Any] | None:
    """The list in a cell, or in its JSON; None where it holds none."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return cell if isinstance(cell, list) else None


def has_messages(cell: Any) -> bool:
    """Whether there are messages in a cell, or in its JSON, whatever else is to be said of them."""
    found = listed(cell)
    return bool(found) and all(
        isinstance(item, dict) and ("role" in item or {"from", "value"} <= set(item))
        for item in found or ()
    )


def _nothing_to_learn(messages: list[dict[str, Any]]) -> str:
    """Why there is nothing to learn of a conversation; empty where there is."""
    learned = [message for message in messages if is_learned(message)]
    if any(message["content"].strip() or message.get("tool_calls") for message in learned):
        return ""
    if learned:
        return EMPTY
    has_any = any(message["role"] == ASSISTANT for message in messages)
    return NONE_LEARNED if has_any else NO_ASSISTANT


def _left_out(message: dict[str, Any]) -> dict[str, Any]:
    """The message with a mark that it is not learned, where it would be."""
    return {**message, "train": False} if is_learned(message) else message


def _messages(cell: Any) -> list[dict[str, Any]]:
    """The messages in a cell as they are stored.

    Raises:
        _Refused: the cell holds no messages, or one that cannot be read.
    """
    found = listed(cell)
    if not found:
        raise _Refused(MALFORMED)
    return [_message(message) for message in found]


def _message(message: Any) -> dict[str, Any]:
    if isinstance(message, dict) and "role" not in message and {"from", "value"} <= set(message):
        message = _of_sharegpt(message)
    if not _is_message(message):
        raise _Refused(MALFORMED)
    content = _content(message)
    if content is None:
        raise _Refused(NO_TEXT)
    others = {k: v for k, v in message.items() if v is not None and k not in ("role", "content")}
    _check_marks(message["role"], others)
    return {"role": message["role"], "content": content, **others}


def _of_sharegpt(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the role and content that it has in ShareGPT."""
    speaker, value = message["from"], message["value"]
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise _Refused(UNKNOWN_SPEAKER)
    others = {key: cell for key, cell in message.items() if key not in ("from", "value")}
    if speaker != "function_call":
        return {"role": ROLES[speaker], "content": value, **others}
    try:
        found = json.loads(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise _Refused(NO_CALL) from error
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and call.get("name") for call in calls):
        raise _Refused(NO_CALL)
    called = [{"type": "function", "function": call} for call in calls]
    return {"role": ROLES[speaker], "content": "", **others, "tool_calls": called}


def _check_marks(role: str, keys: Mapping[str, Any]) -> None:
    marks = [keys[mark] for mark in MARKS if mark in keys]
    if any(isinstance(mark, str) or mark not in (0, 1) for mark in marks):
        raise _Refused(WRONG_MARK)
    if any(keys.get(mark) for mark in _INNER_MARKS):
        raise _Refused(INNER_MARK)
    if role != ASSISTANT and any(marks):
        raise _Refused(MARKED_OTHERS)


def _tools(cell: Any) -> list[Any]:
    found = [] if cell is None or cell in ("", "null") else listed(cell)
    if found is None or not all(isinstance(tool, dict) for tool in found):
        raise _Refused(NO_TOOLS)
    return found


def _is_message(message: Any) -> bool:
    """Whether this is a message with a role, and with content or calls of tools."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if content is None:
        return message["role"] == ASSISTANT and bool(message.get("tool_calls"))
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
