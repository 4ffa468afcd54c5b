"""Images of rows: how a source may hold them, and rows of them drawn as one PNG.

A row has an image where its source has a column `image`: encoded (PNG, JPEG, GIF or WebP; as
bytes, or with them in a field `bytes`, as `datasets` has them), or a grid of numbers, rows by
columns, with a third axis of three for colours; a plain list is a square one. Grids are shown
between 0 and the largest number of all that are shown together.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

Image = bytes | np.ndarray
Pixels = np.ndarray
"""(height, width, 3), uint8."""

SIDE, GAP, LINE = 64, 6, 16
"""Pixels of an image's longer side, between images, and of a line of words."""
KINDS = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
# Five rows of three bits each, an octal digit a row.
GLYPHS = dict(
    zip(
        "0123456789abcdefghijklmnopqrstuvwxyz-.,: ",
        "75557 26227 71747 71717 55711 74717 74757 71111 75757 75717 75755 65656 74447 65556 74747 "
        "74744 74557 55755 72227 11157 55655 44447 57755 65555 75557 75744 75571 75765 34716 72222 "
        "55557 55552 55775 55255 55222 71247 00700 00002 00024 02020 00000".split(),
        strict=True,
    )
)


def image_of(cell: Any) -> Image | None:
    """The image in a cell of a column `image`; None where there is none that can be shown."""
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    if isinstance(cell, bytes):
        return cell if _kind(cell) else None
    if not isinstance(cell, list | tuple) or not cell:
        return None
    try:
        grid = np.array(cell, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    side = round(grid.size**0.5)
    if grid.ndim == 1 and side * side == grid.size:
        grid = grid.reshape(side, side)
    is_grid = grid.ndim == 2 or (grid.ndim == 3 and grid.shape[2] == 3)
    return grid if is_grid and np.isfinite(grid).all() else None


def largest(images: Sequence[Image | None]) -> float:
    """The largest number of all grids, which is shown as white; 1 where there is none above 0."""
    found = [float(image.max()) for image in images if isinstance(image, np.ndarray)]
    return max([0.0, *found]) or 1.0


def data_url(image: Image, white: float) -> str:
    """The image as an address that a page needs no network for."""
    data = image if isinstance(image, bytes) else png(_pixels(image, white))
    return f"data:image/{_kind(data)};base64,{base64.b64encode(data).decode()}"


def draw(rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], white: float) -> Pixels:
    """Rows of images under their titles, on white; grey where a row has none."""
    width = max([SIDE, *(len(title) * 8 for title, _ in rows)])
    width = max([width, *(len(images) * (SIDE + GAP) for _, images in rows)]) + 2 * GAP
    canvas = np.full((GAP + len(rows) * (LINE + SIDE + GAP), width, 3), 255, np.uint8)
    for at, (title, images) in enumerate(rows):
        top = GAP + at * (LINE + SIDE + GAP)
        _write(canvas, title, top, GAP)
        for column, image in enumerate(images):
            left = GAP + column * (SIDE + GAP)
            shown = np.full((SIDE, SIDE, 3), 230, np.uint8)
            if image is not None:
                shown = _scaled(_pixels(image, white))
            height, breadth = shown.shape[:2]
            canvas[top + LINE : top + LINE + height, left : left + breadth] = shown
    return canvas


def png(pixels: Pixels) -> bytes:
    """The pixels as a PNG file of 8 bits a colour (W3C PNG, 5.3 and 11.2)."""
    height, width = pixels.shape[:2]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def _kind(data: bytes) -> str | None:
    return next((kind for start, kind in KINDS.items() if data.startswith(start)), None)


def _pixels(grid: np.ndarray, white: float) -> Pixels:
    shown = (np.clip(grid / white, 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(shown[:, :, None], 3, axis=2) if shown.ndim == 2 else shown


def _scaled(pixels: Pixels) -> Pixels:
    """The nearest pixels, so that the longer side is SIDE."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    down = (np.arange(max(1, round(height * scale))) / scale).astype(int).clip(0, height - 1)
    across = (np.arange(max(1, round(width * scale))) / scale).astype(int).clip(0, width - 1)
    shown: Pixels = pixels[down[:, None], across]
    return shown


def _write(canvas: Pixels, words: str, top: int, left: int) -> None:
    """Letters of three by five dots, each of two by two pixels."""
    for at, letter in enumerate(words.lower()):
        glyph = GLYPHS.get(letter, GLYPHS[" "])
        dots = np.array([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in glyph], dtype=bool)
        mask = dots.repeat(2, 0).repeat(2, 1)
        canvas[top : top + 10, left + 8 * at : left + 8 * at + 6][mask] = 60
