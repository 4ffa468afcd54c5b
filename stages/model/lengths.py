"""How long completions are in a model's tokens, before `max_length` cuts any of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from stages.corpus.preferences import SIDE_FORMS, side_columns
from stages.model.chats import left_out_of, parsed
from stages.model.templates import row_pieces


def row_lengths(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    form: str,
) -> Int[np.ndarray, "rows 4"]:
    """Of each row its tokens, the first and the last that is predicted, and what is left out.

    Places of tokens count from 0, and are -1 in a row of which none is predicted. The last number
    says what the chat template leaves out (`stages.model.chats.left_out_of`). Of a pair they are
    those of its longer side, but for the last, which is of both. Arguments are those of
    `Head.encode`. Memory is that of a window of the longest text.

    Raises:
        RefusedRow: the chat template refuses a conversation.
        ModelError: there is no chat template, or the tokenizer has no offsets.
    """
    if form in SIDE_FORMS:
        columns = side_columns(texts, pairs, form)
        both = row_lengths(tokenizer, *columns, SIDE_FORMS[form]).reshape(-1, 2, 4)
        longer: np.ndarray = both[np.arange(len(both)), both[:, :, 0].argmax(1)]
        longer[:, 3] = np.bitwise_or.reduce(both[:, :, 3], axis=1)
        return longer
    rows = []
    for text, pair in zip(texts, pairs, strict=True):
        n_tokens, first, last = 0, -1, -1
        for piece in row_pieces(tokenizer, text, pair, form):
            # The first token of a row is predicted from nothing.
            own = n_tokens + np.flatnonzero(piece.is_answer)
            own = own[own > 0]
            if len(own):
                first, last = int(own[0]) if first < 0 else first, int(own[-1])
            n_tokens += len(piece.ids)
        lacks = left_out_of(tokenizer, *parsed(text, pair)) if form == "messages" else 0
        rows.append((n_tokens, first, last, lacks))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)
