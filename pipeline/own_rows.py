"""The user's own rows in SQL: columns as their source had them, with what a run found beside."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stages.columns import VECTOR

if TYPE_CHECKING:
    from pipeline.opened import OpenedRun


def own_rows(run: "OpenedRun", inner: str, columns: list[str]) -> str:
    """A statement for the rows of the source that `inner` names, in its order.

    Its columns are those that `pipeline.opened.OpenedRun.write` promises.

    Args:
        run: The run whose corpus it is.
        inner: A statement that gives `example_id` and `columns`.
        columns: Which of ours to add; those that repeat a column of the source are left out.
    """
    label, extra = run.facts("label"), run.facts("extra")
    own = {}
    if label["label_kind"] == "str":
        own["label"] = "e.label_name"
    elif label["label_kind"] == "int" and not label["is_declared"]:
        own["label"] = "CAST(e.label_name AS BIGINT)"
    if extra["has_number_ids"]:
        own["source_id"] = "CAST(e.source_id AS BIGINT)"
    text = run.facts("text")
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
        f"{own.get(c['stored'], 'e.' + _named(c['stored']))} AS {_named(c['name'])}"
        for c in originals
    ]
    has_features = "features" in run.views()
    if has_features and VECTOR not in {column["stored"] for column in originals}:
        # They lay in a file of their own, whose rows the written ones no longer match.
        cells.append(f"f.vector AS {'assay_features' if 'features' in names else 'features'}")
    if not text.get("has_text", True):
        given |= {"text"}
    vectors = "LEFT JOIN features AS f ON f.id = e.example_id AND f.role = 'example'"
    cells += [
        f"r.{_named(c)} AS {_named(f'assay_{c}' if c in names else c)}"
        for c in columns
        if c not in given
    ]
    return (
        f"SELECT {', '.join(cells)} FROM (SELECT *, row_number() OVER () AS place_ "
        f"FROM ({inner})) AS r JOIN examples AS e USING (example_id) "
        f"{vectors if has_features else ''} ORDER BY r.place_"
    )


def _named(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
