"""An explanation as one page of HTML, and as a part of a report."""

from collections.abc import Mapping
from typing import Any

from pipeline.explain import words as explain_words
from pipeline.explain.on_terminal import numbers, prediction_lines
from pipeline.explain.query import Rows, shown_text
from pipeline.explain.titles import legend, method_title, shown_sides, side_title, support_title
from pipeline.page.document import document

Pictures = Mapping[int | None, str]
"""Images as `data:` URLs by example_id; under None that of the query."""


def page(found: Mapping[str, Any], pictures: Pictures) -> str:
    """The explanation as one HTML document, with the images of its rows where they have one."""
    return document(
        "explanation.html",
        run_id=found["run_id"],
        heading=shown_text(found["query"]) or f"Query {found['query']['query_id']}",
        explained=explained(found),
        images=pictures,
    )


def explained(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a template shows of an explanation that `pipeline.explain.explanation.explain` gave.

    Keys: predictions, words, legend, methods and spectra; every example has `bar`, its share of the
    largest number of the method, and `facts`.
    """
    methods = []
    for entry in [*found["methods"], *found["values"]]:
        sides = shown_sides(entry)
        largest = max((_size(row) for side in sides for row in entry[side]), default=0.0)
        shown = [
            {
                "side": side,
                "title": side_title(entry, side, found),
                "rows": [_card(row, largest) for row in entry[side]],
            }
            for side in sides
        ]
        methods.append({"title": method_title(entry), "sides": shown})
    return {
        "predictions": prediction_lines(found),
        "words": [
            {"title": explain_words.title(entry), "pieces": _pieces(entry, found["query"])}
            for entry in found["tokens"]
        ],
        "legend": legend(found),
        "methods": methods,
        "spectra": [
            {
                "title": support_title(entry["method"], contrast),
                "rows": [_card(row, 0.0) for row in contrast["examples"]],
            }
            for entry in found["spectra"]
            for contrast in entry["contrasts"]
        ],
    }


def _card(row: Mapping[str, Any], largest: float) -> dict[str, Any]:
    """An example with the share of its number of the largest, and what stands below its text."""
    named = [f"{name} {number}" for name, number in numbers(row).items()]
    label = [] if row["label"] is None else [str(row["label"])]
    facts = " · ".join([*label, *named, str(row["source_id"])])
    return {**row, "bar": _size(row) / largest if largest else None, "facts": facts}


def _size(row: Mapping[str, Any]) -> float:
    return float(abs(row["score"] if "score" in row else row.get("value") or 0.0))


def _pieces(
    entry: Mapping[str, Any], query: Mapping[str, Any]
) -> list[tuple[str, float, str | None]]:
    """The text in pieces, each with its score over the largest, and the score of a word."""
    largest = max((abs(word["score"]) for word in entry["words"]), default=0.0) or 1.0
    return [
        (text, share or 0.0, None if share is None else f"{share * largest:+.4g}")
        for text, share in explain_words.pieces(entry, query)
    ]


def all_rows(found: Mapping[str, Any]) -> Rows:
    """Every example that an explanation lists."""
    lists = [
        entry[side]
        for entry in [*found["methods"], *found["values"]]
        for side in ("helpful", "harmful")
    ]
    lists += [c["examples"] for entry in found["spectra"] for c in entry["contrasts"]]
    return [row for rows in lists for row in rows]
