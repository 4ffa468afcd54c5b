"""The columns of a source by role (text, label, id, ...), and the names they are stored under."""

import functools
from dataclasses import replace
from typing import Any

from stages.corpus.cells import SourceRows
from stages.corpus.forms import (
    CARRIED,
    CONVERSATIONS,
    Form,
    completion_columns,
    preference_columns,
)
from stages.corpus.source import LABELLED, Source
from stages.corpus.yaml_value import in_yaml
from stages.stage import DataError, Role
from storage.names import near
from storage.schema import FILE_COLUMN

OWN = (
    *("id", "role", "text", "text_b", "label", "true_label", "label_before_review", "target"),
    *("is_dropped", "source_id", "row_number", "features_vector"),
)
_RESERVED = {
    *OWN,
    *("example_id", "query_id", "label_name", "split", "shard", "run_id", "method"),
    FILE_COLUMN,
}
VECTOR = "features_vector"
"""Column of the rows with the vectors; reserved, so that no column of a source has it."""

JSON = "json"
"""The `type` of a column whose cells are of several types."""


def with_columns(source: Source, found: list[str]) -> Source:
    """The source with its default columns resolved, so that it names exactly those to be read.

    `found` are the names of the columns that the source has.

    Raises:
        DataError: the source names no column of a completion, and has none of a default name.
    """
    if source.task in LABELLED:
        return source
    source = replace(source, label=None)
    if source.task == "question_answering":
        is_given = source.text != "text" or "text" in found
        text = source.text if is_given else "context"
        return replace(source, text=text, text_b=source.text_b or "question")
    if source.task == "preference":
        return preference_columns(source, found)
    return completion_columns(source, found)


def check_columns(source: Source, role: Role, found: list[str]) -> None:
    """Raises unless the source has every column that it names; `found` are those that it has.

    Raises:
        DataError: it lacks one; the message lists the columns that are there.
    """
    names = (
        *("text", "text_b", "prompt", "completion", "messages", "chosen", "rejected"),
        *("features", "label", "id"),
    )
    for key in names:
        name = getattr(source, key)
        if name is None or name in found or (key == "features" and source.features_file):
            continue
        meant = near(name, found, functools.partial(_set_to, key), 0.5)
        advice = f"Set {key} to one of them."
        if key == "label" and role == "query":
            advice += " For queries without labels, set label: null."
        if role == "query":
            advice += " `queries:` names its own columns; those of `corpus:` are not taken over."
        if key == "label" and role == "example":
            advice += " For texts without labels, set task: completion."
        if key == "text" and source.features is not None:
            advice += " For rows that are vectors alone, set text: null."
        raise DataError(
            f"{source.path}: found no column {name!r} for {key}{meant}, expected one of the "
            f"columns {', '.join(found)}. {advice}"
        )


def _set_to(key: str, column: str) -> str:
    return f"{key}: {in_yaml(column)}"


def used_columns(source: Source) -> set[str]:
    """Names of the columns that are read as text, vector, label or id; others are carried along.

    The input of Alpaca's rows is carried along, too.
    """
    own = (
        *(source.text, source.text_b, source.prompt, source.completion, source.messages),
        *(source.chosen, source.rejected),
    )
    features = None if source.features_file else source.features
    return {name for name in (*own, features, source.label, source.id) if name}


def stored_columns(
    source: Source, form: Form, empty: SourceRows, type_of_ids: str
) -> list[dict[str, Any]]:
    """The columns of the source as `Survey.stored` has them, without the cells of labels.

    `type_of_ids` is the name of the type of ids as the source has them. Names are compared without
    case: SQL does not tell Text from text. An id column of several types is carried along as well,
    for its cells are not to be had from the ids as text, and so are columns of which a row's text
    is made, where they are not the text itself.
    """
    found = empty.table.column_names
    own = {source.id: "source_id", source.features: VECTOR}
    own |= {source.label: "target" if source.task == "regression" else "label"}
    own |= {source.text_b: "text_b", source.text: "text"}
    if form not in CARRIED:
        own |= {source.prompt: "text"}
    if form not in CONVERSATIONS:
        own |= {source.completion: "text_b"}
    if source.id in empty.mixed:
        del own[source.id]
    taken = {*_RESERVED, *(n.lower() for n in found if n.lower() not in _RESERVED)}
    seen: set[str] = set()
    columns: list[dict[str, Any]] = []
    for name in found:
        stored = own.get(name, name)
        if name not in own and (name.lower() in _RESERVED or name.lower() in seen):
            stored = f"source_{name}"
            while stored.lower() in taken:
                stored = f"source_{stored}"
        taken.add(stored.lower())
        seen.add(stored.lower())
        kind = JSON if name in empty.mixed else str(empty.table[name].type)
        if stored == "source_id":
            kind = type_of_ids
        columns.append({"name": name, "stored": stored, "type": kind})
    return columns
