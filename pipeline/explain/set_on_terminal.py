"""An explanation of a set of queries as lines and tables on the terminal."""

import json
from collections.abc import Mapping
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
            cells = [[_text(row), row["label"], row["cosine"], row["source_id"]] for row in out]
            show(table(["text", "label", "cosine", "source_id"], cells))
    show(f"\n{set_titles.forecast_title(found['forecast'])}")
    if found["forecast"]["rows"]:
        show(table(*set_titles.forecast_table(found["forecast"])))
        show(set_titles.verdict(found["forecast"]))


def _print_examples(listed: set_titles.Listed, top_k: int | None) -> None:
    if not listed.rows:
        show("none")
        return
    shown = [set_titles.numbers(row, top_k, listed.n_queries) for row in listed.rows]
    cells = [
        [_text(row), row["label"], *named.values(), set_titles.doubts(row), row["source_id"]]
        for row, named in zip(listed.rows, shown, strict=True)
    ]
    show(table(["text", "label", *shown[0], "doubts", "source_id"], cells))


def _text(row: Mapping[str, Any]) -> str:
    return shown_text(row) or row["source_id"]
