"""Tokens of rows with a template or a completion: prompts, completions and conversations.

A prompt is a cloze question whose answer names a class; a completion is the text that a causal
language model is trained to write. A prompt that is too long loses text inside the template, never
the template; a completion loses its end, or its prompt the start: `ModelSpec.truncation_mode`.
"""

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from stages.corpus.conversations import said
from stages.corpus.preferences import SIDE_FORMS, sides
from stages.model.batches import (
    REWRITTEN,
    TEMPLATE,
    Span,
    Tokens,
    encode_text,
    tokenise,
    with_marks,
)
from stages.model.chats import chat_pieces, parsed, special_ids
from stages.model.first_part import first_part
from stages.model.networks import IGNORED
from stages.model.spec import Prompt
from stages.model.windows import Piece, count, pieces, row_length
from stages.stage import ConfigError, DataError

COLUMN_OF = {"text": 0, "text_b": 1}
"""Number of a text column in a span, by its name."""


def tokenise_prompts(
    tokenizer: Any,
    prompt: Prompt,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    max_length: int,
    is_masked: bool,
    with_offsets: bool = False,
) -> Tokens:
    """The tokens of each row in the template, and the position of the answering logits.

    That position is the mask token's, of a causal model (`is_masked` false) the last token's.

    A row that is too long loses the end of its longer text. The tokenizer's mask token is taken out
    of the texts, so that there is one mask a row, and so are special tokens that the template
    spells out; other special tokens in a text are text.

    Raises:
        ConfigError: the template has a mask where the model has none, or none where it has one, or
            leaves no room for the text.
        DataError: the template names `text_b`, which a row lacks.
    """
    has_mask = any(name == "mask" for _, name, _, _ in string.Formatter().parse(prompt.template))
    if has_mask != is_masked:
        raise ConfigError(
            f"prompt: found the template {prompt.template!r} for a "
            f"{'masked' if is_masked else 'causal'} language model, expected {{mask}} in it for a "
            "masked one, and for a causal one a text that its answer follows. Correct template."
        )
    mask = tokenizer.mask_token if is_masked else ""
    marks = _marks(tokenizer, prompt.template, mask)
    marking = with_marks(tokenizer, marks)

    def encode(text: str) -> Any:
        return encode_text(
            marking, text, return_attention_mask=False, return_offsets_mapping=with_offsets
        )

    columns: dict[str, list[list[int]]] = {"input_ids": []}
    positions, spans = [], []
    for row, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        if pair is None and "text_b" in prompt.template:
            raise DataError(
                f"text: found no second text in row {row} of the shard, expected one for the "
                f"template {prompt.template!r}. Name text_b, or take it out of the template."
            )
        whole = [first_part(tokenizer, part, max_length) for part in (text, pair or "")]
        parts = [_without(part, marks) for part in whole]
        is_whole = parts == whole
        encoded = _fit(tokenizer, encode, prompt.template, parts, mask, max_length)
        ids = encoded["input_ids"]
        for name in tokenizer.model_input_names:
            if name in encoded:
                columns.setdefault(name, []).append(encoded[name])
        positions.append(ids.index(tokenizer.mask_token_id) if is_masked else len(ids) - 1)
        if with_offsets:
            spans.append(_prompt_spans(encoded, prompt.template, parts, mask, is_whole))
    return Tokens(columns, np.array(positions, dtype=np.int64), spans if with_offsets else None)


def prompt_lengths(
    tokenizer: Any,
    prompt: Prompt,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    is_masked: bool,
) -> list[int]:
    """The tokens of each row in the template, however many; see `tokenise_prompts`."""
    mask = tokenizer.mask_token if is_masked else ""
    marks = _marks(tokenizer, prompt.template, mask)
    marking = with_marks(tokenizer, marks)
    rows = [[_without(part or "", marks) for part in row] for row in zip(texts, pairs, strict=True)]
    return [row_length(marking, _filled(prompt.template, row, mask), None) for row in rows]


def _marks(tokenizer: Any, template: str, mask: str) -> tuple[str, ...]:
    """Special tokens that a template spells out, which stay tokens, as the mask does."""
    named = [token for token in tokenizer.all_special_tokens if token in template]
    return tuple(dict.fromkeys([*([mask] if mask else []), *named]))


def _without(text: str, marks: Sequence[str]) -> str:
    for mark in marks:
        text = text.replace(mark, " ")
    return text


def label_word_ids(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """The token id of each label word, of its form behind a space where that is a single token.

    Raises:
        ConfigError: a word is not a single token of the vocabulary.
    """
    ids = []
    for word in words:
        tried = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"]]
        tried.append(tokenizer(word, add_special_tokens=False)["input_ids"])
        single = [t[0] for t in tried if len(t) == 1 and t[0] != tokenizer.unk_token_id]
        if not single:
            raise ConfigError(
                f"prompt: found that the label word {word!r} is {len(tried[0])} tokens "
                f"({' '.join(tokenizer.convert_ids_to_tokens(tried[0]))}), expected a single one. "
                "Choose a more common word."
            )
        ids.append(single[0])
    if len(set(ids)) < len(ids):
        raise ConfigError(
            f"prompt: found label words {list(words)} of which two are the same token, expected a "
            "token of its own for each class. Choose other words."
        )
    return ids


def tokenise_completions(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    form: str,
    max_length: int,
    keeps_end: bool = False,
    with_offsets: bool = False,
) -> Tokens:
    """The tokens of each row as a causal language model is trained on them.

    Column `targets` holds the next token of each position that is predicted, and IGNORED elsewhere.
    `form` "prompt_completion": `texts` are prompts, `pairs` completions; the completion and the
    end-of-text token behind it are predicted. "messages": `texts` are conversations in JSON,
    `pairs` their tools or None, laid out by the tokenizer's chat template; the assistant's messages
    are predicted (`stages.model.chats`). "text": all tokens but the first are predicted. Rows
    longer than `max_length` lose their end, or with `keeps_end` their start; a row may be left
    without any target then.

    Raises:
        RefusedRow: the chat template refuses a conversation.
        ModelError: there is no chat template, or the tokenizer has no offsets.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "targets": []}
    spans = []
    for text, pair in zip(texts, pairs, strict=True):
        if form != "messages" and not keeps_end:
            text = first_part(tokenizer, text, max_length)
            pair = pair and first_part(tokenizer, pair, max_length)
        ids: list[int] = []
        is_answer: list[bool] = []
        row_spans: list[Span] = []
        kept = slice(-max_length, None) if keeps_end else slice(max_length)
        for piece in row_pieces(tokenizer, text, pair, form):
            ids, is_answer = [*ids, *piece.ids][kept], [*is_answer, *piece.is_answer][kept]
            row_spans = [*row_spans, *piece.spans][kept]
            if len(ids) == max_length and not keeps_end:
                break
        following = zip(ids[1:], is_answer[1:], strict=True)
        targets = [token if answers else IGNORED for token, answers in following]
        columns["input_ids"].append(ids)
        columns["targets"].append([*targets, IGNORED])
        spans.append(row_spans)
    return Tokens(columns, spans=spans if with_offsets else None)


class RowPiece(NamedTuple):
    """Consecutive tokens of a row of completions."""

    ids: list[int]
    is_answer: list[bool]
    spans: list[Span]


def row_pieces(tokenizer: Any, text: str, pair: str | None, form: str) -> Iterator[RowPiece]:
    """All tokens of a row, in pieces; see `tokenise_completions`. Memory: that of a piece.

    Raises:
        RefusedRow: the chat template refuses a conversation.
        ModelError: there is no chat template, or the tokenizer has no offsets.
    """
    if form == "messages":
        special = special_ids(tokenizer)
        for ids, is_answer in chat_pieces(tokenizer, *parsed(text, pair)):
            # A chat template gives no character offsets.
            yield RowPiece(ids, is_answer, [TEMPLATE if i in special else REWRITTEN for i in ids])
        return
    for column, part in enumerate([text] if form == "text" else [text, pair or ""]):
        last = Piece([], [])
        for piece in pieces(tokenizer, part, special=column == 0):
            yield _row_piece(last, column, form)
            last = piece
        # A tokenizer that ends every text would end the prompt before its completion.
        if column == 0 and last.ids and last.ids[-1] == tokenizer.eos_token_id:
            last = Piece(last.ids[:-1], last.places[:-1])
        yield _row_piece(last, column, form)
    end = _end(tokenizer)
    yield RowPiece(end, [True] * len(end), [TEMPLATE] * len(end))


def _row_piece(piece: Piece, column: int, form: str) -> RowPiece:
    is_answer = [column == 1 or form == "text"] * len(piece.ids)
    spans = [TEMPLATE if at is None else (column, *at) for at in piece.places]
    return RowPiece(piece.ids, is_answer, spans)


def tokenise_plain(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    form: str,
    max_length: int,
    with_offsets: bool = False,
) -> Tokens:
    """The tokens of each row as plain text, for models without prompts or completions.

    See `plain_texts`.
    """
    plain = plain_texts(texts, pairs, form)
    tokens = tokenise(tokenizer, *plain, max_length, with_offsets)
    if tokens.spans is None or form == "text":
        return tokens
    if form in SIDE_FORMS:
        form = "messages"  # Its text columns hold no piece of the text as it is.
    spans = []
    for text, row in zip(texts, tokens.spans, strict=True):
        if form == "messages":
            spans.append([REWRITTEN if span[0] >= 0 else span for span in row])
            continue
        # Prompt and completion were tokenised as one text: split the spans at its joint.
        cut = len(text)
        spans.append(
            [(1, s - cut, e - cut) if c == 0 and s >= cut else (c, s, e) for c, s, e in row]
        )
    return replace(tokens, spans=spans)


def plain_texts(
    texts: Sequence[str], pairs: Sequence[str | None], form: str, with_calls: bool = False
) -> tuple[list[str], list[str | None]]:
    """Each row as plain texts and pairs, for a model that knows no prompts or completions.

    The messages of a conversation are joined by line ends, `with_calls` what they call behind each;
    a prompt and its completion by nothing. Of a preference it is the chosen side.
    """
    if form in SIDE_FORMS:
        chosen = [sides(*row, form)[0] for row in zip(texts, pairs, strict=True)]
        form = SIDE_FORMS[form]
        texts, pairs = [row.text for row in chosen], [row.pair for row in chosen]
    if form == "messages":
        of_turn = said if with_calls else itemgetter("content")
        turns = ["\n".join(map(of_turn, parsed(text, None)[0])) for text in texts]
        return turns, [None] * len(turns)
    if form == "prompt_completion":
        return [f"{a}{b or ''}" for a, b in zip(texts, pairs, strict=True)], [None] * len(texts)
    return list(texts), list(pairs)


def one_position_each(tokens: Tokens) -> tuple[Tokens, np.ndarray, np.ndarray]:
    """One row for every predicted token, holding the tokens before it.

    Beside them each new row's number in `tokens`, and the index of its predicted token. The last
    row of a text with T predicted tokens repeats all of it: T times the work, and exact.
    """
    columns: dict[str, list[list[int]]] = {name: [] for name in tokens.columns}
    owners, indices = [], []
    for row, targets in enumerate(tokens.columns["targets"]):
        for position, target in enumerate(targets):
            if target == IGNORED:
                continue
            for name, column in tokens.columns.items():
                columns[name].append(column[row][: position + 1])
            columns["targets"][-1] = [IGNORED] * position + [target]
            owners.append(row)
            indices.append(position + 1)
    return Tokens(columns), np.array(owners, np.int64), np.array(indices, np.int64)


def _prompt_spans(
    encoded: Any, template: str, parts: Sequence[str], mask: str, is_whole: bool
) -> list[Span]:
    """The span of each token of a filled template.

    `parts` are the texts in it. Unless `is_whole`, a mask token was taken out of them, and all
    spans of the text are REWRITTEN.
    """
    places, at = [], 0
    for literal, name, spec, _ in string.Formatter().parse(template):
        at += len(literal)
        if name is not None:
            value = {"text": parts[0], "text_b": parts[1], "mask": mask}[name]
            length = len(_Template().format_field(value, spec or ""))
            if name != "mask":
                places.append((COLUMN_OF[name], at, at + length))
            at += length
    spans = []
    for start, end in encoded["offset_mapping"]:
        inside = (p for p in places if start < end and start >= p[1] - 1 and p[1] < end <= p[2])
        column, first, _ = next(inside, (-1, 0, 0))
        span = (column, max(0, start - first), end - first) if column >= 0 else TEMPLATE
        spans.append(span if is_whole or column < 0 else REWRITTEN)
    return spans


class _Template(string.Formatter):
    """A formatter with the specs `trimmed` and `uncapitalised` of `Prompt.template`."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "trimmed":
            return str(value)[:-1]
        if format_spec == "uncapitalised":
            return str(value)[:1].lower() + str(value)[1:]
        return str(super().format_field(value, format_spec))


def _fit(
    tokenizer: Any,
    encode: Callable[[str], Any],
    template: str,
    parts: list[str],
    mask: str,
    max_length: int,
) -> Any:
    while True:
        encoded = encode(_filled(template, parts, mask))
        excess = len(encoded["input_ids"]) - max_length
        if excess <= 0:
            return encoded
        lengths = [count(tokenizer, part) for part in parts]
        longer = int(lengths[1] > lengths[0])
        if lengths[longer] == 0:
            raise ConfigError(
                f"prompt: found {len(encoded['input_ids'])} tokens in the empty template "
                f"{template!r}, expected fewer than max_length: {max_length}. Raise it."
            )
        kept = max(0, lengths[longer] - excess)
        offsets = encode_text(
            tokenizer, parts[longer], add_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"]
        # Up to where the first lost token begins: all bytes of a character begin where it does.
        end = min(offsets[kept - 1][1], offsets[kept][0]) if kept else 0
        parts[longer] = parts[longer][:end]


def _filled(template: str, parts: Sequence[str], mask: str) -> str:
    """The template with a row's texts in it.

    Raises:
        ConfigError: it names something else.
    """
    try:
        return _Template().format(template, text=parts[0], text_b=parts[1], mask=mask)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"prompt: found the template {template!r} ({error}), expected {{text}}, {{text_b}} "
            "and {mask} in braces and nothing else. Correct template."
        ) from error


def _end(tokenizer: Any) -> list[int]:
    """The id of the end-of-text token, in a list; empty where the tokenizer has none."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
