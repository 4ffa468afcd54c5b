"""The part of a long text that its first tokens are of, so that memory follows `max_length`.

A tokenizer takes some 145 bytes a character, of a text of which 128 tokens are kept. So a text of
more than `LONG` characters is cut first, where a word ends, behind at least `MARGIN` tokens more
than are kept. What follows a cut can change tokens before it only within the piece that the cut
ends:

- Where a tokenizer splits texts at spaces before anything else (WordPiece, byte-level BPE,
  Metaspace that splits), a token is a function of its own word and the signs beside it, and the
  kept tokens are the same, provably. In a text without spaces the piece at the cut is as long as
  the text, and the next case holds.
- Where it does not (BPE and unigrams over whole texts), a token could depend on all that follows.
  Merges and best paths settle within a few tokens, and the margin is there for that. That is tested
  on tokenizers of each kind and no proof.

A text whose first `MOST` characters give fewer tokens, such as a million spaces, is cut there. Of a
pair of which both members are cut, the one with more tokens among those left counts as the longer
one, which may keep one token more.
"""

import re
from typing import Any

LONG = 1 << 16
"""Shorter texts are never cut; nor are those of fewer than 64 characters for each token kept."""
MARGIN = 256
MOST = 1 << 20
_WORD_ENDS = re.compile(r"\S(?=\s)")


def first_part(tokenizer: Any, text: str, n_tokens: int) -> str:
    """The start of a text that has its first `n_tokens` tokens; all of it where it is no longer.

    Cost: the tokens of that part, of texts that are cut.
    """
    stop = max(LONG, 64 * n_tokens)
    if len(text) <= stop:
        return text
    most = max(MOST, stop)
    while True:
        part = text[: _word_end(text, stop)]
        if stop >= most:
            return part
        encoded = tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        if len(encoded["input_ids"]) >= n_tokens + MARGIN:
            return part
        stop = min(4 * stop, most)
        if len(text) <= stop:
            return text


def _word_end(text: str, stop: int) -> int:
    """The end of the last word in the quarter of a text before `stop`; `stop` where none ends."""
    begin = stop - stop // 4
    ends = [match.end() for match in _WORD_ENDS.finditer(text, begin, stop)]
    return ends[-1] if ends else stop
