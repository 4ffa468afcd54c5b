"""An explanation as one page of HTML: no network, no scripts, for narrow screens, light or dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.explain import words as explain_words
from pipeline.explain.on_terminal import numbers, prediction_lines
from pipeline.explain.picture import Image, data_url, largest
from pipeline.explain.query import Rows, shown_text
from pipeline.explain.titles import legend, method_title, shown_sides, side_title, support_title

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #63636b; --page: #fafafa; --card: #fff;
  --line: #dedee3; --help: #1a7f4b; --harm: #b3362c; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --soft: #a0a0aa; --page: #161618;
  --card: #202024; --line: #36363c; --help: #58c48c; --harm: #f0857b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: .3rem 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
h3 { font-size: 1rem; margin: .8rem 0 .3rem; } p { margin: .2rem 0; }
.soft { color: var(--soft); font-size: .875rem; }
.sides { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
ol { list-style: none; margin: 0; padding: 0; }
li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .55rem .7rem; margin: 0 0 .5rem; }
ol.spectrum { display: flex; gap: .5rem; overflow-x: auto; padding-bottom: .4rem; }
ol.spectrum li { flex: 0 0 min(15rem, 75vw); margin: 0; }
.bar { height: .3rem; border-radius: .2rem; margin: .1rem 0 .35rem; background: var(--soft); }
.helpful .bar { background: var(--help); } .harmful .bar { background: var(--harm); }
.words { font-size: 1.05rem; line-height: 1.9; } .words span { border-radius: .2rem; }
img { image-rendering: pixelated; width: 5rem; height: auto; display: block; margin: .2rem 0; }
"""

Images = Mapping[int | None, Image]
"""Images by example_id; under None that of the query."""


def page(found: Mapping[str, Any], images: Images) -> str:
    """The explanation as one HTML document, with the images of its rows where they have one."""
    white = largest(list(images.values()))
    query = found["query"]
    heading = shown_text(query) or f"Query {query['query_id']}"
    body = [f'<p class="soft">Why did the model say that? {escape(found["run_id"])}</p>']
    body += [f"<h1>{escape(heading)}</h1>", _image(None, images, white)]
    body += [f"<p>{escape(line)}</p>" for line in prediction_lines(found)]
    for entry in found["tokens"]:
        name = escape(explain_words.title(entry))
        body.append(f"<section><h2>{name}</h2>{explain_words.on_page(entry, query)}</section>")
    if note := legend(found):
        body.append(f'<p class="soft">{escape(note)}</p>')
    for entry in [*found["methods"], *found["values"]]:
        sides = "".join(
            f'<div class="{side}"><h3>{escape(sentence(side_title(entry, side, found)))}</h3>'
            f"{_examples(entry[side], images, white)}</div>"
            for side in shown_sides(entry)
        )
        name = escape(method_title(entry))
        body.append(f'<section><h2>{name}</h2><div class="sides">{sides}</div></section>')
    for entry in found["spectra"]:
        for contrast in entry["contrasts"]:
            name = escape(support_title(entry["method"], contrast))
            body.append(f"<section><h2>{name}</h2>")
            if contrast["examples"]:
                body.append(
                    '<p class="soft">From the example that matters for all queries (global) to the '
                    "one most like this query (local)</p>"
                )
                body.append(_examples(contrast["examples"], images, white, "spectrum"))
            body.append("</section>")
    return document(heading[:80], body, STYLE)


def document(title: str, body: Sequence[str], style: str) -> str:
    """A whole HTML document of some parts, without those that are empty."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _examples(rows: Rows, images: Images, white: float, css_class: str = "") -> str:
    """A list of examples as cards; `white` is the number that is shown as white in images."""
    if not rows:
        return '<p class="soft">none</p>'
    sizes = [abs(row["score"] if "score" in row else row.get("value") or 0.0) for row in rows]
    largest_size, cards = max(sizes), []
    for row, row_size in zip(rows, sizes, strict=True):
        share = row_size / largest_size if largest_size else 0.0
        bar = f'<div class="bar" style="width:{100 * share:.0f}%"></div>' if largest_size else ""
        named = " · ".join(f"{name} {number}" for name, number in numbers(row).items())
        label = "" if row["label"] is None else f"{row['label']} · "
        cards.append(
            f"<li>{bar}{_image(row['example_id'], images, white)}<p>{escape(shown_text(row))}</p>"
            f'<p class="soft">{escape(label)}{escape(named)} · {escape(str(row["source_id"]))}</p>'
            "</li>"
        )
    return f'<ol class="{css_class}">{"".join(cards)}</ol>'


def _image(example_id: int | None, images: Images, white: float) -> str:
    image = images.get(example_id)
    return "" if image is None else f'<img alt="" src="{data_url(image, white)}">'


def sentence(words: str) -> str:
    """The words with a capital letter at their beginning."""
    return words[:1].upper() + words[1:]
