import html
import json
import re
from typing import Any

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.page.chart import ON_WHITE, Chart, curves, histogram, scatter
from pipeline.page.document import (
    asset,
    coded,
    document,
    embedded_json,
    part,
    readable,
    shade,
    share,
    significant,
)
from pipeline.page.values import _drawn


def test_numbers_for_people() -> None:
    assert [share(x) for x in (None, 0, 0.0001, 0.004, 0.25, 0.996, 0.9999, 1)] == [
        "", "0%", "<0.1%", "0.4%", "25%", "99.6%", ">99.9%", "100%",
    ]  # fmt: skip
    assert significant(0.000123456) == "0.000123"
    assert significant(None) == ""
    assert [shade(x) for x in (1.0, -0.26, 0.04)] == ["for-10", "against-3", "none"]


def test_every_shade_is_in_the_style() -> None:
    style = asset("style.css")
    assert all(f".{shade(sign * step / 10)} " in style for sign in (1, -1) for step in range(1, 11))


def test_json_in_a_page_ends_no_script() -> None:
    value = {"a": "</script><!-- \u2028", "b": [1, None]}
    text = embedded_json(value)
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == value


def test_a_text_moves_no_other() -> None:
    assert readable("a\u202eb\x00c\n\td") == "a\\u202eb␀c\n\td"
    assert readable("x" * 20, 10) == "x" * 9 + "…"
    assert coded("set `<b>` now") == Markup("set <code>&lt;b&gt;</code> now")


@pytest.mark.parametrize(
    "shown",
    [
        {"prompt": "a" * 3000, "answer": "b" * 3000},
        {"prompt": "a" * 3000, "chosen": "b" * 3000, "rejected": "c" * 3000},
    ],
)
def test_whoever_decides_about_a_chat_reads_it_whole(shown: dict[str, str]) -> None:
    page = part("viewer/texts.html", row={"text": None, "text_b": None, **shown})
    assert all(text in page for text in shown.values())


def test_a_page_without_scripts_lets_none_run() -> None:
    page = document("explanation.html", run_id="r", images={}, heading="<i>", explained=EXPLAINED)
    assert "script-src 'none'" in html.unescape(page)
    assert "<script" not in page
    assert "&lt;i&gt;" in page


LISTS = ("predictions", "probabilities", "words", "legend", "methods", "spectra")
EXPLAINED: dict[str, list[Any]] = {name: [] for name in LISTS}


@pytest.mark.parametrize(
    "made",
    [
        histogram([(0.0, 3, 2), (0.5, 9, 0)], 0.5, 0.2),
        scatter([(1.0, 2.0), (3.0, 2.5)]),
        curves({"a <b>": [(0.1, 0.5, 0.4, 0.6), (0.2, 0.7, 0.6, 0.8)]}, "share", "accuracy"),
    ],
    ids=["histogram", "scatter", "curves"],
)
def test_charts_have_the_colours_of_the_page_and_no_styles(made: Chart) -> None:
    chart = str(made.__html__())
    assert chart.startswith("<svg")
    assert 'role="img"' in chart
    assert " style=" not in chart
    assert "<style" not in chart
    assert "var(--ink)" in chart
    assert not re.search(r'"#0\d0\d0\d"', chart)
    assert "<b>" not in chart


def test_a_chart_alone_has_the_light_colours_of_the_style_sheet() -> None:
    light = dict(re.findall(r"--(\w+): (#\w+)", asset("style.css").split("@media")[0]))
    assert all(light[name] == colour for name, colour in ON_WHITE._asdict().items())
    figure = scatter([(1.0, 2.0)]).figure()
    assert isinstance(figure, Figure)
    assert figure.axes[0].lines[0].get_color() == ON_WHITE.link


def test_an_interval_is_drawn_to_scale() -> None:
    drawn = _drawn({"value": -0.5, "stderr": 0.1}, 1.0)
    assert drawn["ends"] == {
        "x": "25.00%", "width": "25.00%", "low": "15.20%", "high": "34.80%", "kind": "minus",
    }  # fmt: skip
    assert drawn["told"] == "-0.5 ± 0.2"
    assert _drawn({"value": None, "stderr": None}, 1.0)["ends"] is None
