"""An explanation as one page of HTML, and as a part of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.explain import words as explain_words
from pipeline.explain.on_terminal import numbers, prediction_lines
from pipeline.explain.query import Rows, shown_text
from pipeline.explain.titles import (
    is_regression,
    label_text,
    legend,
    method_title,
    shown_sides,
    side_title,
    support_title,
)
from pipeline.page.document import document

CLASSES = 5
"""Classes whose probabilities are shown, the likeliest."""
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


def explained(
    found: Mapping[str, Any], scales: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What a template shows of an explanation that `pipeline.explain.explanation.explain` gave.

    Keys: predictions, probabilities, words, legend, methods and spectra; every example has `bar`,
    its share of the largest number of the method, and `facts`. `scales` are the largest numbers of
    methods on a page of several explanations (`largest_numbers`).
    """
    of_numbers = is_regression(found)
    largest = scales or largest_numbers([found])

    methods = []
    for entry in [*found["methods"], *found["values"]]:
        title = method_title(entry)
        shown = [
            {
                "side": side,
                "title": side_title(entry, side, found),
                "rows": [_card(row, largest[title], of_numbers) for row in entry[side]],
            }
            for side in shown_sides(entry)
        ]
        methods.append({"title": title, "sides": shown})
    is_of_answer = bool(found["answers"])
    predicted = [line["predicted"] for line in found["predictions"]]
    return {
        "predictions": prediction_lines(found),
        "probabilities": _probabilities(found),
        "words": [
            {
                "title": explain_words.title(entry, is_of_answer, predicted),
                "pieces": _pieces(entry, found["query"]),
            }
            for entry in found["tokens"]
        ],
        "legend": legend(found),
        "methods": methods,
        "spectra": [
            {
                "title": support_title(entry["method"], contrast),
                "rows": [_card(row, 0.0, of_numbers) for row in contrast["examples"]],
            }
            for entry in found["spectra"]
            for contrast in entry["contrasts"]
        ],
    }


def largest_numbers(explanations: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of every method, by its title, the largest number beside an example, without its sign."""
    found: dict[str, float] = {}
    for one in explanations:
        for entry in [*one["methods"], *one["values"]]:
            sizes = [_size(row) for side in shown_sides(entry) for row in entry[side]]
            title = method_title(entry)
            found[title] = max([found.get(title, 0.0), *sizes])
    return found


def _probabilities(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every model that predicts classes the likeliest, each with its probability."""
    shown = []
    for row in found["predictions"]:
        by_class = row.get("probabilities") or {}
        ordered = sorted(by_class.items(), key=lambda pair: -pair[1])
        if ordered:
            listed, others = ordered[:CLASSES], ordered[CLASSES:]
            rest = sum(probability for _, probability in others)
            model = {"source": row["source"], "classes": listed, "more": len(others), "rest": rest}
            shown.append(model)
    return shown


def _card(row: Mapping[str, Any], largest: float, of_numbers: bool) -> dict[str, Any]:
    """An example with the share of its number of the largest, and what stands below its text."""
    named = [f"{name} {number}" for name, number in numbers(row).items()]
    label = [] if row["label"] is None else [label_text(row["label"], of_numbers)]
    if of_numbers:
        label = [f"target {text}" for text in label]
    # A row without texts is shown by its id.
    ids = [f"id {row['source_id']}"] if shown_text(row) else []
    facts = " · ".join([*label, *named, *ids])
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
