"""Review tasks for Label Studio, and its exports.

Formats: "Import pre-annotated data into Label Studio" (tasks with `data`, `predictions` and
`meta`), "Label Studio JSON format of annotated tasks" and "JSON_MIN" of its guide; tags `View`,
`Header`, `Text` and `Choices` of its reference.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.handover.tasks import FACTS, FIELDS, NAMES, QUESTION, Task, Tasks

MANY = 9
"""Choices beyond which they are a list to open: keys are there for as many."""


def import_file(tasks: Tasks) -> bytes:
    """The tasks as JSON to be imported, each with what the run would choose as a prediction."""
    return json.dumps([_task(tasks, task) for task in tasks.rows], ensure_ascii=False).encode()


def labelling_config(tasks: Tasks) -> bytes:
    """The labelling interface of the tasks, XML for the project's settings.

    Texts are shown by `Text`, which knows neither HTML nor, with `valueType`, addresses.
    """
    view = ET.Element("View")
    for name in tasks.fields:
        ET.SubElement(view, "Header", value=FIELDS[name], size="5")
        ET.SubElement(view, "Text", name=name, value=f"${name}", valueType="text")
    facts = [name for name in FACTS if any(name in task.facts for task in tasks.rows)]
    for name in facts:
        if name in ("given_label", "reason"):
            ET.SubElement(view, "Header", value=name.replace("_", " ").capitalize(), size="5")
            ET.SubElement(view, "Text", name=name, value=f"${name}", valueType="text")
    ET.SubElement(view, "Header", value=tasks.title)
    layout: dict[str, str] = (
        {"layout": "select"} if len(tasks.choices) > MANY else {"showInline": "true"}
    )
    asked = ET.SubElement(
        view,
        "Choices",
        {"name": QUESTION, "toName": tasks.fields[0], "choice": "single", **layout},
    )
    for choice in tasks.choices:
        ET.SubElement(asked, "Choice", value=choice)
    ET.indent(view)
    return f"{ET.tostring(view, encoding='unicode')}\n".encode()


def answers(exported: Sequence[Any]) -> Iterator[tuple[Mapping[str, Any], list[tuple[str, Any]]]]:
    """What names the row of each exported task, and who chose what; skipped tasks have none.

    `exported` is a file of the format JSON or JSON_MIN.
    """
    if exported and "annotations" not in exported[0]:
        yield from _of_minimal(exported)
        return
    for task in exported:
        given = [
            (_who(annotation.get("completed_by")), choice)
            for annotation in task.get("annotations") or ()
            if not annotation.get("was_cancelled")
            for result in annotation.get("result") or ()
            if result.get("from_name") == QUESTION
            for choice in (result.get("value") or {}).get("choices") or ()
        ]
        yield task.get("data") or {}, given


def is_export(items: Sequence[Any]) -> bool:
    """Whether the parsed items are an export of Label Studio."""
    first = items[0] if items else None
    if not isinstance(first, dict):
        return False
    is_minimal = set(NAMES) <= set(first) and "annotation_id" in first
    return is_minimal or {"data", "annotations"} <= set(first)


def _of_minimal(
    exported: Sequence[Any],
) -> Iterator[tuple[Mapping[str, Any], list[tuple[str, Any]]]]:
    """JSON_MIN has a row for each annotation: those of a task are put together."""
    given: dict[Any, list[tuple[str, Any]]] = {}
    data: dict[Any, Mapping[str, Any]] = {}
    for row in exported:
        key = row.get("example_id")
        data.setdefault(key, row)
        chosen = row.get(QUESTION)
        several = chosen.get("choices") if isinstance(chosen, dict) else [chosen]
        given.setdefault(key, []).extend(
            (_who(row.get("annotator")), choice) for choice in several or () if choice is not None
        )
    for key, row in data.items():
        yield row, given[key]


def _who(completed_by: Any) -> str:
    """The person who annotated: an id, or what an export tells beside it."""
    if isinstance(completed_by, dict):
        return str(completed_by.get("email") or completed_by.get("id"))
    return str(completed_by)


def _task(tasks: Tasks, task: Task) -> dict[str, Any]:
    region = {
        "from_name": QUESTION,
        "to_name": tasks.fields[0],
        "type": "choices",
        "value": {"choices": [task.suggestion]},
    }
    names = {"example_id": task.names["example_id"], "source_id": task.names["source_id"]}
    return {
        # The names are data, too: not every export has `meta`.
        "data": {**task.fields, **task.facts, **task.names},
        "predictions": [{"model_version": tasks.run_id, "score": task.score, "result": [region]}],
        "meta": {**names, "run_id": tasks.run_id},
    }
