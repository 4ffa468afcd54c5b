"""The words of a query, with what token methods say of them, for the terminal and for pages.

Colours: green raises the explained output, red lowers it; the darker, the larger the share of the
largest score of the method. Methods without a sign are green alone.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from rich.text import Text

from pipeline.explain.stored_query import Rows

COLUMNS = ("text", "text_b")
STRONGEST = 5
"""Words that are named where there are no colours."""
GREEN, RED = (22, 120, 70), (170, 45, 35)


def words_of(rows: Rows, query: Mapping[str, Any]) -> Rows:
    """The words of one output in the order of the text, each with its score.

    `rows` are tokens; those of a word follow one another, and a token without a word is its own.
    """
    found: Rows = []
    last: tuple[Any, Any] | None = None
    for row in sorted(rows, key=lambda row: int(row["token_index"])):
        word = (row["text_column"], row["word_index"])
        if word[1] is not None and word == last:
            found[-1]["char_end"] = row["char_end"]
        else:
            names = ("text_column", "char_start", "char_end")
            one = {"word": row["token"], **{name: row[name] for name in names}}
            found.append({**one, "score": row["word_score"]})
        last = word
    for one in found:
        if one["char_start"] is not None:
            whole = query[one["text_column"]] or ""
            one["word"] = whole[one["char_start"] : one["char_end"]]
    return found


def pieces(
    entry: Mapping[str, Any], query: Mapping[str, Any]
) -> Iterator[tuple[str, float | None]]:
    """The text in pieces from beginning to end, each with its share of the largest score, -1 to 1.

    What lies between words has none; words of no place in the text come at the end, or alone where
    none has a place, as in the layout of a conversation.
    """
    words = entry["words"]
    largest = max((abs(word["score"]) for word in words), default=0.0) or 1.0
    is_laid_out = bool(words) and all(word["char_start"] is None for word in words)
    for column in COLUMNS:
        whole, at = query[column], 0
        if not whole or is_laid_out:
            continue
        if column == "text_b":
            yield " | ", None
        own = [w for w in words if w["text_column"] == column and w["char_start"] is not None]
        for word in sorted(own, key=lambda word: int(word["char_start"])):
            yield whole[at : word["char_start"]], None
            yield whole[word["char_start"] : word["char_end"]], word["score"] / largest
            at = word["char_end"]
        yield whole[at:], None
    for word in words:
        if word["char_start"] is None:
            yield word["word"], word["score"] / largest


def title(entry: Mapping[str, Any]) -> str:
    """The method and what it explains."""
    name = entry["output_name"]
    return f"{entry['method']}, words" + (f" for {name}" if name else "")


def on_terminal(entry: Mapping[str, Any], query: Mapping[str, Any]) -> Text:
    """The text in colours, which a terminal shows and a file loses, and its strongest words."""
    told = Text()
    for text, share in pieces(entry, query):
        share = share or 0.0
        # Weak words are pale and strong ones dark, on light and dark terminals alike.
        red, green, blue = (
            round(255 + (part - 255) * abs(share)) for part in (GREEN if share > 0 else RED)
        )
        ink = "white" if abs(share) > 0.6 else "black"
        told.append(text, f"{ink} on rgb({red},{green},{blue})" if abs(share) > 0.1 else "")
    strongest = sorted(entry["words"], key=lambda word: -abs(word["score"]))[:STRONGEST]
    named = ", ".join(f"{word['word']} {word['score']:+.3g}" for word in strongest)
    return told.append(f"\n{named}" if named else "")


def on_page(entry: Mapping[str, Any], query: Mapping[str, Any]) -> str:
    """The text as HTML, with every score as a title."""
    largest = max((abs(word["score"]) for word in entry["words"]), default=0.0) or 1.0
    parts = []
    for text, share in pieces(entry, query):
        if share is None:
            parts.append(escape(text))
            continue
        red, green, blue = GREEN if share > 0 else RED
        parts.append(
            f'<span title="{share * largest:+.4g}" style="background: '
            f'rgba({red}, {green}, {blue}, {0.75 * abs(share):.2f})">{escape(text)}</span>'
        )
    return f'<p class="words">{"".join(parts)}</p>'
