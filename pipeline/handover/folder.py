"""Rows to train on as a folder for the hub, with the rows that were left out and a card of both."""

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.chosen_rows import how
from pipeline.decided import undecided
from pipeline.errors import RunError
from pipeline.handover.card import Story, card_text
from pipeline.selection import RANDOM, Chosen, class_counts, left_out
from pipeline.source_rows import source_rows, source_table
from storage.export import new_folder
from storage.sql import quoted

JUDGED = ("answer_issues", "preference_issues")
"""Views whose flagged rows are not chosen among."""
OWN = ("example_id", "value", "rank", "weight")
"""What a selection says of a row; all else that is written is the source's."""
ARGUMENTS = {
    "keep": "--keep",
    "drop": "--drop",
    "by": "--by",
    "utility": "--utility",
    "method": "--method",
    "per_class": "",
    "quota": "--quota",
    "soft": "--soft",
    "keep_flagged": "--keep-flagged",
    "per": "--per",
}
"""Arguments of `OpenedRun.select` in their order, and the options of the command."""


def is_folder(path: str | Path) -> bool:
    """Whether an output is a folder: its name has no ending, or a slash at its end."""
    return str(path).endswith(("/", os.sep)) or not Path(path).suffix


def write_selected(run: Any, rows: Any, path: Path) -> int:
    """Writes what `OpenedRun.select` gave, and the rows that it left out; returns how many it gave.

    Raises:
        RunError: the rows are not those of `select` as they came.
        storage.schema.StorageError: the folder holds something, or cannot be written.
    """
    if rows.chosen is None:
        raise RunError(
            f"{path}: found rows that are no selection, expected what `select` returned, as it "
            "came: a folder also tells of the rows that were left out. Name a file that ends in "
            ".parquet, .jsonl or .csv."
        )
    chosen, given = rows.chosen
    kept = source_table(run, chosen.statement, [c for c in rows.columns if c in OWN])
    removed, reasons = _with_reasons(run, _removed(run, chosen, given), ["example_id", "value"])
    story = Story(
        run,
        f"Rows selected {how(chosen.source.by)}",
        f"assay select {_run_name(run)} {_options(given)}--out FOLDER",
        class_counts(run, chosen.statement, chosen.per),
        chosen.per or "class",
        reasons,
    )
    _write(run, path, {"default": kept, "removed": removed}, story)
    return int(kept.num_rows)


def write_corrected(run: Any, path: Path, before: Any) -> int:
    """Writes the corpus of a run as reviews corrected it, and what they changed; returns how many.

    Args:
        run: The opened run.
        path: The folder.
        before: The opened run that was reviewed; None tells of no changes.

    Raises:
        storage.schema.StorageError: the folder holds something, or cannot be written.
    """
    kept = source_table(run, "SELECT example_id FROM examples ORDER BY row_number")
    tables = {"default": kept}
    counts: list[tuple[str | None, int, int]] = [
        (name, n, n) for name, n, _ in class_counts(run, "SELECT example_id FROM examples")
    ]
    reasons: Mapping[str, int] = {}
    if before is not None:
        changed, reasons = _changes(run, before)
        tables |= changed
        now = {name: n for name, n, _ in counts}
        then = class_counts(before, "SELECT example_id FROM examples")
        counts = [(name, n, now.pop(name, 0)) for name, n, _ in then]
        counts += [(name, 0, n) for name, n in now.items()]
    title, command = "The rows of a run", "run.write_corpus(FOLDER)"
    if before is not None:
        title = "A corpus corrected by a review"
        command = f"assay apply {_run_name(before)} REVIEW --out FOLDER"
    story = Story(run, title, command, counts, "class", reasons)
    _write(run, path, tables, story)
    return int(kept.num_rows)


def _changes(run: Any, before: Any) -> tuple[dict[str, pa.Table], Mapping[str, int]]:
    """Rows that a review dropped, and those that it changed, which are as they are now.

    With the number of dropped rows by reason.
    """
    then = _labels(before)
    now = _labels(run)
    dropped = [row for row in then if row not in now]
    statement = (
        "SELECT example_id, 'dropped in a review' AS reason FROM examples "
        f"WHERE example_id IN ({_listed(dropped)}) ORDER BY row_number"
    )
    removed, reasons = _with_reasons(before, statement, ["example_id"])
    tables = {"removed": removed}
    changed = [row for row in now if row in then and then[row] != now[row]]
    if changed:
        is_pair = run.task() == "preference"
        was = {row: "in the other order" if is_pair else str(then[row]) for row in changed}
        rows = ", ".join(f"({row}, {quoted(told)})" for row, told in was.items())
        statement = (
            "SELECT example_id, was AS label_before FROM examples "
            f"JOIN (VALUES {rows}) AS c(id, was) ON id = example_id ORDER BY row_number"
        )
        tables["corrected"] = source_table(run, statement, ["example_id", "label_before"])
    return tables, reasons


def _with_reasons(
    run: Any, statement: str, columns: Sequence[str]
) -> tuple[pa.Table, Mapping[str, int]]:
    """Rows of the source with `columns` and the reason of a statement; how many have each reason.

    These are counted in the statement: the source may have a column `reason` of its own.
    """
    chosen = run.to_arrow(statement)
    rows = source_rows(run.store, run.corpus_manifests(), chosen, [*columns, "reason"])
    return rows, Counter(chosen["reason"].to_pylist())


def _labels(run: Any) -> dict[int, Any]:
    """Of each example what a review may change: its label, its target, or the order of a pair."""
    changing = "coalesce(label_name, target::VARCHAR)"
    if run.task() == "preference":
        changing = "text_b"
    rows = run.decided(f"SELECT example_id, {changing} FROM examples").fetchall()
    return dict(rows)


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "NULL"


def _removed(run: Any, chosen: Chosen, given: Sequence[Any]) -> str:
    """The statement of the rows that a selection left out: example_id, value and reason."""
    source = chosen.source
    other = f"lower by {source.by} than the rows that are kept"
    if source is RANDOM:
        other = "not drawn"
    flagged = "SELECT NULL::BIGINT AS example_id, NULL AS reason WHERE false"
    repeated = "SELECT NULL::BIGINT AS example_id WHERE false"
    asked = dict(zip(ARGUMENTS, given, strict=True))
    if run.task() in ("completion", "preference") and not asked["keep_flagged"]:
        for view in JUDGED:
            if run.methods(view):
                flag = f"is_{view.removesuffix('s')}"
                flagged = (
                    "SELECT example_id, 'flagged: ' || any_value(reason ORDER BY method) AS reason "
                    f"FROM {view} WHERE {flag} {undecided(run)} GROUP BY example_id"
                )
        repeated = left_out(run).rows or repeated
    return f"""
        SELECT e.example_id, v.value, coalesce(
                   f.reason,
                   CASE WHEN r.example_id IS NOT NULL THEN 'near duplicate of another row' END,
                   CASE WHEN v.example_id IS NULL THEN {quoted(f"not judged by {source.by}")} END,
                   {quoted(other)}) AS reason
        FROM examples AS e
        LEFT JOIN ({flagged}) AS f USING (example_id)
        LEFT JOIN (SELECT DISTINCT example_id FROM ({repeated})) AS r USING (example_id)
        LEFT JOIN (SELECT v.example_id, {source.value} AS value FROM {source.view} AS v
                   WHERE v.method = {quoted(source.instance)}) AS v USING (example_id)
        WHERE e.example_id NOT IN (SELECT example_id FROM ({chosen.statement}))
        ORDER BY e.row_number"""


def _write(run: Any, path: Path, tables: Mapping[str, pa.Table], story: Story) -> None:
    """Writes a folder of tables with their card, whole or not at all."""
    from stages.corpus.hub_folder import write_hub_folder

    rejected = run.to_arrow(
        "SELECT row_number, source_id, reason, raw FROM rejected WHERE role = 'example' "
        "ORDER BY row_number"
    )
    shown = {name: table for name, table in tables.items() if table.num_rows or name == "default"}
    if rejected.num_rows:
        shown["rejected"] = rejected
    with new_folder(path) as folder:
        text = card_text(story, path.resolve().name, shown)
        write_hub_folder(folder, shown, text, ["assay"], _class_names(run))


def _class_names(run: Any) -> dict[str, list[str]]:
    """Of the source's column of labels, the names of classes that its integers are places of."""
    columns = run.corpus_manifests()["extra"].details["columns"]["example"]
    rows = run.sql("SELECT label_name FROM provenance.class ORDER BY label").fetchall()
    names = [name for (name,) in rows]
    return {
        column["name"]: names
        for column in columns
        if column["stored"] == "label"
        and column["cells"] == list(range(len(names)))
        and names != [str(cell) for cell in column["cells"]]
    }


def _run_name(run: Any) -> str:
    """What a shell calls the run, without its folder."""
    return shlex.quote(run.folder.path.name)


def _options(given: Sequence[Any]) -> str:
    """The options of `assay select` for the arguments of a selection, as a shell takes them."""
    words = []
    for (name, option), value in zip(ARGUMENTS.items(), given, strict=True):
        if name == "per_class":
            words += [] if value else ["--overall"]
        elif name == "quota":
            named = [f"{key}={rows}" for key, rows in (value or {}).items()]
            words += [f"{option} {shlex.quote(word)}" for word in named]
        elif value is True:
            words.append(option)
        elif value not in (None, False):
            words.append(f"{option} {shlex.quote(str(value))}")
    return "".join(f"{word} " for word in words)
