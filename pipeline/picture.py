"""Support spectra as a picture: one row of images per contrast class, from global to local.

Drawn with matplotlib (the extra `pictures`), which is imported when a picture is asked for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import RunError

MOST = 9
"""Images in a row; of a longer spectrum some, evenly, with both ends."""


def draw_spectra(
    path: Path,
    query: Mapping[str, Any],
    spectra: Sequence[Mapping[str, Any]],
    images: Mapping[int, Sequence[float]],
    image: Sequence[float],
) -> None:
    """Writes the picture to `path`.

    Args:
        path: A file whose ending matplotlib knows: .png, .svg, .pdf.
        query: Has `title`, which stands over its image.
        spectra: Per contrast `contrast_name`, `n_support`, and `examples` from global to local,
            each with its `example_id`.
        images: The pixels of each example, row by row, of a square image.
        image: The pixels of the query.

    Raises:
        RunError: matplotlib is not installed, or pixels are those of no square.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RunError(
            f"{path}: found no matplotlib ({error}), expected it, as it draws pictures. Install "
            "the extra: pip install -e '.[pictures]'."
        ) from error
    n_columns = 1 + max([min(len(s["examples"]), MOST) for s in spectra], default=0)
    n_rows = max(1, len(spectra))
    figure = Figure(figsize=(1.1 * n_columns + 1.2, 1.15 * n_rows + 0.5), dpi=100)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    _show(axes[0, 0], image, str(query["title"]))
    for row, spectrum in enumerate(spectra):
        examples = spectrum["examples"]
        at = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), MOST)).round())
        title = f"towards {spectrum['contrast_name']}: {spectrum['n_support']} between"
        if spectrum["contrast_name"] == "general":
            title = f"in general: {spectrum['n_support']}"
        for column, place in enumerate(at.astype(int), start=1):
            _show(axes[row, column], images[int(examples[place]["example_id"])], "")
        place = axes[row, 1 if len(at) else 0]
        place.set_title(title if len(at) else f"{title} (no support)", fontsize=7, loc="left")
    figure.text(0.5, 0.005, "global   →   local", ha="center", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def _show(axes: Any, pixels: Sequence[float], title: str) -> None:
    side = round(len(pixels) ** 0.5)
    if side * side != len(pixels) or side == 0:
        raise RunError(
            f"image: found {len(pixels)} pixels, expected those of a square image, row by row. "
            "Name a column of such lists."
        )
    axes.imshow(np.asarray(pixels, float).reshape(side, side), cmap="gray_r")
    axes.set_title(title, fontsize=7)
