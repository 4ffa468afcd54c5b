"""The reasons why a row of a source is rejected, and functions that give them to rows."""

from typing import Any

import numpy as np

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
    "empty completion",
    "null messages",
    "messages are not a list of {role, content}",
    "messages without an assistant's",
    "messages with a part that is no text, such as an image",
    "messages of the assistant are empty",
    "tools are not a list of functions",
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


def mark(reasons: np.ndarray, mask: Any, reason: str) -> None:
    """Rejects the rows of `mask` that are not rejected yet, for `reason`.

    `reasons` holds an index into `REASONS` for every row, and is changed in place.
    """
    mask = mask if isinstance(mask, np.ndarray) else np.asarray(mask)
    reasons[mask & (reasons == 0)] = REASONS.index(reason)


def mark_repeated(reasons: np.ndarray, ids: np.ndarray) -> None:
    """Rejects duplicates: of the usable rows with one id, all but the first."""
    usable = np.flatnonzero(reasons == 0)
    _, first = np.unique(ids[usable], return_index=True)
    reasons[np.delete(usable, first)] = REASONS.index("duplicate id")
