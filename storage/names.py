"""The names and keys that files, manifests and run folders may hold, and what a slip is near."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Any

TABLE = re.compile(r"[a-z][a-z0-9_]{0,99}")
INSTANCE = re.compile(r"\w[\w.-]{0,199}")
"""Stages, as a YAML names them: letters of any script, digits, `_`, `.` and `-`."""
KEY = re.compile(r"[0-9a-f]{16}")
COMPARED = 20_000
"""Names that a slip is compared with."""


def is_table(name: Any) -> bool:
    """Whether this is the name of a table: it is a folder's name, and stands in SQL."""
    return isinstance(name, str) and TABLE.fullmatch(name) is not None


def is_instance(name: Any) -> bool:
    """Whether this is the name of a stage of a run."""
    return isinstance(name, str) and INSTANCE.fullmatch(name) is not None


def is_key(key: Any) -> bool:
    """Whether this is the key of a shard or manifest: it is part of a file's name."""
    return isinstance(key, str) and KEY.fullmatch(key) is not None


def near(
    name: Any, known: Iterable[Any], shown: Callable[[str], str] = str, cutoff: float = 0.6
) -> str:
    """What a message says of an unknown name before it lists the known ones.

    The known name that it is most like, as `shown` writes it; nothing where none is alike. Of more
    than `COMPARED` known names the first are compared: a message is to come at once.
    """
    compared = list(map(str, islice(known, COMPARED)))
    close = get_close_matches(str(name), compared, 1, cutoff)
    return f" (did you mean {shown(close[0])}?)" if close else ""
