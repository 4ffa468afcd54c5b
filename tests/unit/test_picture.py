"""Pictures of spectra."""

from pathlib import Path

import pytest

from pipeline.errors import RunError
from pipeline.picture import MOST, draw_spectra

QUERY = {"title": "query"}


def spectrum(name: str, n: int) -> dict[str, object]:
    return {
        "contrast_name": name,
        "n_support": n,
        "examples": [{"example_id": i} for i in range(n)],
    }


@pytest.mark.parametrize("sizes", [[], [0], [1, 0, 3], [MOST + 5, 2]])
def test_a_picture_has_a_row_per_contrast(sizes: list[int], tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "spectrum.png"
    images = {i: [float(i)] * 9 for i in range(MOST + 5)}
    spectra = [spectrum(str(at), n) for at, n in enumerate(sizes)]
    draw_spectra(path, QUERY, spectra, images, [0.0] * 9)
    height, width = imread(path).shape[:2]
    assert height == pytest.approx(115 * max(1, len(sizes)) + 50, abs=2)
    assert width == pytest.approx(110 * (1 + min(MOST, max(sizes, default=0))) + 120, abs=2)


def test_an_image_is_square(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="found 8 pixels, expected those of a square"):
        draw_spectra(tmp_path / "a.png", QUERY, [spectrum("0", 1)], {0: [0.0] * 8}, [0.0] * 9)
