"""A figure of matplotlib that a notebook shows as the last value of a cell, without pyplot."""

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure as any other, which also is an SVG image to a notebook.

    Notebooks show figures by themselves only once pyplot has chosen their backend.
    """

    def _repr_svg_(self) -> str:
        buffer = io.StringIO()
        self.savefig(buffer, format="svg")
        return buffer.getvalue()
