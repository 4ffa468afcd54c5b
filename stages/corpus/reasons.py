"""The reasons why a row of a source is rejected, and functions that give them to rows."""

from typing import Any

import numpy as np

from stages.corpus.conversations import REASONS as CONVERSATION_REASONS
from stages.corpus.preferences import REASONS as PREFERENCE_REASONS

REFUSED = "refused by a model"
"""Stands for the reason that a model gave."""
REASONS = (
    "",
    "not UTF-8",
    "not valid JSON",
    "other number of fields than the header",
    "null id",
    "null text",
    "text is not a string",
    "empty text",
    "null second text",
    "empty second text",
    "null prompt",
    "null completion",
    "null instruction",
    "empty instruction",
    "empty completion",
    "null messages",
    *CONVERSATION_REASONS,
    *PREFERENCE_REASONS,
    REFUSED,
    "missing vector",
    "vector is not a list of numbers",
    "vector of another length",
    "vector is not finite",
    "missing label",
    "unknown label",
    "label is not a number",
    "label is not finite",
    "duplicate id",
)
"""The reasons, in the order in which they are checked; the empty one is for usable rows."""

_GROUP_ROWS = 1 << 18
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 by the golden ratio: spreads numbers in a row over the groups."""


def mark(reasons: np.ndarray, mask: Any, reason: str) -> None:
    """Rejects the rows of `mask` that are not rejected yet, for `reason`.

    `reasons` holds an index into `REASONS` for every row, and is changed in place.
    """
    mask = mask if isinstance(mask, np.ndarray) else np.asarray(mask)
    reasons[mask & (reasons == 0)] = REASONS.index(reason)


def most_rejected(reasons: np.ndarray, id_column: str | None) -> str | None:
    """What a person should know where more than half of the rows are rejected for one reason."""
    times = np.bincount(reasons, minlength=len(REASONS))
    times[0] = 0
    worst = int(times.argmax())
    if 2 * times[worst] <= len(reasons):
        return None
    told = f"{times[worst]:,} of {len(reasons):,} rows cannot be used: {REASONS[worst]}"
    if REASONS[worst] == "duplicate id" and id_column is not None:
        return f"{told} in {id_column}. Name a column that has another value in each row."
    return f"{told}. See the view `rejected`, and whether the right columns are named."


def mark_repeated(reasons: np.ndarray, ids: np.ndarray) -> None:
    """Rejects duplicates: of the usable rows with one id, all but the first.

    Ids are compared with those of their group alone, by their hash: memory stays bounded, 2 bytes
    a row and what a group takes.
    """
    n_groups = -(-len(ids) // _GROUP_ROWS)
    groups = np.zeros(len(ids) if n_groups > 1 else 0, dtype=np.uint16)
    for start in range(0, len(groups), _GROUP_ROWS):
        block = ids[start : start + _GROUP_ROWS].astype(np.uint64) * _MULTIPLIER
        groups[start : start + _GROUP_ROWS] = (block >> np.uint64(48)) % np.uint64(n_groups)
    for group in range(n_groups):
        of_group = reasons == 0
        if len(groups):
            of_group &= groups == group
        rows = np.flatnonzero(of_group)
        _, first = np.unique(ids[rows], return_index=True)
        if len(first) < len(rows):
            reasons[np.delete(rows, first)] = REASONS.index("duplicate id")
