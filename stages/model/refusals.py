"""Rows that a model cannot read, found before anything is computed.

A tokenizer may drop all characters of a text, such as U+200B alone or letters that it does not
know, and a chat template may refuse a conversation.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from stages.model.chats import lay_out, parsed
from stages.model.hub import resolve
from stages.model.spec import ModelSpec
from stages.stage import RefusedRow

_FILES = (".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken")


def has_token(tokenizer: Any) -> Callable[[str], bool]:
    """A function that says whether the tokenizer finds a token in a text, special ones aside.

    A text with a character that gives a token by itself has one; other texts are tokenised. Cost:
    below a microsecond a text, and 100 for each character that is new.
    """
    known: dict[str, bool] = {}

    def finds(text: str) -> bool:
        return bool(tokenizer(text, add_special_tokens=False)["input_ids"])

    def is_known(character: str) -> bool:
        if character not in known:
            known[character] = finds(character)
        return known[character]

    return lambda text: any(map(is_known, text)) or finds(text)


def chat_refusal(tokenizer: Any, text: str, tools: str | None) -> str | None:
    """Why the chat template refuses a row of conversations; None where it does not.

    Raises:
        ModelError: there is no chat template.
    """
    try:
        lay_out(tokenizer, *parsed(text, tools))
    except RefusedRow as refused:
        return refused.reason
    return None


def reading_fingerprint(model: ModelSpec) -> str:
    """16 hex digits that identify how the model reads texts: tokenizer, templates, no weights.

    Raises:
        ModelError: as `stages.model.hub.resolve`.
    """
    folder, total = resolve(model), hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _FILES):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        total.update(str(path.relative_to(folder)).encode() + b"\0" + content)
    return total.hexdigest()[:16]
