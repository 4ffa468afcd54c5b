"""An explanation of a set of queries as one page of HTML; see `pipeline.explain.as_page`."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.explain import set_titles
from pipeline.explain.as_page import STYLE, document, sentence
from pipeline.explain.query import shown_text
from pipeline.explain.titles import method_title

TABLE_STYLE = """
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
"""


def set_page(found: Mapping[str, Any]) -> str:
    """The explanation as one HTML document."""
    heading = set_titles.heading(found)
    body = [f'<p class="soft">What do these failures share? {escape(found["run_id"])}</p>']
    body.append(f"<h1>{escape(heading)}</h1>")
    body += [f"<p>{escape(line)}</p>" for line in set_titles.prediction_lines(found)]
    forecast = found["forecast"]
    body.append(f"<section><h2>{escape(set_titles.forecast_title(forecast))}</h2>")
    if forecast["rows"]:
        body.append(_table(*set_titles.forecast_table(forecast)))
        body.append(f"<p>{escape(set_titles.verdict(forecast))}</p>")
    body.append(f'</section><p class="soft">{escape(set_titles.legend(found))}</p>')
    for entry in [*found["methods"], *found["values"]]:
        sides = "".join(
            f'<div class="{listed.side}"><h3>{escape(sentence(listed.title))}</h3>'
            f"{_cards(listed, entry['top_k'])}</div>"
            for listed in set_titles.lists_of(entry, found)
        )
        out = [
            [_text(row), row["label"], f"{row['cosine']:.2f}", row["source_id"]]
            for row in set_titles.outliers(entry, found)
        ]
        listed = _table(["text", "label", "cosine", "source_id"], out) if out else ""
        body.append(
            f"<section><h2>{escape(method_title(entry))}</h2>"
            f"<p>{escape(sentence(set_titles.common(entry)))}</p>{listed}"
            f'<div class="sides">{sides}</div></section>'
        )
    return document(heading, body, STYLE + TABLE_STYLE)


def _cards(listed: set_titles.Listed, top_k: int | None) -> str:
    """A list of examples as cards, with a bar for the size of the mean score."""
    if not listed.rows:
        return '<p class="soft">none</p>'
    largest, cards = max(abs(row["score"]) for row in listed.rows), []
    for row in listed.rows:
        shown = set_titles.numbers(row, top_k, listed.n_queries)
        named = [f"{name} {text}" for name, text in shown.items()]
        facts = [row["label"], *named, set_titles.doubts(row), f"{row['source_id']}"]
        width = 100 * abs(row["score"]) / largest
        cards.append(
            f'<li><div class="bar" style="width:{width:.0f}%"></div><p>{escape(_text(row))}</p>'
            f'<p class="soft">{escape(" · ".join(fact for fact in facts if fact))}</p></li>'
        )
    return f"<ol>{''.join(cards)}</ol>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = [
        "".join(f"<td>{escape('' if cell is None else str(cell))}</td>" for cell in row)
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _text(row: Mapping[str, Any]) -> str:
    return shown_text(row) or row["source_id"]
