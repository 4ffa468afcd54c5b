"""An explanation of a set of queries as lines and tables on the terminal."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from pipeline.explain import set_titles
from pipeline.explain.query import shown_text
from pipeline.explain.titles import method_title
from pipeline.terminal import show, table


def print_set(found: Mapping[str, Any], top: int, is_json: bool) -> None:
    """Prints what `pipeline.explain.failing.explain_set` returned; of outliers `top` a method."""
    if is_json:
        click.echo(json.dumps(found))
        return
    show(set_titles.heading(found))
    for line in set_titles.prediction_lines(found):
        show(line)
    show(f"\n{set_titles.legend(found)}")
    for entry in [*found["methods"], *found["values"]]:
        for listed in set_titles.lists_of(entry, found):
            show(f"\n{method_title(entry)}: {listed.title}")
            _print_examples(listed, entry["top_k"])
        show(f"\n{method_title(entry)}: {set_titles.common(entry)}")
        if out := set_titles.outliers(entry, found)[:top]:
            _print_rows([{**_of_row(row), "cosine": row["cosine"]} for row in out], out)
    show(f"\n{set_titles.forecast_title(found['forecast'])}")
    if found["forecast"]["rows"]:
        show(table(*set_titles.forecast_table(found["forecast"])))
        show(set_titles.verdict(found["forecast"]))


def _print_examples(listed: set_titles.Listed, top_k: int | None) -> None:
    if not listed.rows:
        show("none")
        return
    n = listed.n_queries
    _print_rows(
        [
            {**_of_row(row), **set_titles.numbers(row, top_k, n), "doubts": set_titles.doubts(row)}
            for row in listed.rows
        ],
        listed.rows,
    )


def _of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row is, by the names of columns."""
    return {"text": _text(row), "label": row["label"]}


def _print_rows(shown: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table, without labels and doubts where no row has any, and with the ids last."""
    names = [n for n in shown[0] if n not in ("label", "doubts") or any(row[n] for row in shown)]
    cells = [
        [*(row[name] for name in names), told["source_id"]]
        for row, told in zip(shown, rows, strict=True)
    ]
    show(table([*names, "source_id"], cells))


def _text(row: Mapping[str, Any]) -> str:
    return shown_text(row) or row["source_id"]
