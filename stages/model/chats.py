"""Conversations as a chat template lays them out, and which of their tokens are answers.

An answer is what the template writes for a message of the assistant that is learned
(`stages.corpus.conversations`). Where the template marks that itself, `{% generation %}`, it is
what stands between the marks; elsewhere all that follows the opening of the message,
`add_generation_prompt`, up to the next message. A token is an answer's if one of its characters is,
so a token that crosses a border counts with the answer, as in the assistant masks of transformers;
a token that a tokenizer adds to its vocabulary, such as `<|assistant|>`, counts where it begins,
though it may swallow the line end behind it.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from stages.corpus.conversations import ASSISTANT, MARKS, functions_called, is_learned
from stages.model.windows import pieces
from stages.stage import ModelError, RefusedRow

Messages = list[dict[str, Any]]
_PRIVATE = range(0xE000, 0xF8FF)
"""Code points that stand for no character."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold what the assistant thinks before it speaks."""
REASONING, CALLS = 1, 2
"""What a layout may lack, as numbers that are added up."""
_THOUGHT = re.compile("<think>(.*?)</think>", re.DOTALL)
EXPECTED = "a conversation that the chat template can lay out"


class Chat(NamedTuple):
    """A conversation as text."""

    text: str
    answers: list[tuple[int, int]]
    """Start and stop (exclusive) of each answer, in characters; ascending."""


def lay_out(tokenizer: Any, messages: Messages, tools: list[Any] | None = None) -> Chat:
    """The conversation in the tokenizer's chat template, which is given the tools, too.

    Cost: a rendering of the template for the whole and, unless it marks answers itself, two for
    each message that is learned, about 50 microseconds each.

    Raises:
        RefusedRow: the template refuses the conversation, leaves nothing of the messages that are
            learned, or does not tell where they are: it lays out earlier messages in another way
            when later ones follow, the assistant speaks first, or of several answers that are
            marked it is not clear whose they are.
        ModelError: there is no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "tokenizer: found no chat template, expected one because the corpus holds messages. "
            "Use an instruction-tuned model, or set chat_template in tokenizer_config.json."
        )
    learned = [at for at, message in enumerate(messages) if is_learned(message)]
    shown = [{k: v for k, v in message.items() if k not in MARKS} for message in messages]
    template = _in_words(lambda: tokenizer.get_chat_template(None, tools=tools))
    if _GENERATION.search(template):
        chat = _by_marks(tokenizer, template, shown, learned, tools)
    else:
        chat = _by_openings(tokenizer, shown, learned, tools)
    is_said = []
    # Answers that are marked may be of several messages each: then there is one check for all.
    pairs = zip(learned, chat.answers, strict=False)
    for at, (start, stop) in pairs if len(learned) == len(chat.answers) else ():
        answer = chat.text[start:stop]
        said, called = messages[at]["content"].strip(), _called(messages[at])
        if said or called:
            is_said.append(bool(said and answer) or any(name in answer for name in called))
    if not chat.answers or (is_said and not any(is_said)):
        raise RefusedRow("chat template: it leaves nothing of the assistant's messages", EXPECTED)
    return chat


def left_out_of(tokenizer: Any, messages: Messages, tools: list[Any] | None = None) -> int:
    """What the layout lacks of a conversation: the sum of `REASONING` and `CALLS`, or 0.

    Reasoning that an answer lacks is a key such as `reasoning_content`, or a text in `<think>`.
    Calls are those of a message that is learned, by the names of the functions, and the tools of
    the conversation likewise. Cost: that of `lay_out` for a conversation with one of these, none
    for others.

    Raises:
        RefusedRow: as `lay_out`.
        ModelError: as `lay_out`.
    """
    learned = [message for message in messages if is_learned(message)]
    thoughts = [
        thought.strip()
        for message in learned
        for thought in (
            *(str(message.get(key) or "") for key in _REASONING),
            *_THOUGHT.findall(message["content"]),
        )
    ]
    thoughts = [thought for thought in thoughts if thought]
    calls = [name for message in learned for name in _called(message)]
    known = _called({"tool_calls": tools})
    if not (thoughts or calls or known):
        return 0
    chat = lay_out(tokenizer, messages, tools)
    answered = "\0".join(chat.text[start:stop] for start, stop in chat.answers)
    lacks_calls = any(name not in answered for name in calls)
    lacks_calls |= any(name not in chat.text for name in known)
    return REASONING * any(thought not in answered for thought in thoughts) + CALLS * lacks_calls


def _by_openings(
    tokenizer: Any, messages: Messages, learned: list[int], tools: list[Any] | None
) -> Chat:
    """The conversation, and its answers by what the template writes before and behind them."""

    def render(upto: int, asks: bool = False) -> str:
        """The first messages; with `asks` also the opening of the assistant's next."""
        return str(
            _in_words(
                lambda: tokenizer.apply_chat_template(
                    messages[:upto], tools=tools, tokenize=False, add_generation_prompt=asks
                )
            )
        )

    whole = render(len(messages))
    answers = []
    for at in learned:
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
    return Chat(whole, answers)


def _by_marks(
    tokenizer: Any,
    template: str,
    messages: Messages,
    learned: list[int],
    tools: list[Any] | None,
) -> Chat:
    """The conversation, and its answers as the template marks them."""
    # Imported here: it takes seconds, which commands that lay out nothing are spared.
    from transformers.utils.chat_template_utils import render_jinja_template

    (whole,), (spans,) = _in_words(
        lambda: render_jinja_template(
            [messages],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    )
    said_by = [at for at, message in enumerate(messages) if message["role"] == ASSISTANT]
    if len(learned) < len(said_by):
        if len(spans) != len(said_by):
            raise RefusedRow(
                f"chat template: it marks {len(spans)} answers of {len(said_by)} messages of the "
                "assistant, of which not all are learned",
                EXPECTED,
            )
        spans = [span for at, span in zip(said_by, spans, strict=True) if at in learned]
    return Chat(whole, [(start, stop) for start, stop in spans if start < stop])


def _in_words(render: Callable[[], Any]) -> Any:
    """What `render` returns; an error of the template in its own words.

    Raises:
        RefusedRow: the template raises whatever it likes, as it is a program.
    """
    try:
        return render()
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise RefusedRow(f"chat template: {words}", EXPECTED) from error


def chat_pieces(
    tokenizer: Any, messages: Messages, tools: list[Any] | None = None
) -> Iterator[tuple[list[int], list[bool]]]:
    """Token ids of a conversation, in pieces, and whether each is a token of an answer.

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
    chat, parts = _told_apart(tokenizer, messages, tools)
    marks = {token: mark.content for token, mark in tokenizer.added_tokens_decoder.items()}
    reached = 0
    for begun, text, is_text in parts:
        for piece in pieces(tokenizer, text, splits_special=is_text):
            is_answer = []
            for token, place in zip(piece.ids, piece.places, strict=True):
                start, end = (begun + at for at in place or (0, 0))
                first, last = start, end
                if marks.get(token) == chat.text[start:end].strip():
                    last = start + 1
                elif start == end:
                    # Some tokenizers leave spaces out of offsets: a token of spaces alone has those
                    # since the token before.
                    first = min(start, reached)
                is_answer.append(any(first < stop and last > begin for begin, stop in chat.answers))
                reached = max(reached, end)
            yield piece.ids, is_answer


def _told_apart(
    tokenizer: Any, messages: Messages, tools: list[Any] | None
) -> tuple[Chat, list[tuple[int, str, bool]]]:
    """The conversation, and its pieces: start in it, characters, whether all of them are text.

    The template writes special tokens as text. Those that a message spells out are text: private
    characters around them say which these are, and are taken out of what the template writes.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = sorted((t.content for t in added if t.special), key=len, reverse=True)
    spelt = re.compile("|".join(map(re.escape, special)) or "(?!)")
    said = json.dumps([messages, tools], ensure_ascii=False)
    if not spelt.search(said):
        chat = lay_out(tokenizer, messages, tools)
        return chat, [(0, chat.text, False)]
    begin, end, *_ = (chr(c) for c in _PRIVATE if chr(c) not in said)
    marked = mapped(messages, lambda text: spelt.sub(rf"{begin}\g<0>{end}", text))
    chat = lay_out(tokenizer, marked, tools)
    # A template may cut a text between the characters: one without the other marks nothing.
    marks = re.compile(f"{begin}({spelt.pattern}){end}|[{begin}{end}]")
    pieces: list[tuple[int, str, bool]] = []
    text, reached = "", 0
    for mark in [*marks.finditer(chat.text), None]:
        stop = len(chat.text) if mark is None else mark.start()
        for piece, is_text in ((chat.text[reached:stop], False), (mark and mark[1], True)):
            if piece:
                pieces.append((len(text), piece, is_text))
                text += piece
        reached = len(chat.text) if mark is None else mark.end()

    def moved(at: int) -> int:
        return at - sum(chat.text.count(sign, 0, at) for sign in (begin, end))

    return Chat(text, [(moved(start), moved(stop)) for start, stop in chat.answers]), pieces


def mapped(value: Any, change: Callable[[str], str], but: Collection[str] = ("role",)) -> Any:
    """The value with its strings changed, but for keys and what stands under those of `but`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [mapped(inner, change, but) for inner in value]
    if isinstance(value, dict):
        return {k: v if k in but else mapped(v, change, but) for k, v in value.items()}
    return value


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
    return [str(f["name"]) for f in functions_called(message) if f.get("name")]
