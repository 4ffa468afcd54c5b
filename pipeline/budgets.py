"""Numbers of tokens that a selection keeps to: how they are written, and which views count them."""

import re
from typing import Any

from pipeline.errors import RunError

COUNTS = ("text_lengths", "diagnostics")
"""Views with the tokens of rows: whole, or of what gradients were taken of."""
THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_TOKENS = re.compile(r"([\d_,]+(?:\.\d+)?)\s*([kmb]?)[\s-]*tokens", re.IGNORECASE)


def is_in_tokens(keep: str | int | None) -> bool:
    """Whether a number of rows to keep is one of tokens."""
    return str(keep).strip().lower().endswith("tokens")


def tokens_of(keep: str) -> int:
    """The number of tokens that a text such as `50000 tokens` or `2M-tokens` stands for.

    Raises:
        RunError: it is none, or below 1.
    """
    found = _TOKENS.fullmatch(keep.strip())
    digits = found[1].replace("_", "").replace(",", "") if found else ""
    number = round(float(digits) * THOUSANDS[found[2].lower()]) if found and digits else 0
    if number < 1:
        raise RunError(
            f"select: found {keep!r}, expected a number such as '50000 tokens', 200k-tokens or "
            "2M-tokens. Say for example --keep 200k-tokens."
        )
    return number


def counts_of(run: Any) -> str:
    """The view that counts the tokens of the rows of `run`.

    Raises:
        RunError: there is none.
    """
    counted = "SELECT 1 FROM {} WHERE role = 'example' AND n_tokens IS NOT NULL LIMIT 1"
    views = [view for view in COUNTS if view in run.views()]
    view = next((view for view in views if run.sql(counted.format(view)).fetchall()), None)
    if view is None:
        raise RunError(
            "select: found no counts of tokens, expected those of a stage that reads texts. Add "
            "`text_length: {}` under `stages:` and run again, or name a number of rows or a share."
        )
    return view
