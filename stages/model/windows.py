"""The tokens of a long text, a window at a time, so that memory follows the window.

A tokenizer takes some 145 bytes a character of what it is given at once. Windows overlap: each
begins at a token of the one before, `OVERLAP` characters before its end, and takes over where both
have had the same tokens at the same characters for `AGREED` tokens, and have as many again behind.
As in `stages.model.first_part`, tokens on which neighbouring text has no influence any more are
then those of the whole text: provably where a tokenizer splits texts at spaces first, elsewhere as
merges and best paths settle within a few tokens. Where two windows do not agree, they are made
longer, in the end as long as the text.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

WINDOW = 1 << 16
"""Characters of a window; a shorter text is tokenised at once."""
OVERLAP = 1 << 12
AGREED = 16


class Piece(NamedTuple):
    """Consecutive tokens of a text."""

    ids: list[int]
    places: list[tuple[int, int] | None]
    """Start and stop (exclusive) of each in the text; None of one that the tokenizer adds."""


def pieces(
    tokenizer: Any, text: str, special: bool = False, splits_special: bool = True
) -> Iterator[Piece]:
    """All tokens of a text, in pieces.

    Args:
        tokenizer: A fast one where the text is longer than a window.
        text: The text.
        special: Whether the tokenizer adds the special tokens with which it begins and ends texts.
        splits_special: Whether a special token that the text spells out is text.
    """
    options = {"split_special_tokens": splits_special, "verbose": False}
    if len(text) <= WINDOW or not tokenizer.is_fast:
        yield _tokens(tokenizer, text, 0, special, options)
        return
    start, window, overlap, is_first = 0, WINDOW, OVERLAP, True
    piece = _tokens(tokenizer, text[:window], 0, special, options)
    while True:
        stop = start + window
        if stop >= len(text):
            yield piece
            return
        begin = _token_from(piece, stop - overlap)
        following = _tokens(tokenizer, text[begin : begin + window], begin, special, options)
        seam = _seam(piece, following, begin)
        if seam is None:
            # A longer window in place of this one, with more in common with the next.
            window, overlap = 2 * window, min(4 * overlap, window)
            first = next((place for place in piece.places if place is not None), (start, start))
            longer = _tokens(tokenizer, text[start : start + window], start, special, options)
            piece = longer if is_first else _behind(longer, first[0])
            continue
        here, there = seam
        yield Piece(piece.ids[:here], piece.places[:here])
        piece = Piece(following.ids[there:], following.places[there:])
        start, window, overlap, is_first = begin, WINDOW, OVERLAP, False


def count(tokenizer: Any, text: str, splits_special: bool = True) -> int:
    """The number of tokens of a text, without those that the tokenizer adds."""
    found = pieces(tokenizer, text, splits_special=splits_special)
    return sum(len(piece.ids) for piece in found)


def row_length(tokenizer: Any, text: str, pair: str | None) -> int:
    """The number of tokens of a text, or of a text and its pair, with those that are added."""
    added: int = tokenizer.num_special_tokens_to_add(pair is not None)
    return added + count(tokenizer, text) + (0 if pair is None else count(tokenizer, pair))


def _tokens(tokenizer: Any, text: str, start: int, special: bool, options: dict[str, Any]) -> Piece:
    """The tokens of a text that begins at `start` of a longer one."""
    is_fast = tokenizer.is_fast
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=is_fast, **options)
    ids = encoded["input_ids"]
    if not is_fast:
        return Piece(ids, [None] * len(ids))
    places = zip(encoded.sequence_ids(0), encoded["offset_mapping"], strict=True)
    return Piece(ids, [None if n is None else (a + start, b + start) for n, (a, b) in places])


def _token_from(piece: Piece, at: int) -> int:
    """Where the first token begins that begins at a character or behind it; there, for none."""
    return min((p[0] for p in piece.places if p is not None and p[0] >= at), default=at)


def _behind(piece: Piece, at: int) -> Piece:
    """The tokens of a piece that begin at a character or behind it."""
    first = next((n for n, p in enumerate(piece.places) if p is not None and p[0] >= at), 0)
    return Piece(piece.ids[first:], piece.places[first:])


def _seam(piece: Piece, following: Piece, begin: int) -> tuple[int, int] | None:
    """The number of a token in both pieces, with `AGREED` tokens before it, and behind, in both.

    None where there is no such token at `begin` or behind it.
    """
    at = {token: n for n, token in enumerate(zip(*following, strict=True)) if token[1] is not None}
    run, moved = 0, None
    for n, token in enumerate(zip(*piece, strict=True)):
        other = at.get(token) if token[1] is not None and token[1][0] >= begin else None
        if other is None:
            run = 0
            continue
        run, moved = (run + 1 if other - n == moved else 1), other - n
        if run == 2 * AGREED:
            return n - AGREED + 1, other - AGREED + 1
    return None
