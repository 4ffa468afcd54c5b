"""An explanation on the terminal."""

import json
from collections.abc import Mapping
from typing import Any

import click

from pipeline.explain import words as explain_words
from pipeline.explain.explanation import support_title, title
from pipeline.explain.stored_query import Rows
from pipeline.terminal import show, table

SIGN = (
    "Positive helps: it speaks for the predicted class, or for the label, which is the predicted "
    "class where there is none; values speak for the label."
)


def print_explanation(found: Mapping[str, Any], top: int, is_json: bool) -> None:
    """Prints what `pipeline.explain.explanation.explain` found; of a spectrum `top` rows."""
    if is_json:
        click.echo(json.dumps(found))
        return
    query = found["query"]
    show(" | ".join(text for text in (query["text"], query["text_b"]) if text))
    for line in told_predictions(found):
        show(line)
    for entry in found["tokens"]:
        show(f"\n{explain_words.title(entry)}")
        show(explain_words.on_terminal(entry, query))
    if found["methods"] or found["values"]:
        show(SIGN)
    for entry in [*found["methods"], *found["values"]]:
        for side in ("helpful", "harmful"):
            show(f"\n{title(entry)}: {side}")
            print_examples(entry[side])
    for entry in found["spectra"]:
        for towards in entry["contrasts"]:
            rows = towards["examples"]
            show(f"\n{support_title(entry['method'], towards)}")
            if rows:
                shown = _spread(rows, top)
                print_examples(shown)
                if len(shown) < len(rows):
                    show(f"{len(shown)} of {len(rows)}, from the most global to the most local")


def told_predictions(found: Mapping[str, Any]) -> list[str]:
    """A line for each prediction and answer, or one that there is none, with the query's label."""
    query = found["query"]
    label = f"; label {query['label']}" if query["label"] is not None else "; no label"
    lines = []
    for row in found["predictions"]:
        if row["predicted"] is None:
            said = ", ".join(f"{number:.4g}" for number in row["logits"])
        else:
            said = f"{row['predicted']}, confidence {row['confidence']:.3f}"
        lines.append(f"The {row['source']} ({row['method']}) says {said}{label}")
    for row in found["answers"]:
        if row["answer"] is not None:
            said = f"{row['answer']}, probability {row['probability']:.3f}"
            lines.append(f"{row['method']} answers: {said}")
    return lines or [f"No prediction{label}"]


def numbers(row: Mapping[str, Any]) -> dict[str, str]:
    """The numbers that a row has, short; under the words that a person reads."""
    names = {
        "rank": "rank",
        "score": "score",
        "value": "value",
        "stderr": "stderr",
        "global_score": "global",
        "local_score": "local",
    }
    return {word: f"{row[name]:.3g}" for name, word in names.items() if row.get(name) is not None}


def print_examples(rows: Rows) -> None:
    """Prints examples with their label and the numbers that they have."""
    if not rows:
        show("none")
        return
    names = list(dict.fromkeys(name for row in rows for name in numbers(row)))
    cells = []
    for row in rows:
        text = " | ".join(part for part in (row["text"], row["text_b"]) if part)
        found = numbers(row)
        cells.append([text or row["source_id"], row["label"], *(found.get(n) for n in names)])
    show(table(["text", "label", *names], cells))


def _spread(rows: Rows, n: int) -> Rows:
    """`n` of the rows at most, evenly, with both ends."""
    if len(rows) <= n:
        return rows
    steps = max(1, n - 1)
    places = dict.fromkeys(round(at * (len(rows) - 1) / steps) for at in range(n))
    return [rows[place] for place in places]
