"""Rows that a model cannot read, found before anything is computed.

A tokenizer may drop all characters of a text, such as U+200B alone or letters that it does not
know, and a chat template may refuse a conversation.
"""

import hashlib
from typing import Any

from stages.model.chats import lay_out, parsed
from stages.model.first_part import LONG
from stages.model.hub import ModelFiles, content_digest, resolve
from stages.model.spec import ModelSpec
from stages.stage import RefusedRow

WITHOUT = "without a token"
"""The reason to refuse a text of which the tokenizer leaves nothing."""
UNKNOWN = "\U0010fffd"
"""A character for private use, which a vocabulary hardly has."""
_FILES = (".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken")


class TextCheck:
    """What a tokenizer cannot read of texts: those without a token, and those on which it fails.

    A text with a character that gives a token by itself has one; other texts are tokenised, and all
    of them by a tokenizer that fails on a letter that no vocabulary has. Cost: below a microsecond
    a text, and 100 for each character that is new or each text that is tokenised.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bool] = {}
        self.adds_tokens = bool(tokenizer("")["input_ids"])
        try:
            self._finds(UNKNOWN)
        except Exception:  # Tokenizers raise bare exceptions.
            self.may_fail = True
        else:
            self.may_fail = False

    def refusal(self, text: str) -> str | None:
        """Why the text cannot be read; None where it can."""
        if not self.may_fail and any(map(self._is_known, text)):
            return None
        try:
            # Of a long text the start tells, as a rule.
            return None if self._finds(text[:LONG]) or self._finds(text) else WITHOUT
        except Exception as error:  # As above.
            return f"that its tokenizer fails on: {' '.join(str(error).split())}"

    def _is_known(self, character: str) -> bool:
        if character not in self._known:
            self._known[character] = self._finds(character)
        return self._known[character]

    def _finds(self, text: str) -> bool:
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return bool(encoded["input_ids"])


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


def reading_fingerprint(model: ModelSpec | ModelFiles) -> str:
    """16 hex digits that identify how the model reads texts: tokenizer, templates, no weights.

    Raises:
        ModelError: as `stages.model.hub.resolve`.
    """
    folder, total = resolve(model), hashlib.sha256()
    kinds = (*_FILES, ".py") if model.trust_remote_code else _FILES
    files = [*folder.glob("*"), *folder.glob("additional_chat_templates/*")]
    for path in sorted(path for path in files if path.suffix in kinds):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + content_digest(path))
    return total.hexdigest()[:16]
