"""The table of all rows that a person sorts and searches: which rows and columns, and its script.

The script is DataTables, as the Python package `itables` carries it: 0.6 MB, MIT, no `eval` on the
way that is taken. The tables of bokeh need 1.6 MB and a `Function` made of text to filter.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.page.asked import Asked
from pipeline.page.document import asset, readable
from pipeline.page.subject import Subject
from storage.sql import quoted

MOST_ROWS = 100_000
"""Rows that are embedded, the most suspicious first."""
TEXT_BYTES = 8_000_000
"""Bytes of texts that are embedded, about: every text is cut to its share."""
BY_ID = "e.example_id"
"""The order of rows that nothing was said of."""
LONGEST, SHORTEST = 160, 40
"""Characters that a text is cut to, between few rows and many."""


@dataclass(frozen=True)
class RowsTable:
    """The rows of the table, and how its columns are shown."""

    columns: list[dict[str, Any]]
    """`Column.shown` of each."""
    rows: list[list[Any]]
    asked: Asked
    total: int
    """Rows of the corpus, those that are not embedded among them."""
    cut: int
    """Characters that texts are cut to."""
    is_by_suspicion: bool
    """Whether the rows that look most wrong come first; else they are in the order of ids."""

    @property
    def data(self) -> dict[str, Any]:
        """What the page embeds for the script."""
        return {"columns": self.columns, "rows": self.rows}


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    title: str
    name: str
    """What a statement calls it."""
    expression: str
    """Its SQL over the joined views."""
    kind: str
    """`text`, `number`, `class` (of few values) or `flag`."""
    digits: int = 4
    """Significant digits of a number; 0: all."""

    @property
    def shown(self) -> dict[str, Any]:
        """What the script is told of it."""
        return {"title": self.title, "kind": self.kind, "digits": self.digits}


def rows_table(subject: Subject) -> RowsTable:
    """All rows of the corpus, or the most suspicious, with what the run says of each."""
    total = int(subject.n_examples.number)
    cut = max(SHORTEST, min(LONGEST, TEXT_BYTES // max(1, min(total, MOST_ROWS))))
    columns, joins, order = parts(subject, cut)
    asked = subject.ask(
        f"SELECT {', '.join(f'{c.expression} AS {c.name}' for c in columns)}\n"
        f"FROM examples AS e {' '.join(joins)}\nORDER BY {order}, e.example_id LIMIT {MOST_ROWS}"
    )
    rows = [[cell(value) for value in row.values()] for row in asked.rows]
    is_ordered = order != BY_ID
    return RowsTable([c.shown for c in columns], rows, asked, total, cut, is_ordered)


def table_script(name: str) -> str:
    """DataTables, and a file of `assets/` that makes a table with it, as one module.

    Raises:
        RuntimeError: the package `itables` holds another bundle than is known.
    """
    found = importlib.util.find_spec("itables")  # not imported: only a file of it is needed
    folder = Path((found.submodule_search_locations or [""])[0]) if found else Path()
    bundle = (folder / "html" / "dt_bundle.js").read_text(encoding="utf-8")
    exported = re.search(r"export\s*\{([^}]*)\};?\s*", bundle)
    parts = [part.split(" as ") for part in exported[1].split(",")] if exported else []
    names = {public.strip(): local.strip() for local, public in parts}
    if exported is None or "default" not in names:
        raise RuntimeError(f"{folder}: found no DataTables in itables, expected its bundle.")
    bundle = bundle[: exported.start()] + bundle[exported.end() :]
    own = (asset("cells.js") + asset(name)).replace("DATA_TABLE", names["default"])
    return f"{bundle}\n{own}".replace("</script", "<\\/script").replace("<!--", "<\\!--")


def parts(
    subject: Subject, cut: int, issues: str = "issues"
) -> tuple[list[Column], list[str], str]:
    """Columns, joins onto `examples AS e`, and order: what a statement of all rows is made of.

    `issues` is the view of them, or a table of its rows.
    """
    columns = [Column("id", "source_id", "e.source_id", "text")]
    joins: list[str] = []
    order = BY_ID
    if subject.task == "completion":
        joins.append("JOIN completions AS c ON c.id = e.example_id AND c.role = 'example'")
        columns += [
            Column("prompt", "prompt", shortened("c.prompt", cut // 2, by_end=True), "text"),
            Column("answer", "answer", shortened("c.answer", cut), "text"),
            Column("characters", "characters", "length(c.answer)", "number", 0),
        ]
    elif subject.task == "preference":
        joins.append("JOIN preferences AS c ON c.id = e.example_id AND c.role = 'example'")
        columns += [
            Column(name, name, shortened(f"c.{name}", cut // 2, name == "prompt"), "text")
            for name in ("prompt", "chosen", "rejected")
        ]
    elif subject.has_texts:
        text = shortened("concat_ws(' | ', e.text, e.text_b)", cut)
        columns.append(Column("text", "text", text, "text"))
    judged = subject.judged
    if judged is not None and subject.task == "classification":
        joins.append(f"LEFT JOIN (FROM {judged.rows}) AS i USING (example_id)")
        columns += [
            Column("given", "given_label", "e.label_name", "class"),
            Column("suggested", "suggested_label", "i.suggested_label", "class"),
            Column("score", "label_score", "round(i.label_score, 4)", "number"),
            Column("p(wrong)", "p_wrong", "round(i.p_wrong, 3)", "number", 3),
            Column("flagged", "flagged", "i.is_label_issue", "flag"),
        ]
        order = "i.label_score NULLS LAST"
    elif judged is not None:
        joins.append(f"LEFT JOIN (FROM {judged.rows}) AS i USING (example_id)")
        columns += [
            Column("reason", "reason", "i.reason", "class"),
            Column(
                "p(wrong)" if subject.task == "preference" else "p(bad)",
                "p_wrong",
                "round(i.p_wrong, 3)",
                "number",
                3,
            ),
            Column("flagged", "flagged", f"i.{subject.flag}", "flag"),
        ]
        order = "i.p_wrong DESC NULLS LAST"
    elif subject.task == "classification":
        columns.append(Column("label", "given_label", "e.label_name", "class"))
    if subject.task == "regression":
        columns.append(Column("target", "target", "e.target", "number"))
        if (found := subject.instance("predictions")) is not None:
            joins.append(
                "LEFT JOIN (SELECT id, any_value(logits[1] ORDER BY method) AS predicted, "
                "any_value(sqrt(loss) ORDER BY method) AS off FROM "
                f"{found.rows} AND role = 'example' GROUP BY id) AS p ON p.id = e.example_id"
            )
            columns += [
                Column("predicted", "predicted", "p.predicted", "number"),
                Column("off by", "off_by", "p.off", "number"),
            ]
            order = "p.off DESC NULLS LAST"
    if (lost := subject.instance("answer_losses")) is not None:
        joins.append(
            f"LEFT JOIN (FROM {lost.rows} AND role = 'example') AS o ON o.id = e.example_id"
        )
        columns += [
            Column("loss", "loss", "round(o.loss, 3)", "number", 3),
            Column("difficulty", "difficulty", "round(o.difficulty, 3)", "number", 3),
        ]
    if (relevance := subject.instance("query_relevance")) is not None:
        joins.append(
            "LEFT JOIN (SELECT example_id, similarity "
            f"FROM {relevance.rows}) AS r USING (example_id)"
        )
        columns.append(Column("on task", "similarity", "round(r.similarity, 3)", "number", 3))
    if subject.values is not None:
        method, utility = subject.values
        joins.append(
            "LEFT JOIN (FROM shapley WHERE semivalue = 'shapley' AND "
            f"method = {quoted(method)} AND utility = {quoted(utility)}) AS v USING (example_id)"
        )
        columns.append(Column("value", "value", "v.value", "number", 3))
    if not subject.has_texts:  # texts that are all empty would all be duplicates
        return columns, joins, order
    joins.append(
        "LEFT JOIN (SELECT example_id, string_agg(DISTINCT issue, ', ' ORDER BY issue) AS issues "
        f"FROM {issues} GROUP BY example_id) AS s USING (example_id)"
    )
    columns.append(Column("issues", "issues", "s.issues", "text"))
    return columns, joins, order


def shortened(text: str, longest: int, by_end: bool = False) -> str:
    """SQL of a text that is cut to so many characters, with a mark where it was; or of its end."""
    cut = f"'…' || right({text}, {longest})" if by_end else f"left({text}, {longest}) || '…'"
    return f"CASE WHEN length({text}) > {longest} THEN {cut} ELSE {text} END"


def cell(value: Any) -> Any:
    """A value as JSON has it: numbers that are none of JSON's are missing ones."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    if isinstance(value, str):
        return readable(value)
    return value
