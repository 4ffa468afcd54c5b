"""Charts as SVG in the page: text that can be selected, in the page's colours, also in print.

Drawn by matplotlib, which needs no script: bokeh adds 1.3 MB of one to every page and paints
pixels, plotly 4.8 MB.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--help)",
    "#050505": "var(--harm)",
    "#060606": "var(--link)",
}
"""Colours that a chart is drawn with, and the page's that they stand for."""
INK, SOFT, LINE, HELP, HARM, LINK = COLOURS
SVG = "{http://www.w3.org/2000/svg}"


def histogram(
    bins: Sequence[tuple[float, int, int]],
    width: float,
    threshold: float,
    what: str = "labels",
    axis: str = "score of the given label (low: suspicious)",
) -> Markup:
    """How many labels have which score, those flagged in another colour, and the last that is.

    `bins` are the lower end, and how many are not flagged and flagged; `width` is that of a bin.
    """
    figure, axes = _axes(6.4, 2.9)
    starts = [start for start, _, _ in bins]
    kept, flagged = [n for _, n, _ in bins], [n for _, _, n in bins]
    style: dict[str, Any] = {"width": width * 0.92, "align": "edge"}
    axes.bar(starts, flagged, color=HARM, label="flagged", **style)
    axes.bar(starts, kept, bottom=flagged, color=SOFT, label="not flagged", **style)
    if any(flagged):
        axes.axvline(threshold, color=INK, linewidth=1, linestyle="--")
        axes.annotate(
            f"threshold {threshold:.3g}",
            (threshold, 0.97),
            (5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=INK,
            fontsize=10,
        )
    axes.set_xlabel(axis)
    axes.set_ylabel(what)
    axes.set_xlim(0, 1)
    axes.legend(
        frameon=False, labelcolor=INK, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1), ncols=2
    )
    total = sum(kept) + sum(flagged)
    return _svg(
        figure,
        f"Histogram of {total} {what} by {axis}; {sum(flagged)} are flagged, all up to "
        f"{threshold:.3g}.",
    )


def scatter(points: Sequence[tuple[float, float]]) -> Markup:
    """Targets and their predictions, and the line on which they are equal."""
    figure, axes = _axes(5.2, 4.2)
    axes.plot([t for t, _ in points], [p for _, p in points], "o", color=LINK, markersize=4)
    ends = [min(map(min, points), default=0.0), max(map(max, points), default=1.0)]
    axes.plot(ends, ends, color=SOFT, linewidth=1, linestyle="--")
    axes.set_xlabel("target")
    axes.set_ylabel("predicted without its row")
    return _svg(figure, f"{len(points)} targets and their predictions; on the line they are equal.")


def curves(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]], x_axis: str, y_axis: str
) -> Markup:
    """Lines with bands: of each, by name, points of x, y and the ends of the interval of y."""
    figure, axes = _axes(6.4, 3.4)
    styles = ("-", "--", ":", "-.")
    for at, (name, points) in enumerate(lines.items()):
        colour = (LINK, SOFT, HELP, HARM, INK)[at % 5]
        x = [point[0] for point in points]
        axes.plot(x, [p[1] for p in points], styles[at % 4], color=colour, label=name, linewidth=2)
        if any(low < high for _, _, low, high in points):
            low, high = [p[2] for p in points], [p[3] for p in points]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel(x_axis)
    axes.set_ylabel(y_axis)
    axes.legend(frameon=False, labelcolor=INK, fontsize=10)
    return _svg(figure, f"{y_axis} by {x_axis}, of {', '.join(lines)}.")


def _axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes in the page's colours; sizes in inches."""
    from matplotlib.figure import Figure  # half a second, which other pages are spared

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(SOFT)
    axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=10)
    axes.xaxis.label.set(color=INK, fontsize=11)
    axes.yaxis.label.set(color=INK, fontsize=11)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, description: str) -> Markup:
    """The figure as an `<svg>` element without styles, which the policy of pages forbids."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    ET.register_namespace("", "http://www.w3.org/2000/svg")
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style") or child.tag.endswith("}style"):
                parent.remove(child)
    for element in root.iter():
        for declaration in element.attrib.pop("style", "").split(";"):
            name, _, value = declaration.partition(":")
            if name.strip() and name.strip() != "font":
                element.set(name.strip(), value.strip())
        for name, value in element.attrib.items():
            if value in COLOURS:
                element.set(name, COLOURS[value])
        element.attrib.pop("font-family", None)
        if element.tag == f"{SVG}g":  # the same in every chart; what is referred to is no group
            element.attrib.pop("id", None)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", description)
    return Markup(ET.tostring(root, encoding="unicode"))
