"""What a person should know of the labels of a source: told by `plan` and `run`, or refused."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.corpus.source import Source
from stages.stage import DataError, Role

MOST_CLASSES = 1000
"""Distinct labels beyond which a column that hardly repeats any is none of classes."""
SHOWN = 5


def respelled(cells: list[Any], code_of: list[int], written: tuple[Any, ...]) -> tuple[str, ...]:
    """Told where a class is spelled in several ways, of which written files have one."""
    ways: dict[int, list[str]] = {}
    for cell, code in zip(cells, code_of, strict=True):
        if code >= 0:
            ways.setdefault(code, []).append(repr(cell))
    several = [
        f"{', '.join(spellings[:SHOWN])} (written as {written[code]!r})"
        for code, spellings in sorted(ways.items())
        if len(spellings) > 1
    ]
    return (f"labels spelled in several ways are one class: {some(several)}",) if several else ()


def some(items: Sequence[Any], n_items: int | None = None) -> str:
    """The first of the items for a person, and how many more there are."""
    shown = ", ".join(str(item)[:60] for item in items[:SHOWN])
    rest = (len(items) if n_items is None else n_items) - len(items[:SHOWN])
    return f"{shown} and {rest} more" if rest > 0 else shown


def refuse_strangers(
    source: Source,
    cells: list[Any],
    names: list[str | None],
    classes: tuple[str, ...],
    role: Role,
) -> None:
    """Raises: no label is one of the classes."""
    found = [cell for cell, name in zip(cells, names, strict=True) if name is not None]
    whose = "the corpus" if role == "query" else "`classes`"
    raise DataError(
        f"{source.path}: found the labels {some(found)} in column {source.label}, expected those "
        f"of {whose}: {some(classes)}. Name the column of these labels, or list `classes:` with "
        "the names in the order of the numbers."
    )


def strangers(
    source: Source,
    cells: list[Any],
    names: list[str | None],
    code_of: list[int],
    classes: tuple[str, ...],
) -> tuple[str, ...]:
    """Told where queries have labels that are none of the corpus's classes."""
    strange = [
        cell
        for cell, name, code in zip(cells, names, code_of, strict=True)
        if name is not None and code < 0
    ]
    if not strange:
        return ()
    return (
        f"queries with labels that the corpus lacks are rejected: found {some(strange)} in "
        f"column {source.label}, expected {some(classes)}",
    )


def absent(names: tuple[str, ...], is_kept: bool) -> tuple[str, ...]:
    """Told where classes are declared that no row has."""
    if not names:
        return ()
    what = "kept" if is_kept else "left out of the classes"
    return (f"no row of the corpus has {some(names)}: declared classes without rows, {what}",)


def doubtful(source: Source, counts: np.ndarray, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Notices of classes with one row, and of a column that has too many classes to be one.

    `counts` are the rows of each class.
    """
    notices = []
    n_rows = int(counts.sum())
    if single := [name for name, n in zip(classes, counts, strict=True) if n == 1]:
        notices.append(
            f"{len(single)} classes of column {source.label} have one row, which nothing can be "
            f"compared with: {some(single)}"
        )
    n_classes = len(classes)
    if n_classes > max(2, n_rows / 10):
        examples = [name for name, _ in Counter(dict(enumerate(counts))).most_common(SHOWN)]
        named = some([classes[code] for code in examples], n_classes)
        is_prose = np.mean([len(name) for name in classes]) > 40
        found = f"found {n_classes} classes in {n_rows} rows of column {source.label} ({named})"
        advice = (
            "It reads like a text: name another label column."
            if is_prose
            else "If these are ids or texts, name another label column; if targets, set task: "
            "regression."
        )
        if n_classes > MOST_CLASSES:
            raise DataError(f"{source.path}: {found}, expected classes with rows. {advice}")
        notices.append(f"{found}, more than one in ten. {advice}")
    return tuple(notices)
