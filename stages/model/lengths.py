"""How long completions are in a model's tokens, before `max_length` cuts any of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from stages.corpus.preferences import SIDE_FORMS, side_columns
from stages.model.chats import leaves_out_reasoning, parsed
from stages.model.heads.head import head_of
from stages.model.networks import IGNORED
from stages.model.spec import ModelSpec

UNCUT = 1 << 30
"""More tokens than any row has."""


def row_lengths(
    model: ModelSpec,
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    form: str,
) -> Int[np.ndarray, "rows 4"]:
    """Of each row its tokens, the first and the last that is predicted, and a lack of reasoning.

    Places of tokens count from 0, and are -1 in a row of which none is predicted. The last number
    is 1 where the chat template leaves out what an answer says as reasoning, else 0. Of a pair they
    are those of its longer side. Arguments are those of `Head.encode`.

    Raises:
        RefusedRow: the chat template refuses a conversation.
        ModelError: there is no chat template, or the tokenizer has no offsets.
    """
    if form in SIDE_FORMS:
        columns = side_columns(texts, pairs, form)
        both = row_lengths(model, tokenizer, *columns, SIDE_FORMS[form]).reshape(-1, 2, 4)
        longer: np.ndarray = both[np.arange(len(both)), both[:, :, 0].argmax(1)]
        return longer
    head = head_of(replace(model, max_length=UNCUT))
    tokens = head.encode(tokenizer, texts, pairs, form)
    rows = []
    for row, targets in enumerate(tokens.columns["targets"]):
        predicted = [at + 1 for at, token in enumerate(targets) if token != IGNORED]
        first, last = (predicted[0], predicted[-1]) if predicted else (-1, -1)
        lacks = form == "messages" and leaves_out_reasoning(
            tokenizer, *parsed(texts[row], pairs[row])
        )
        rows.append((len(targets), first, last, int(lacks)))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)
