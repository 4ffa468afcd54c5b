"""An explanation of a set of queries as one page of HTML."""

from collections.abc import Mapping
from typing import Any

from pipeline.explain import set_titles
from pipeline.explain.query import shown_text
from pipeline.explain.titles import method_title
from pipeline.page.document import document


def set_page(found: Mapping[str, Any]) -> str:
    """The explanation as one HTML document."""
    forecast = found["forecast"]
    return document(
        "explanation_of_set.html",
        run_id=found["run_id"],
        heading=set_titles.heading(found),
        predictions=set_titles.prediction_lines(found),
        forecast_title=set_titles.forecast_title(forecast),
        forecast_table=set_titles.forecast_table(forecast) if forecast["rows"] else None,
        verdict=set_titles.verdict(forecast) if forecast["rows"] else "",
        legend=set_titles.legend(found),
        methods=[_method(entry, found) for entry in [*found["methods"], *found["values"]]],
    )


def _method(entry: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a method: what the queries share, those that do not, and lists."""
    return {
        "title": method_title(entry),
        "common": set_titles.common(entry),
        "outliers": [
            [_text(row), row["label"], f"{row['cosine']:.2f}", row["source_id"]]
            for row in set_titles.outliers(entry, found)
        ],
        "lists": [
            {"side": listed.side, "title": listed.title, "rows": _cards(listed, entry["top_k"])}
            for listed in set_titles.lists_of(entry, found)
        ],
    }


def _cards(listed: set_titles.Listed, top_k: int | None) -> list[dict[str, Any]]:
    """A list of examples, with the share of each mean score of the largest."""
    largest = max((abs(row["score"]) for row in listed.rows), default=0.0) or 1.0
    cards = []
    for row in listed.rows:
        shown = set_titles.numbers(row, top_k, listed.n_queries)
        named = [f"{name} {text}" for name, text in shown.items()]
        facts = [row["label"], *named, set_titles.doubts(row), str(row["source_id"])]
        told = " · ".join(fact for fact in facts if fact)
        cards.append({**row, "bar": abs(row["score"]) / largest, "facts": told})
    return cards


def _text(row: Mapping[str, Any]) -> str:
    return shown_text(row) or row["source_id"]
