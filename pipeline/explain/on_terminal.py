"""An explanation as lines and tables on the terminal."""

import json
from collections.abc import Mapping
from typing import Any

import click

from pipeline.explain import words as explain_words
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
from pipeline.terminal import show, table


def print_explanation(found: Mapping[str, Any], top: int, is_json: bool) -> None:
    """Prints an explanation that `pipeline.explain.explanation.explain` returned.

    Of a support spectrum `top` examples are printed, with both ends.
    """
    if is_json:
        click.echo(json.dumps(found))
        return
    query = found["query"]
    show(shown_text(query))
    for line in prediction_lines(found):
        show(line)
    predicted = [line["predicted"] for line in found["predictions"]]
    for entry in found["tokens"]:
        show(f"\n{explain_words.title(entry, bool(found['answers']), predicted)}")
        show(explain_words.on_terminal(entry, query))
    if note := legend(found):
        show(f"\n{note}")
    for entry in [*found["methods"], *found["values"]]:
        for side in shown_sides(entry):
            show(f"\n{method_title(entry)}: {side_title(entry, side, found)}")
            print_examples(entry[side], is_regression(found))
    for entry in found["spectra"]:
        for contrast in entry["contrasts"]:
            rows = contrast["examples"]
            show(f"\n{support_title(entry['method'], contrast)}")
            if rows:
                shown = _spread(rows, top)
                print_examples(shown, is_regression(found))
                if len(shown) < len(rows):
                    show(
                        f"{len(shown)} of {len(rows)}, from the one that matters for all queries "
                        "(global) to the one most like this query (local)"
                    )


def prediction_lines(found: Mapping[str, Any]) -> list[str]:
    """A line for each prediction and answer of a model; of a text without any one that says so."""
    query = found["query"]
    of_numbers = is_regression(found)
    kind = "target" if of_numbers else "label"
    label = f"it has no {kind}"
    if query["label"] is not None:
        label = f"its {kind} is {label_text(query['label'], of_numbers)}"
    lines = []
    for row in found["predictions"]:
        if row["predicted"] is None:
            prediction = ", ".join(f"{number:.4g}" for number in row["logits"])
        else:
            prediction = f"{row['predicted']} with confidence {row['confidence']:.3f}"
        lines.append(f"The {row['source']} ({row['method']}) predicts {prediction}; {label}")
    for row in found["answers"]:
        if row["answer"] is not None:
            answer = f"{row['answer']}, probability {row['probability']:.3f}"
            lines.append(f"{row['method']} answers: {answer}")
    if not lines and query.get("answer") is None:  # a completion is to be learned, not predicted
        lines.append(f"The run predicts no class or number for this text; {label}")
    return lines


def numbers(row: Mapping[str, Any]) -> dict[str, str]:
    """The rank, score, value, stderr, global and local part of a row, rounded, where it has them.

    The keys are the names of columns on the screen.
    """
    names = {
        "rank": "rank",
        "score": "score",
        "value": "value",
        "stderr": "stderr",
        "global_score": "global",
        "local_score": "local",
    }
    return {word: f"{row[name]:.3g}" for name, word in names.items() if row.get(name) is not None}


def print_examples(rows: Rows, of_numbers: bool = False) -> None:
    """Prints a table of examples: texts (or source_id), label and the `numbers` of each row.

    Of completions the end of the prompt and the answer, and a label where rows have any. With
    `of_numbers` labels are targets.
    """
    if not rows:
        show("none")
        return
    names = list(dict.fromkeys(name for row in rows for name in numbers(row)))
    are_said = all(row.get("answer") is not None for row in rows)
    are_pairs = not are_said and any(row.get("text_b") is not None for row in rows)
    label_name = "target" if of_numbers else "label"
    labels = [label_name] if any(row["label"] is not None for row in rows) else []
    cells = []
    for row in rows:
        if are_said:
            said = [row["prompt"], row["answer"]]
        else:
            label = None if row["label"] is None else label_text(row["label"], of_numbers)
            text = row["text"] or row["source_id"]
            said = [text, *([row["text_b"]] if are_pairs else []), *([label] if labels else [])]
        cells.append([*said, *(numbers(row).get(name) for name in names)])
    of_texts = ["text", *(["text_b"] if are_pairs else []), *labels]
    heads = ["prompt", "answer"] if are_said else of_texts
    show(table([*heads, *names], cells))


def _spread(rows: Rows, n: int) -> Rows:
    """At most `n` of the rows, evenly spread, with the first and the last."""
    if len(rows) <= n:
        return rows
    steps = max(1, n - 1)
    positions = dict.fromkeys(round(step * (len(rows) - 1) / steps) for step in range(n))
    return [rows[position] for position in positions]
