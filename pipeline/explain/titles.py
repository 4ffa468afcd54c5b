"""Titles of the lists of examples in an explanation: what the examples of each list do.

`found` is what `pipeline.explain.explanation.explain` returns; its lists have the keys `helpful`
(score or value above 0) and `harmful` (below 0).
"""

from collections.abc import Mapping
from typing import Any

from pipeline.explain.query import Rows
from stages.tables import GENERAL

SIDES = ("helpful", "harmful")
OUTPUTS = ("label", "prediction")
"""What `stages.stage.Stage.speaks_for` says of a method whose scores are about an output."""


def lists_of_examples(found: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Every list of examples in the explanation, with its title."""
    lists: list[tuple[str, Rows]] = []
    for entry in [*found["methods"], *found["values"]]:
        for side in shown_sides(entry):
            lists.append((f"{method_title(entry)}: {side_title(entry, side, found)}", entry[side]))
    for entry in found["spectra"]:
        lists += [(support_title(entry["method"], c), c["examples"]) for c in entry["contrasts"]]
    return lists


def method_title(entry: Mapping[str, Any]) -> str:
    """The method's name; of values with their semivalue and utility."""
    if "utility" not in entry:
        return str(entry["method"])
    return f"{entry['method']} ({entry['semivalue']}, {entry['utility']})"


def shown_sides(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The lists of a method that are shown, by key.

    A likeness that is never below 0 (of bm25) does not say which examples are least alike.
    """
    has_likeness_alone = entry.get("speaks_for") == "likeness" and not entry["harmful"]
    return SIDES[:1] if has_likeness_alone else SIDES


def side_title(entry: Mapping[str, Any], side: str, found: Mapping[str, Any]) -> str:
    """What the examples in a method's list `side` do for the query."""
    is_for = side == "helpful"
    # Values are of the game in which models learn the labels.
    measured = "label" if "utility" in entry else entry["speaks_for"]
    if measured == "likeness":
        return f"examples {'most' if is_for else 'least'} like the query"
    if measured is None:
        return "largest scores above 0" if is_for else "lowest scores below 0"
    return f"examples that speak {'for' if is_for else 'against'} {_output(measured, found)}"


def support_title(method: str, contrast: Mapping[str, Any]) -> str:
    """How many examples support the prediction against one class, or against the others."""
    is_general = contrast["contrast"] == GENERAL
    name = "the other classes in general" if is_general else contrast["contrast_name"]
    n_support = contrast["n_support"]
    count = {0: "no example supports", 1: "1 example supports"}.get(
        n_support, f"{n_support} examples support"
    )
    return f"{method}: {count} the prediction against {name}"


def legend(found: Mapping[str, Any]) -> str:
    """How to read the numbers beside the examples; empty where there is nothing to say."""
    entries = [*found["methods"], *found["values"]]
    rows = [row for entry in entries for side in SIDES for row in entry[side]]
    lines = []
    if any("utility" in entry or entry["speaks_for"] in OUTPUTS for entry in entries):
        lines.append("An example with a number above 0 speaks for an output, below 0 against it.")
    if any(row.get("global_score") is not None for row in rows):
        lines.append("score = global (the same for every query) x local (of this query).")
    return " ".join(lines)


def is_regression(found: Mapping[str, Any]) -> bool:
    """Whether models predict numbers, which labels are then, too."""
    return any(row["predicted"] is None for row in found["predictions"])


def label_text(label: Any, of_numbers: bool) -> str:
    """A label, or a target without the digits that say nothing."""
    return f"{float(label):.6g}" if of_numbers else str(label)


def _output(measured: str, found: Mapping[str, Any]) -> str:
    """The output of the model that a method measures: "label" or "prediction", in full."""
    label, predictions = found["query"]["label"], found["predictions"]
    of_numbers = is_regression(found)
    if measured == "label" and label is not None:
        kind = "target" if of_numbers else "label"
        return f"the query's {kind} ({label_text(label, of_numbers)})"
    if of_numbers:
        return "a larger prediction"
    names = {row["predicted"] for row in predictions}
    if len(names) == 1:
        return f"the predicted class ({names.pop()})"
    if names:
        return "the predicted class"
    if found["query"].get("answer") is not None:
        return "the answer"
    return "the predicted answer" if found["answers"] else "the predicted class or text"
