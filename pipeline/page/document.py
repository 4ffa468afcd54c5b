"""A page of HTML as one file: its style and scripts, and a policy that shuts out all others.

Templates are Jinja's: it escapes whatever is filled in, which Python's own formatting leaves to
every single place.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pipeline.errors import RunError
from pipeline.terminal import CONTROLS, bytes_text
from storage.files import write_whole

HERE = Path(__file__).parent
LONGEST = 1500
"""Characters of a text that a page shows."""
SHOWN = {code: sign for code, sign in CONTROLS.items() if code not in (0x09, 0x0A)}
"""What stands for characters that turn the reading direction or that no page may hold."""
CONTRASTS = 10
"""Shades of a colour in the style sheet (`.for-1` to `.for-10`)."""


def document(template: str, scripts: Sequence[str] = (), **values: Any) -> str:
    """The page that a file of `templates/` gives with these values.

    The style sheet and `scripts` stand in the page, and its Content-Security-Policy names their
    hashes: nothing else runs, and nothing is loaded, whatever the texts of a corpus say.
    """
    style = asset("style.css")
    allowed = " ".join(map(_hash, scripts)) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    embedded = {"style": Markup(style), "scripts": [Markup(script) for script in scripts]}
    page = _environment().get_template(template).render(policy=policy, **embedded, **values)
    return f"{page.strip()}\n"


def write_output(path: Path, data: bytes) -> None:
    """Writes a file that a person named, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise RunError(
            f"{path}: found that it cannot be written ({error}), expected a folder with room. "
            "Name another output."
        ) from error


def part(template: str, **values: Any) -> str:
    """What a template gives by itself, for a notebook or the viewer: no style, no scripts."""
    return _environment().get_template(template).render(**values)


def asset(name: str) -> str:
    """The text of a file of `assets/`."""
    return (HERE / "assets" / name).read_text(encoding="utf-8")


def readable(text: object, most: int = LONGEST) -> str:
    """The text as a page shows it: long ones cut, and signs that move other text made visible."""
    shown = "" if text is None else str(text)
    shown = shown if len(shown) <= most else f"{shown[: most - 1]}…"
    return shown.translate(SHOWN)


def embedded_json(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no text of it ends the script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign, code in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(sign, code)
    return Markup(text)


def coded(text: str) -> Markup:
    """The text with what stands between backticks as code."""
    parts = escape(text).split("`")
    tags = ("<code>", "</code>")
    return Markup("").join(
        [parts[0], *(Markup(tags[at % 2]) + part for at, part in enumerate(parts[1:]))]
    )


def shade(share: float) -> str:
    """The class of the style sheet for a number from -1 (against) to 1 (for); none near 0."""
    step = round(CONTRASTS * abs(share))
    return f"{'for' if share > 0 else 'against'}-{step}" if step else "none"


def significant(number: float | None, digits: int = 3) -> str:
    """The number with so many significant digits, with no exponent where it can be read without."""
    return "" if number is None else f"{number:.{digits}g}"


def score(number: float | None) -> str:
    """A score from 0 to 1 in four decimals, of which those near 0 need no more."""
    if number is None:
        return ""
    return "<0.0001" if 0 < number < 0.0001 else f"{number:.4f}"


def share(number: float | None) -> str:
    """A share from 0 to 1 in percent, with a decimal where it is near an end."""
    if number is None:
        return ""
    if 0 < number < 0.0005:
        return "<0.1%"
    if 0.9995 <= number < 1:
        return ">99.9%"
    return f"{number:.0%}" if 0.01 <= number <= 0.99 or number in (0, 1) else f"{number:.1%}"


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "readable": readable,
        "json": embedded_json,
        "shade": shade,
        "significant": significant,
        "score": score,
        "share": share,
        "coded": coded,
        "count": lambda number: f"{number:,}",
        "bytes": bytes_text,
        "sentence": lambda words: words[:1].upper() + words[1:],
    }
    return environment
