"""Review records for Argilla, and its exports.

Formats: `argilla.Dataset.from_disk` and `to_disk` ("Importing and exporting datasets and records"
of its guide): a folder with `records.json`, as `Dataset.records.to_json` writes it, and the
dataset's model and settings in `.argilla`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.handover.tasks import FIELDS, NAMES, QUESTION, Task, Tasks

RECORDS = "records.json"
AGENT = "assay"


def dataset_files(tasks: Tasks, name: str) -> dict[str, bytes]:
    """The files of a dataset called `name` in a folder, by their paths below it.

    Texts are fields without Markdown, which show them as they are.
    """
    files = {
        ".argilla/dataset.json": {"name": name},
        ".argilla/settings.json": _settings(tasks),
        RECORDS: [_record(task) for task in tasks.rows],
    }
    return {path: json.dumps(value, ensure_ascii=False).encode() for path, value in files.items()}


def answers(records: Sequence[Any]) -> Iterator[tuple[Mapping[str, Any], list[tuple[str, Any]]]]:
    """What names the row of each exported record, and who answered what.

    An export does not say which responses are drafts, but which records are completed: only those
    have answers.
    """
    for record in records:
        given = [
            (str(response.get("user_id")), response.get("value"))
            for response in (record.get("responses") or {}).get(QUESTION) or ()
            if response.get("status", "submitted") == "submitted"
        ]
        yield record.get("metadata") or {}, given if record.get("status") == "completed" else []


def is_export(items: Sequence[Any]) -> bool:
    """Whether the parsed items are an export of Argilla."""
    first = items[0] if items else None
    return isinstance(first, dict) and {"fields", "responses", "status"} <= set(first)


def _settings(tasks: Tasks) -> dict[str, Any]:
    """The settings, as `argilla.Settings.to_json` writes them."""
    options = [{"value": choice, "text": choice} for choice in tasks.choices]
    question = {
        "name": QUESTION,
        "title": tasks.title,
        "required": True,
        "settings": {"type": "label_selection", "options": options},
    }
    fields = [
        {
            "name": name,
            "title": FIELDS[name],
            "required": all(task.fields[name] for task in tasks.rows),
            "settings": {"type": "text", "use_markdown": False},
        }
        for name in tasks.fields
    ]
    facts = sorted({name for task in tasks.rows for name in task.facts})
    kinds = {
        name: "float" if isinstance(value, float) else "terms"
        for task in tasks.rows[:1]
        for name, value in task.facts.items()
    }
    metadata = [
        {
            "name": name,
            "title": name,
            "visible_for_annotators": True,
            "settings": {"type": kinds.get(name, "terms")},
        }
        for name in (*facts, *NAMES)
    ]
    return {
        "guidelines": f"{tasks.title} Rows of the run {tasks.run_id}, the most suspicious first.",
        "questions": [question],
        "fields": fields,
        "vectors": [],
        "metadata": metadata,
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
    }


def _record(task: Task) -> dict[str, Any]:
    """The record, as `argilla.Record.to_dict` gives it."""
    return {
        "id": task.names["example_id"],
        "fields": dict(task.fields),
        "metadata": {**task.facts, **task.names},
        "suggestions": {QUESTION: {"value": task.suggestion, "score": task.score, "agent": AGENT}},
        "responses": {},
        "vectors": {},
        "status": "pending",
    }
