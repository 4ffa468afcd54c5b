"""The words of a query with their scores by token methods, in colours.

Colours: green raises the explained output, red lowers it; the darker, the larger the share of the
largest score of the method. Methods without a sign are green alone.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rich.text import Text

from pipeline.explain.query import Rows
from pipeline.terminal import CONTROLS, LINES
from stages.reading.words import words_of as bounds_of

COLUMNS = ("text", "text_b")
STRONGEST = 5
"""Words that are also listed with their scores, where there may be no colours."""
GREEN, RED = (22, 120, 70), (170, 45, 35)


def words_of(rows: Rows, query: Mapping[str, Any]) -> Rows:
    """The words of the query in the order of its text, each with its score for one output.

    Keys of a word: word, text_column, char_start, char_end, score. `rows` are the tokens of one
    output, as in the view `tokens`; the tokens of a word follow one another, and a token outside
    every word (`word_index` is None) is a word of its own. `query` holds the texts. A word has its
    last accent and vowel sign, also where a tokenizer drops them.
    """
    words: Rows = []
    ends = {column: dict(bounds_of(query[column] or "")) for column in COLUMNS}
    last: tuple[Any, Any] | None = None
    for row in sorted(rows, key=lambda row: int(row["token_index"])):
        word = (row["text_column"], row["word_index"])
        if word[1] is not None and word == last:
            words[-1]["char_end"] = row["char_end"]
        else:
            place = {name: row[name] for name in ("text_column", "char_start", "char_end")}
            words.append({"word": row["token"], **place, "score": row["word_score"]})
        last = word
    for entry in words:
        if entry["char_start"] is not None:
            text = query[entry["text_column"]] or ""
            end = ends[entry["text_column"]].get(entry["char_start"], 0)
            entry["char_end"] = max(entry["char_end"], end)
            entry["word"] = text[entry["char_start"] : entry["char_end"]]
    return words


def pieces(
    entry: Mapping[str, Any], query: Mapping[str, Any]
) -> Iterator[tuple[str, float | None]]:
    """The text in pieces, from beginning to end, each with its score over the largest, -1 to 1.

    Pieces between words have None for the score. Words without a place in the text come at the end,
    or alone where no word has a place, as in the layout of a conversation.
    """
    words = entry["words"]
    largest = max((abs(word["score"]) for word in words), default=0.0) or 1.0
    is_laid_out = bool(words) and all(word["char_start"] is None for word in words)
    for column in COLUMNS:
        text, position = query[column], 0
        if not text or is_laid_out:
            continue
        if column == "text_b":
            yield " | ", None
        placed = [w for w in words if w["text_column"] == column and w["char_start"] is not None]
        for word in sorted(placed, key=lambda word: int(word["char_start"])):
            yield text[position : word["char_start"]], None
            yield text[word["char_start"] : word["char_end"]], word["score"] / largest
            position = word["char_end"]
        yield text[position:], None
    for word in words:
        if word["char_start"] is None:
            yield word["word"], word["score"] / largest


def title(
    entry: Mapping[str, Any], is_of_answer: bool = False, predicted: Collection[str] = ()
) -> str:
    """The method and the output, such as a class, that it explains by the words.

    Where that is none of the classes in `predicted`, it says whose prediction it is. With
    `is_of_answer` outputs are the `start` and the `end` of a question's answer.
    """
    name = entry["output_name"] or "the model's output"
    if is_of_answer and name in ("start", "end"):
        name = f"the {name} of the answer"
    # Scores of attention and of gradients' lengths have no sign.
    has_sign = any(word["score"] < 0 for word in entry["words"])
    role = "speak for (+) or against (-)" if has_sign else "matter most for"
    of_another = bool(predicted) and entry["output_name"] and name not in predicted
    whose = ", which the model that it looks into predicts" if of_another else ""
    return f"{entry['method']}: words that {role} {name}{whose}"


def on_terminal(entry: Mapping[str, Any], query: Mapping[str, Any]) -> Text:
    """The text in colours, and below it the words with the strongest scores, also for files."""
    shown = Text()
    for text, share in pieces(entry, query):
        share = share or 0.0
        # Weak words are pale and strong ones dark, on light and dark terminals alike.
        red, green, blue = (
            round(255 + (part - 255) * abs(share)) for part in (GREEN if share > 0 else RED)
        )
        ink = "white" if abs(share) > 0.6 else "black"
        shown.append(
            text.translate(LINES), f"{ink} on rgb({red},{green},{blue})" if abs(share) > 0.1 else ""
        )
    strongest = sorted(entry["words"], key=lambda word: -abs(word["score"]))[:STRONGEST]
    scores = ", ".join(f"{word['word']} {word['score']:+.3g}" for word in strongest)
    return shown.append(f"\nstrongest: {scores.translate(CONTROLS)}" if scores else "")
