"""SQL for the rows of the user's source: its columns as they were, and results of the run."""

from collections.abc import Callable, Mapping
from typing import Any

from stages.corpus.columns import VECTOR
from storage.sql import named


def source_rows(
    facts: Callable[[str], Mapping[str, Any]], has_features: bool, inner: str, columns: list[str]
) -> str:
    """The SELECT of the source's rows whose example_ids the statement `inner` gives, in its order.

    Its columns are those that `pipeline.open_run.OpenedRun.write` promises.

    Args:
        facts: What ingestion recorded about a table of the corpus, by the table's name.
        has_features: Whether the run has the view `features`.
        inner: A statement that gives `example_id` and `columns`.
        columns: Columns of `inner` to add; those that repeat one of the source are left out.
    """
    label, extra = facts("label"), facts("extra")
    cell_sql = {}
    if label["label_kind"] == "str":
        cell_sql["label"] = "e.label_name"
    elif label["label_kind"] == "int" and not label["is_declared"]:
        cell_sql["label"] = "CAST(e.label_name AS BIGINT)"
    if extra["has_number_ids"]:
        cell_sql["source_id"] = "CAST(e.source_id AS BIGINT)"
    text = facts("text")
    if text.get("format") == "messages":
        cell_sql["text"] = "e.text::JSON"
    cell_sql[VECTOR] = "f.vector"
    originals: list[Mapping[str, str]] = extra["columns"]["example"]
    # SQL does not tell Text from text.
    names = {column["name"].lower() for column in originals}
    repeated = {
        column["name"]
        for column in originals
        if column["name"] == column["stored"] in ("source_id", "text", "label")
    }
    cells = [
        f"{cell_sql.get(c['stored'], 'e.' + named(c['stored']))} AS {named(c['name'])}"
        for c in originals
    ]
    if has_features and VECTOR not in {column["stored"] for column in originals}:
        # The vectors lay in a separate file, whose rows the written ones no longer match.
        cells.append(f"f.vector AS {'assay_features' if 'features' in names else 'features'}")
    if not text.get("has_text", True):
        repeated |= {"text"}
    vectors = "LEFT JOIN features AS f ON f.id = e.example_id AND f.role = 'example'"
    cells += [
        f"r.{named(c)} AS {named(f'assay_{c}' if c in names else c)}"
        for c in columns
        if c not in repeated
    ]
    return (
        f"SELECT {', '.join(cells)} FROM (SELECT *, row_number() OVER () AS place_ "
        f"FROM ({inner})) AS r JOIN examples AS e USING (example_id) "
        f"{vectors if has_features else ''} ORDER BY r.place_"
    )
