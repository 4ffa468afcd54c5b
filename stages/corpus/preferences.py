"""Preference pairs: a prompt, the answer that was chosen for it, and the one that was rejected.

Both answers are texts, or lists of messages as in TRL. The prompt is a column of the same kind, or
implicit: what both answers begin with, a run of characters or of whole messages. Beside lists of
messages a prompt that is a text is not read, as TRL does not. All pairs of a corpus are of one
kind; lists of messages may be JSON, as CSV has them.

A row holds the prompt in `text`, of messages as JSON, and in `text_b` a JSON object with `chosen`
and `rejected`, of messages also `tools` where there are some. A **side** is the prompt with one of
the answers, in the form of a row of completions: `sides` gives both, and what is computed of such
rows serves pairs, too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from stages.corpus.cells import is_broken
from stages.corpus.conversations import listed, read_conversation

Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, Side] = ("chosen", "rejected")
SIDE_FORMS: Mapping[str, str] = {
    "preference": "prompt_completion",
    "preference_messages": "messages",
}
"""The form of a side, by that of the pair."""

SAME = "chosen and rejected are the same"
REASONS = (
    *("null chosen", "null rejected", "empty chosen", "empty rejected"),
    *("chosen and rejected are not of one kind", SAME),
    "chosen and rejected are of another kind than in the first row",
)
"""Why two answers are no pair to learn from, beside the reasons of their conversations."""
_OTHER_KIND, _OTHER_FORM = REASONS[4], REASONS[6]

_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Pair(NamedTuple):
    """A pair as it is stored."""

    text: str | None
    """The prompt; None where there is no pair."""
    text_b: str | None = None
    reason: str = ""
    """Why it is no pair to learn from; empty where it is one."""


class Row(NamedTuple):
    """The text columns of a side, which is a row of completions."""

    text: str
    pair: str | None


def read_pair(form: str, chosen: Any, rejected: Any, prompt: Any = None, tools: Any = None) -> Pair:
    """The pair in the cells of a row, in a corpus of the form `form`, a key of `SIDE_FORMS`.

    An implicit prompt of texts leaves a space before the answers to these, as in TRL.
    """
    for name, cell in zip(SIDES, (chosen, rejected), strict=True):
        if cell is None:
            return Pair(None, reason=f"null {name}")
    if form == "preference_messages":
        chosen, rejected, prompt = map(_as_list, (chosen, rejected, prompt))
    if {type(chosen), type(rejected)} not in ({str}, {list}):
        return Pair(None, reason=_OTHER_KIND)
    if isinstance(chosen, str) != (form == "preference"):
        return Pair(None, reason=_OTHER_FORM)
    if isinstance(chosen, str):
        return _of_texts(chosen, rejected, prompt)
    return _of_messages(chosen, rejected, prompt, tools)


def sides(text: str, text_b: str | None, form: str) -> tuple[Row, Row]:
    """The chosen and the rejected side of a stored pair, rows of the form `SIDE_FORMS[form]`."""
    pair: dict[str, Any] = json.loads(text_b or "{}")
    if form == "preference":
        return Row(text, pair["chosen"]), Row(text, pair["rejected"])
    prompt, tools = json.loads(text), pair.get("tools")
    told = None if tools is None else _dump(tools)
    first, second = (Row(_dump([*prompt, *pair[side]]), told) for side in SIDES)
    return first, second


def side_columns(
    texts: Sequence[str], pairs: Sequence[str | None], form: str
) -> tuple[list[str], list[str | None]]:
    """The text columns of all sides of stored pairs, two rows for each: chosen, rejected."""
    rows = [side for row in zip(texts, pairs, strict=True) for side in sides(*row, form)]
    return [row.text for row in rows], [row.pair for row in rows]


def swapped(text_b: str) -> str:
    """What is stored of a pair whose answers change places."""
    pair: dict[str, Any] = json.loads(text_b)
    return _dump({**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]})


def _as_list(cell: Any) -> Any:
    """The list in a cell that is its JSON; any other cell as it is."""
    found = listed(cell)
    return cell if found is None else found


def _of_texts(chosen: str, rejected: str, prompt: Any) -> Pair:
    if chosen == rejected:
        return Pair(None, reason=SAME)
    if not isinstance(prompt, str):
        n = _n_shared(chosen, rejected)
        n -= n > 0 and chosen[n - 1] == " "
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    for name, answer in zip(SIDES, (chosen, rejected), strict=True):
        if not answer.strip():
            return Pair(None, reason=f"empty {name}")
    if is_broken(prompt + chosen + rejected):
        return Pair(None, reason="not UTF-8")
    return Pair(prompt, _dump({"chosen": chosen, "rejected": rejected}))


def _of_messages(chosen: list[Any], rejected: list[Any], prompt: Any, tools: Any) -> Pair:
    if chosen == rejected:
        return Pair(None, reason=SAME)
    if not isinstance(prompt, list):
        n = _n_shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    answers, before, told = {}, "[]", None
    for name, messages in zip(SIDES, (chosen, rejected), strict=True):
        if not messages:
            return Pair(None, reason=f"empty {name}")
        read = read_conversation(messages, tools, "all", prompt)
        if read.reason or read.text is None:
            return Pair(None, reason=read.reason)
        stored = json.loads(read.text)
        before, answers[name] = _dump(stored[: len(prompt)]), stored[len(prompt) :]
        told = read.tools
    if answers["chosen"] == answers["rejected"]:
        return Pair(None, reason=SAME)
    return Pair(before, _dump({**answers, **({"tools": json.loads(told)} if told else {})}))


def _n_shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
