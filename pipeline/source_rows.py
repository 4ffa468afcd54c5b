"""The user's own rows in SQL: columns as their source had them, with what a run found beside."""

from collections.abc import Callable, Mapping
from typing import Any

from stages.corpus.columns import VECTOR
from storage.sql import named


def source_rows(
    facts: Callable[[str], Mapping[str, Any]], has_features: bool, inner: str, columns: list[str]
) -> str:
    """A statement for the rows of the source that `inner` names, in its order.

    Its columns are those that `pipeline.open_run.OpenedRun.write` promises.

    Args:
        facts: What ingestion recorded about a table of the corpus, by the table's name.
        has_features: Whether the run has the view `features`.
        inner: A statement that gives `example_id` and `columns`.
        columns: Which of ours to add; those that repeat a column of the source are left out.
    """
    label, extra = facts("label"), facts("extra")
    own = {}
    if label["label_kind"] == "str":
        own["label"] = "e.label_name"
    elif label["label_kind"] == "int" and not label["is_declared"]:
        own["label"] = "CAST(e.label_name AS BIGINT)"
    if extra["has_number_ids"]:
        own["source_id"] = "CAST(e.source_id AS BIGINT)"
    text = facts("text")
    if text.get("format") == "messages":
        own["text"] = "e.text::JSON"
    own[VECTOR] = "f.vector"
    originals: list[Mapping[str, str]] = extra["columns"]["example"]
    # SQL does not tell Text from text.
    names = {column["name"].lower() for column in originals}
    given = {
        column["name"]
        for column in originals
        if column["name"] == column["stored"] in ("source_id", "text", "label")
    }
    cells = [
        f"{own.get(c['stored'], 'e.' + named(c['stored']))} AS {named(c['name'])}"
        for c in originals
    ]
    if has_features and VECTOR not in {column["stored"] for column in originals}:
        # They lay in a file of their own, whose rows the written ones no longer match.
        cells.append(f"f.vector AS {'assay_features' if 'features' in names else 'features'}")
    if not text.get("has_text", True):
        given |= {"text"}
    vectors = "LEFT JOIN features AS f ON f.id = e.example_id AND f.role = 'example'"
    cells += [
        f"r.{named(c)} AS {named(f'assay_{c}' if c in names else c)}"
        for c in columns
        if c not in given
    ]
    return (
        f"SELECT {', '.join(cells)} FROM (SELECT *, row_number() OVER () AS place_ "
        f"FROM ({inner})) AS r JOIN examples AS e USING (example_id) "
        f"{vectors if has_features else ''} ORDER BY r.place_"
    )
