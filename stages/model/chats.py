"""Conversations as a chat template lays them out, and which of their tokens are answers.

An answer is what the template writes for a message of the assistant: all that follows the opening
of the message, `add_generation_prompt`, up to the next message. A token is an answer's if one of
its characters is, so a token that crosses a border counts with the answer, as in the assistant
masks of transformers; a token that a tokenizer adds to its vocabulary, such as `<|assistant|>`,
counts where it begins, though it may swallow the line end behind it.
"""

import json
from typing import Any, NamedTuple

from stages.stage import ModelError, RefusedRow

Messages = list[dict[str, Any]]
EXPECTED = "a conversation that the chat template can lay out"


class Chat(NamedTuple):
    """A conversation as text."""

    text: str
    answers: list[tuple[int, int]]
    """Start and stop (exclusive) of each answer, in characters; ascending."""


def lay_out(tokenizer: Any, messages: Messages, tools: list[Any] | None = None) -> Chat:
    """The conversation in the tokenizer's chat template, which is given the tools, too.

    Cost: a rendering of the template for the whole and two for each message of the assistant, about
    50 microseconds each.

    Raises:
        RefusedRow: the template refuses the conversation, lays out earlier messages in another way
            when later ones follow, or leaves nothing of the assistant's messages; or the assistant
            speaks first.
        ModelError: there is no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "tokenizer: found no chat template, expected one because the corpus holds messages. "
            "Use an instruction-tuned model, or set chat_template in tokenizer_config.json."
        )

    def render(upto: int, asks: bool = False) -> str:
        """The first messages; with `asks` also the opening of the assistant's next."""
        try:
            text: str = tokenizer.apply_chat_template(
                messages[:upto], tools=tools, tokenize=False, add_generation_prompt=asks
            )
        except Exception as error:  # A template is a program, and may raise whatever it likes.
            words = " ".join(str(error).split()) or type(error).__name__
            raise RefusedRow(f"chat template: {words}", EXPECTED) from error
        return text

    whole = render(len(messages))
    answers, is_said = [], []
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if at == 0:
            raise RefusedRow(
                "chat template: it asks for no message of the assistant before all others", EXPECTED
            )
        before = render(at, asks=True)
        after = render(at + 1) if at + 1 < len(messages) else whole
        if not (after.startswith(before) and whole.startswith(after)):
            raise RefusedRow(
                "chat template: it lays out earlier messages in another way when later ones follow",
                EXPECTED,
            )
        answers.append((len(before), len(after)))
        answer = after[len(before) :]
        said = message["content"].strip()
        called = _called(message)
        if said or called:
            is_said.append(bool(said and answer) or any(name in answer for name in called))
    if is_said and not any(is_said):
        raise RefusedRow("chat template: it leaves nothing of the assistant's messages", EXPECTED)
    return Chat(whole, answers)


def tokenise_chat(
    tokenizer: Any, messages: Messages, tools: list[Any] | None = None
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and whether each is a token of an answer.

    Raises:
        RefusedRow: as `lay_out`.
        ModelError: as `lay_out`, or the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer: found one without character offsets ({type(tokenizer).__name__}), "
            "expected a fast one because the corpus holds messages. Save tokenizer.json beside the "
            "weights."
        )
    chat = lay_out(tokenizer, messages, tools)
    # The template writes special tokens as text.
    encoded = tokenizer(
        chat.text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        split_special_tokens=False,
        verbose=False,
    )
    marks = {token: mark.content for token, mark in tokenizer.added_tokens_decoder.items()}
    is_answer, reached = [], 0
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        first, last = start, end
        if marks.get(token) == chat.text[start:end].strip():
            last = start + 1
        elif start == end:
            # Some tokenizers leave spaces out of offsets: a token of spaces alone has those since
            # the token before.
            first = min(start, reached)
        is_answer.append(any(first < stop and last > begin for begin, stop in chat.answers))
        reached = max(reached, end)
    return encoded["input_ids"], is_answer


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the special tokens, less that of a token that only stands for unknown words."""
    names = [n for n in tokenizer.SPECIAL_TOKENS_ATTRIBUTES if n != "unk_token"]
    others = {getattr(tokenizer, f"{name}_id", None) for name in names}
    return set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - others)


def parsed(text: str, tools: str | None) -> tuple[Messages, list[Any] | None]:
    """The messages and tools of a row of conversations, from its two text columns."""
    return json.loads(text), None if tools is None else json.loads(tools)


def _called(message: dict[str, Any]) -> list[str]:
    """Names of the functions that a message calls, which its layout has if it shows the calls."""
    calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
    functions = [call.get("function", call) for call in calls]
    return [str(f["name"]) for f in functions if isinstance(f, dict) and f.get("name")]
