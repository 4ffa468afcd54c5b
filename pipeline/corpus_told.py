"""What a corpus of completions or preferences holds: rows, tokens, and both by where rows are from.

Of each value of a column `source` (or one of its other usual names): how many rows there are, their
tokens, and how many of the rows would be chosen among, and chosen.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.budgets import counts_of
from pipeline.decisions import KEPT, OF_TEXTS
from pipeline.errors import RunError
from pipeline.terminal import table
from storage.sql import named

SOURCES = ("source", "dataset", "dataset_name", "origin", "domain")
"""Columns that tell where rows are from, the first that is there."""
MOST = 20
"""Most values that are listed: a column of more is no source."""
SHARE = 0.2
"""Share of the rows that is chosen where no trial says another."""


def corpus_facts(run: Any, trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the corpus of `run` holds, as plain values; None of another task, or without tokens.

    Keys: rows, tokens (are_pairs: of the longer side of each), rejected, near_duplicates (None
    where nothing looked for them), keep (the share that is chosen; None where nothing chooses),
    sources (name, rows, tokens, able: those that are chosen among, chosen), by (their column).
    """
    if run.task() not in OF_TEXTS:
        return None
    try:
        view = counts_of(run)
    except RunError:
        return None
    keep = next((trial["keep"] for trial in trials), SHARE)
    nothing = "SELECT NULL::BIGINT AS example_id WHERE false"
    try:
        shares = (f"{100 * keep:.6g}%", "100%")
        chosen, able = (run.select(keep=share).chosen[0].statement for share in shares)
    except RunError:
        keep, chosen, able = None, nothing, nothing
    columns = run.sql("SELECT * FROM tables.extra LIMIT 0").columns
    by = next((name for name in SOURCES if name in columns), None)
    of = f"x.{named(by)}::VARCHAR" if by is not None else "NULL"
    rows = run.sql(
        f"""
        SELECT {of} AS name, count(*) AS rows, sum(t.n)::BIGINT AS tokens,
               count(a.example_id) AS able, count(c.example_id) AS chosen
        FROM tables.extra AS x
        LEFT JOIN (SELECT id, max(n_tokens) AS n FROM {view} WHERE role = 'example'
                   GROUP BY id) AS t ON t.id = x.id
        LEFT JOIN ({able}) AS a ON a.example_id = x.id
        LEFT JOIN ({chosen}) AS c ON c.example_id = x.id
        WHERE x.role = 'example' AND x.id IN (SELECT id FROM tables.label WHERE role = 'example')
        GROUP BY ALL ORDER BY tokens DESC NULLS LAST, name"""
    )
    found = [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]
    ((n_rejected,),) = run.sql(
        "SELECT count(*) FROM rejected WHERE role = 'example'"
        if "rejected" in run.views()
        else "SELECT 0"
    ).fetchall()
    near = None
    if "near_duplicates" in run.views():
        ((near,),) = run.sql(
            f"SELECT count(DISTINCT example_id) FROM near_duplicates WHERE {KEPT}"
        ).fetchall()
    return {
        "rows": sum(row["rows"] for row in found),
        "tokens": sum(row["tokens"] or 0 for row in found),
        "rejected": n_rejected,
        "near_duplicates": near,
        "are_pairs": run.task() == "preference",
        "keep": keep,
        "by": by,
        "sources": found if 1 < len(found) <= MOST else [],
    }


def about_corpus(facts: Mapping[str, Any]) -> list[Any]:
    """The same for a terminal: a sentence, and a table where rows are from several sources."""
    near = facts["near_duplicates"]
    which = " on the longer side of each" if facts["are_pairs"] else ""
    told = [f"{facts['rows']:,} rows with {facts['tokens']:,} tokens{which}"]
    told += [f"{facts['rejected']:,} others could not be used"] if facts["rejected"] else []
    told += [f"{near:,} are nearly the same as another"] if near is not None else []
    said = "; ".join(told) + "."
    if not facts["sources"]:
        return [said]
    names = [facts["by"], "rows", "tokens", "share of tokens"]
    chosen = ["left out", f"in the best {facts['keep']:.0%}"] if facts["keep"] else []
    cells = [
        [
            *(row["name"], row["rows"], row["tokens"] or 0),
            f"{(row['tokens'] or 0) / max(1, facts['tokens']):.0%}",
            *([row["rows"] - row["able"], row["chosen"]] if chosen else []),
        ]
        for row in facts["sources"]
    ]
    return [said, table([*names, *chosen], cells)]
