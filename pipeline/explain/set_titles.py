"""Titles, sentences and tables of an explanation of a set of queries, for terminals and pages.

`found` is what `pipeline.explain.failing.explain_set` returns.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.explain.query import Rows
from pipeline.explain.set_scores import ALIKE
from pipeline.explain.titles import SIDES, method_title

LABELS = 4
"""Labels of the set whose lists are shown."""
MEASURES = ("accuracy", "margin", "squared_error")
"""Measures of a forecast that are shown; the cross-entropy stands in its JSON."""


def heading(found: Mapping[str, Any]) -> str:
    """How many queries, and of which labels."""
    labels = [row["label"] for row in found["queries"] if row["label"] is not None]
    n = len(found["queries"])
    count = "1 query" if n == 1 else f"{n} queries"
    if found["task"] != "classification":
        return f"{count} of {found['file']}"
    names = sorted(set(labels), key=lambda name: (-labels.count(name), name))
    return f"{count} of {found['file']}: {', '.join(f'{labels.count(n)} {n}' for n in names)}"


def prediction_lines(found: Mapping[str, Any]) -> list[str]:
    """A line for each model: how many of the queries of each label it gets right."""
    lines: dict[str, list[str]] = {}
    for row in found["predictions"]:
        model = f"The {row['source']} ({row['method']})"
        right = f"{row['n_right']} of {row['n']} {row['label']}"
        lines.setdefault(model, []).append(right)
    return [f"{model} is right on {', '.join(parts)}" for model, parts in lines.items()]


def side_title(entry: Mapping[str, Any], side: str, found: Mapping[str, Any]) -> str:
    """What the examples of a list do for the queries of the set."""
    is_for = side == "helpful"
    measured = "label" if "utility" in entry else entry["speaks_for"]
    if measured == "likeness":
        return "examples most like the queries"
    if measured is None:
        return "largest mean scores" if is_for else "lowest mean scores"
    task = found["task"]
    noun = {"classification": "labels", "regression": "targets"}.get(task, "texts")
    if is_for:
        return f"examples that speak for the queries' {noun}"
    cause = ", for the wrong predictions" if measured == "prediction" else ""
    return f"examples that speak against the queries' {noun}{cause}"


class Listed(NamedTuple):
    """A list of examples that is shown."""

    side: str
    """"harmful" or "helpful"."""
    title: str
    rows: Rows
    n_queries: int


def lists_of(entry: Mapping[str, Any], found: Mapping[str, Any]) -> list[Listed]:
    """The lists of a method: over all queries, and the harmful ones of its most frequent labels."""
    n = entry["n_queries"]
    lists = [
        Listed(side, side_title(entry, side, found), entry[side], n) for side in reversed(SIDES)
    ]
    if entry.get("speaks_for") == "likeness":
        return lists[1:]
    for part in entry["of_labels"][:LABELS]:
        title = f"{lists[0].title}, of the {part['n_queries']} {part['label']} alone"
        lists.insert(-1, Listed("harmful", title, part["harmful"], part["n_queries"]))
    return lists


def numbers(row: Mapping[str, Any], top_k: int | None, n_queries: int) -> dict[str, str]:
    """The numbers of an example, rounded, by the names of columns.

    `±` is `unseen`, where scores of the set's queries are not all stored.
    """
    cells = {"mean": f"{row['score']:.3g}"}
    if top_k is not None:
        cells["±"] = f"{row['unseen']:.2g}"
    cells["in top"] = f"{row['in_top']} of {n_queries}"
    return cells


def doubts(row: Mapping[str, Any]) -> str:
    """What is known against an example: a flagged label with the one suggested, and issues."""
    parts = []
    if row.get("suggested_label") is not None:
        chance = "" if row.get("p_wrong") is None else f" ({row['p_wrong']:.2f} wrong)"
        parts.append(f"flagged{chance}: {row['suggested_label']}?")
    if row.get("issues"):
        parts.append(str(row["issues"]))
    return "; ".join(parts)


def legend(found: Mapping[str, Any]) -> str:
    """How to read the numbers."""
    entries = [*found["methods"], *found["values"]]
    lines = ["mean: the mean score over the queries; above 0 an example helps them."]
    if cut := [e for e in entries if e["top_k"] is not None]:
        largest = ", ".join(f"{e['top_k']} ({method_title(e)})" for e in cut)
        if len({e["top_k"] for e in cut}) == 1:
            largest = str(cut[0]["top_k"])
        lines.append(
            f"±: how far it may be off, as of a query no more scores of each sign are stored than "
            f"{largest}; where it is larger than the mean, not even the sign is sure. "
            "`top_k: null` stores all."
        )
    lines.append("in top: of how many queries it is among the 20 farthest from 0 on that side.")
    return " ".join(lines)


def common(entry: Mapping[str, Any]) -> str:
    """How alike the queries' scores are, and how many do not belong."""
    rows = [r for r in entry["cosines"] if None not in (r["cosine"], r["cosine_in_label"])]
    if not rows:
        return "no two queries of a label, whose scores could be compared."
    in_set = np.mean([row["cosine"] for row in rows])
    in_label = np.mean([row["cosine_in_label"] for row in rows])
    text = f"mean cosine of a query's scores to those of the others: {in_set:.2f}"
    if entry["of_labels"]:
        text += f", of the others of its label: {in_label:.2f}"
        if in_set < in_label / 2 and entry.get("speaks_for") != "likeness":
            text += ". Failures of different labels have different causes here: read them apart"
    n_out = sum(row["is_outlier"] for row in entry["cosines"])
    if not n_out:
        return f"{text}. {'No query stands out' if in_label >= ALIKE else 'They share little'}."
    verb = "query does" if n_out == 1 else "queries do"
    return f"{text}. {n_out} {verb} not belong to the others:"


def outliers(entry: Mapping[str, Any], found: Mapping[str, Any]) -> Rows:
    """The queries that do not belong, with their cosines; the least alike first."""
    by_id = {row["query_id"]: row for row in found["queries"]}
    out = [row for row in entry["cosines"] if row["is_outlier"]]
    out.sort(key=lambda row: (row["cosine_in_label"], row["query_id"]))
    return [{**by_id[row["query_id"]], "cosine": row["cosine_in_label"]} for row in out]


def forecast_title(forecast: Mapping[str, Any]) -> str:
    """What the forecast's table shows, and who judges it; or why there is none."""
    if not forecast["rows"]:
        return str(forecast["reason"])
    judge = (
        "each half of the set is judged on the examples that the other half chose"
        if forecast["is_cross_fitted"]
        else "judged by the queries that chose the examples, as they are fewer than 10: too good"
    )
    return (
        f"Forecast: {forecast['regression']} fitted anew, {forecast['n_queries']} queries of the "
        f"set and {forecast['n_others']} others; {judge}"
    )


def forecast_table(forecast: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the forecast; of random examples with standard deviations."""
    measured = _measured(forecast)
    shown = [(side, name) for side in ("set", "others") for name in measured]
    shown.append(("all", measured[0]))
    rows = []
    for row in forecast["rows"]:
        cells = [cure(row, forecast)]
        for side, name in shown:
            value, spread = row[side][name], row.get(f"{side}_sd", {}).get(name)
            text = "" if value is None else f"{value:.3f}"
            cells.append(text + (f" ± {spread:.3f}" if spread is not None else ""))
        rows.append(cells)
    columns = [f"{side} {name}".replace("_", " ") for side, name in shown]
    return ["examples", *columns], rows


def verdict(forecast: Mapping[str, Any]) -> str:
    """Which cure is best for the set, if one is better than random examples are by chance."""
    name = _measured(forecast)[-1]
    sign = -1.0 if name == "squared_error" else 1.0
    before, *cures, chance = forecast["rows"]
    if not cures:
        return "No method of the run names examples that speak against the labels."
    best = max(cures, key=lambda row: sign * row["set"][name])
    least = sign * chance["set"][name] + 2 * chance["set_sd"][name]
    if sign * best["set"][name] <= max(least, sign * before["set"][name]):
        return (
            "No cure does more for the set than random examples by chance: these failures do not "
            "come from few examples that a method of the run names."
        )
    told = [(name, "set", "the set"), (name, "others", "the others")]
    if _measured(forecast)[0] != name:
        told.append((_measured(forecast)[0], "all", "all labelled queries"))
    changes = [
        f"{one.replace('_', ' ')} of {whom} {before[side][one]:.3f} -> {best[side][one]:.3f}"
        for one, side, whom in told
        if best[side][one] is not None
    ]
    return f"Best for the set ({cure(best, forecast)}): {', '.join(changes)}."


def _measured(forecast: Mapping[str, Any]) -> list[str]:
    """The measures that are shown."""
    return [name for name in MEASURES if name in forecast["rows"][0]["set"]]


def cure(row: Mapping[str, Any], forecast: Mapping[str, Any]) -> str:
    """What is done to the examples in a row of the forecast."""
    if row["action"] == "none":
        return "as they are"
    count = f"{row['n_rows']:g}"
    if row["by"] == "random":
        return f"without {count} random ones ({forecast['draws']} draws)"
    by = f"{row['by']}, of each label" if row["of"] == "labels" else row["by"]
    if row["action"] == "remove":
        return f"without the {count} worst of {by}"
    return f"relabelled: {count} flagged of {by}"
