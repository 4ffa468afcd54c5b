"""The words of a text as Unicode has them, in every script: UAX 29, default word boundaries.

A vowel sign or an accent belongs to its letter, an emoji of several code points is one word, and so
are `isn't` and `3.5`. Scripts that write no spaces have no word boundaries without a dictionary: in
Chinese, Japanese but for katakana, Thai, Lao, Khmer and Burmese every letter with its signs stands
for itself.

Source: Unicode Standard Annex 29, section 4, by `regex`, which transformers brings; the road not
taken is PyICU, whose dictionaries need a system library.
"""

import unicodedata

import regex

_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_BOUNDARY = regex.compile(r"\b", regex.WORD | regex.VERSION1)


def words_of(text: str) -> list[tuple[int, int]]:
    """Start and stop (exclusive) of every word in `text`, in characters; single signs are words."""
    spans, at = [], 0
    for piece in _BOUNDARY.split(text):
        end = at + len(piece)
        if piece and not piece.isspace():
            spans.append((at, end))
        at = end
    return spans


def terms_of(text: str) -> list[str]:
    """The words of `text` that have a letter or digit, in lower case and composed form (NFC).

    Texts that look alike have the same terms, whether their accents are composed or decomposed, and
    with or without soft hyphens, joiners and marks of direction.
    """
    normal = text.lower()
    if not normal.isascii():
        normal = unicodedata.normalize("NFC", _INVISIBLE.sub("", normal))
    return [p for p in _BOUNDARY.split(normal) if any(map(str.isalnum, p))]
