"""Which columns of a source mean what, and under which names they and the others are kept."""

from dataclasses import replace
from difflib import get_close_matches

from stages.corpus.source import LABELLED, Source
from stages.stage import DataError, Role

OWN = (
    *("id", "role", "text", "text_b", "label", "true_label", "target", "is_dropped"),
    *("source_id", "row_number", "features_vector"),
)
_RESERVED = {*OWN, "example_id", "query_id", "label_name", "split", "shard", "run_id", "method"}
VECTOR = "features_vector"
"""Where the vectors of a row lie in `Corpus.rows`; a name of ours, so that no column takes it."""


def with_columns(source: Source, found: list[str]) -> Source:
    """The source with exactly the columns named that will be read, given the columns it has.

    Raises:
        DataError: no column is named for a completion, and none is there under a usual name.
    """
    if source.task in LABELLED:
        return source
    source = replace(source, label=None)
    if source.task == "question_answering":
        is_given = source.text != "text" or "text" in found
        text = source.text if is_given else "context"
        return replace(source, text=text, text_b=source.text_b or "question")
    if source.prompt or source.messages:
        return replace(source, text=None)
    if source.text not in (None, "text"):
        return source
    if {"prompt", "completion"} <= set(found):
        return replace(source, prompt="prompt", completion="completion", text=None)
    if "messages" in found:
        return replace(source, messages="messages", text=None)
    if source.text in found:
        return source
    raise DataError(
        f"{source.path}: found the columns {', '.join(found)}, expected prompt and completion, "
        "messages, or text among them for task: completion. Name the columns of one of these forms."
    )


def check_columns(source: Source, role: Role, found: list[str]) -> None:
    """Nothing, when the source has every column that it names.

    Raises:
        DataError: it lacks one; the message says which are there.
    """
    names = ("text", "text_b", "prompt", "completion", "messages", "features", "label", "id")
    for key in names:
        name = getattr(source, key)
        if name is None or name in found or (key == "features" and source.features_file):
            continue
        close = get_close_matches(name, found, n=1, cutoff=0.5)
        advice = f"Did you mean {key}: {close[0]}?" if close else f"Set {key} to one of them."
        if key == "label" and role == "query":
            advice += " For queries without labels, set label: null."
        if key == "text" and source.features is not None:
            advice += " For rows that are vectors alone, set text: null."
        raise DataError(
            f"{source.path}: found the columns {', '.join(found)}, expected {name!r} among them "
            f"for {key}. {advice}"
        )


def used_columns(source: Source) -> set[str]:
    """Columns that are read for what they mean; the others are carried along."""
    own = (source.text, source.text_b, source.prompt, source.completion, source.messages)
    features = None if source.features_file else source.features
    return {name for name in (*own, features, source.label, source.id) if name}


def stored_names(found: list[str], source: Source) -> list[dict[str, str]]:
    """Where each column of the source lies in `Corpus.rows`.

    Names are compared without case: SQL does not tell Text from text.
    """
    own = {source.id: "source_id", source.features: VECTOR}
    own |= {source.label: "target" if source.task == "regression" else "label"}
    own |= {source.text_b: "text_b", source.completion: "text_b"}
    own |= {source.messages: "text", source.prompt: "text", source.text: "text"}
    taken = {*_RESERVED, *(n.lower() for n in found if n.lower() not in _RESERVED)}
    seen: set[str] = set()
    columns = []
    for name in found:
        stored = own.get(name, name)
        if name not in own and (name.lower() in _RESERVED or name.lower() in seen):
            stored = f"source_{name}"
            while stored.lower() in taken:
                stored = f"source_{stored}"
        taken.add(stored.lower())
        seen.add(stored.lower())
        columns.append({"name": name, "stored": stored})
    return columns
