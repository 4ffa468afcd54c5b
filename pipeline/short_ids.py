"""Long ids in the few characters that tell them apart on a screen, and how they are found again.

An id of more than `LONG` characters is shown as its beginning, `0e2f6c1a5b1d…`, or where that would
be long, too, as with addresses of one site, as its beginning and its end, `https://…/reviews/4711`.
"""

from collections.abc import Sequence

from storage.sql import quoted

LONG = 20
"""An id of no more characters is shown whole."""
SHORT = 12
"""Characters of a beginning, if no more are needed."""
HEAD = 8
"""Characters of a beginning that an end follows."""
ELLIPSES = ("…", "...")


def is_id(name: str) -> bool:
    """Whether a column of this name holds ids."""
    return name == "id" or name.endswith("_id")


def shortened(ids: Sequence[str], longest: int = LONG) -> list[str]:
    """The ids as they are shown together: those that differ are shown differently.

    One of up to `longest` characters is shown whole.
    """
    whole = sorted(set(ids))
    shared = max(map(_shared, whole, whole[1:]), default=0)
    begin = max(SHORT, shared + 1)
    if begin < LONG:
        return [f"{text[:begin]}…" if len(text) > max(longest, begin + 1) else text for text in ids]
    end = SHORT
    while len({(text[:HEAD], text[-end:]) for text in whole}) < len(whole):
        end += 1
    return [
        f"{text[:HEAD]}…{text[-end:]}" if len(text) > max(longest, HEAD + end + 1) else text
        for text in ids
    ]


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def condition(column: str, name: str) -> str:
    """The SQL for ids in a column that may be shown as `name`; for none without an ellipsis.

    For 12 is no beginning of 1234 where an id 12 was meant and is not there.
    """
    for ellipsis in ELLIPSES:
        head, found, tail = name.partition(ellipsis)
        if found:
            return (
                f"(starts_with({column}, {quoted(head)}) AND ends_with({column}, {quoted(tail)}) "
                f"AND length({column}) > {len(head) + len(tail)})"
            )
    return "false"
