"""Charts: in the page as SVG, text that can be selected, in the page's colours; else as figures.

Drawn by matplotlib, which needs no script: bokeh adds 1.3 MB of one to every page and paints
pixels, plotly 4.8 MB.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup


class Colours(NamedTuple):
    """What a chart is drawn with."""

    ink: str
    soft: str
    line: str
    help: str
    harm: str
    link: str


PAGE = Colours("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
"""Colours that stand for those of the page, which the style sheet knows."""
ON_WHITE = Colours("#1c1c1e", "#5f5f68", "#dcdce2", "#1a7f4b", "#b3362c", "#1f5fbf")
"""The light ones of the style sheet, for a figure alone."""
VARIABLES = {colour: f"var(--{name})" for name, colour in PAGE._asdict().items()}
SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Chart:
    """A chart that is drawn when it is shown; a template shows it as SVG."""

    draw: Callable[[Any, Colours], None]
    """Draws on axes of matplotlib."""
    size: tuple[float, float]
    """Width and height in inches."""
    description: str
    """What it shows, for those who do not see it."""

    def __html__(self) -> Markup:
        """The chart as an `<svg>` element in the colours of the page."""
        return _svg(self._drawn(PAGE), self.description)

    def figure(self) -> Any:
        """The chart as a `matplotlib.figure.Figure`."""
        return self._drawn(ON_WHITE)

    def _drawn(self, colours: Colours) -> Any:
        figure, axes = _axes(*self.size, colours)
        self.draw(axes, colours)
        return figure


def histogram(
    bins: Sequence[tuple[float, int, int]],
    width: float,
    threshold: float,
    what: str = "labels",
    axis: str = "score of the given label (low: suspicious)",
) -> Chart:
    """How many labels have which score, those flagged in another colour, and the last that is.

    `bins` are the lower end, and how many are not flagged and flagged; `width` is that of a bin.
    """
    starts = [start for start, _, _ in bins]
    kept, flagged = [n for _, n, _ in bins], [n for _, _, n in bins]

    def draw(axes: Any, colours: Colours) -> None:
        style: dict[str, Any] = {"width": width * 0.92, "align": "edge"}
        axes.bar(starts, flagged, color=colours.harm, label="flagged", **style)
        axes.bar(starts, kept, bottom=flagged, color=colours.soft, label="not flagged", **style)
        if any(flagged):
            axes.axvline(threshold, color=colours.ink, linewidth=1, linestyle="--")
            axes.annotate(
                f"threshold {threshold:.3g}",
                (threshold, 0.97),
                (5, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                color=colours.ink,
                fontsize=10,
            )
        axes.set_xlabel(axis)
        axes.set_ylabel(what)
        axes.set_xlim(0, 1)
        above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
        axes.legend(frameon=False, labelcolor=colours.ink, fontsize=10, **above)

    total = sum(kept) + sum(flagged)
    description = (
        f"Histogram of {total} {what} by {axis}; {sum(flagged)} are flagged, all up to "
        f"{threshold:.3g}."
    )
    return Chart(draw, (6.4, 2.9), description)


def scatter(points: Sequence[tuple[float, float]]) -> Chart:
    """Targets and their predictions, and the line on which they are equal."""
    ends = [min(map(min, points), default=0.0), max(map(max, points), default=1.0)]

    def draw(axes: Any, colours: Colours) -> None:
        targets, predicted = [t for t, _ in points], [p for _, p in points]
        axes.plot(targets, predicted, "o", color=colours.link, markersize=4)
        axes.plot(ends, ends, color=colours.soft, linewidth=1, linestyle="--")
        axes.set_xlabel("target")
        axes.set_ylabel("predicted without its row")

    description = f"{len(points)} targets and their predictions; on the line they are equal."
    return Chart(draw, (5.2, 4.2), description)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]], x_axis: str, y_axis: str
) -> Chart:
    """Lines with bands: of each, by name, points of x, y and the ends of the interval of y."""

    def draw(axes: Any, colours: Colours) -> None:
        cycle = (colours.link, colours.soft, colours.help, colours.harm, colours.ink)
        styles = ("-", "--", ":", "-.")
        for at, (name, points) in enumerate(lines.items()):
            style: dict[str, Any] = {"color": cycle[at % 5], "label": name, "linewidth": 2}
            x = [point[0] for point in points]
            axes.plot(x, [p[1] for p in points], styles[at % 4], **style)
            if any(low < high for _, _, low, high in points):
                low, high = [p[2] for p in points], [p[3] for p in points]
                axes.fill_between(x, low, high, color=cycle[at % 5], alpha=0.18, linewidth=0)
        axes.set_xlabel(x_axis)
        axes.set_ylabel(y_axis)
        axes.legend(frameon=False, labelcolor=colours.ink, fontsize=10)

    return Chart(draw, (6.4, 3.4), f"{y_axis} by {x_axis}, of {', '.join(lines)}.")


def _axes(width: float, height: float, colours: Colours) -> tuple[Any, Any]:
    """A figure and its axes in these colours; sizes in inches."""
    # Half a second, which other pages are spared.
    from pipeline.page.figure import ShownFigure

    figure = ShownFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(colours.soft)
    axes.tick_params(colors=colours.soft, labelcolor=colours.ink, labelsize=10)
    axes.xaxis.label.set(color=colours.ink, fontsize=11)
    axes.yaxis.label.set(color=colours.ink, fontsize=11)
    axes.grid(axis="y", color=colours.line, linewidth=0.8)
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
            if value in VARIABLES:
                element.set(name, VARIABLES[value])
        element.attrib.pop("font-family", None)
        if element.tag == f"{SVG}g":  # the same in every chart; what is referred to is no group
            element.attrib.pop("id", None)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", description)
    return Markup(ET.tostring(root, encoding="unicode"))
