"""Images in a column `image`: how a source may hold them, and a picture that shows many.

A row has an image where its source has a column `image`: encoded (PNG, JPEG, GIF or WebP; as
bytes, or with them in a field `bytes`, as `datasets` has them), or a grid of numbers, rows by
columns, with a third axis of three for colours; a plain list is a square one. Grids are shown
between 0 and the largest number of all that are shown together.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

Image = bytes | np.ndarray

SIDE, GAP, LINE = 64, 6, 16
"""Pixels of an image's longer side, between images, and of a line of words."""
MOST = 10
"""Most images in a row; of a longer list some are drawn, evenly spread, with both ends."""
KINDS = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def image_of(cell: Any) -> Image | None:
    """The image in a cell of a column `image`; None where the cell holds no image."""
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
    """The largest number in all grids, which is shown as white; 1 where none is above 0."""
    maxima = [float(image.max()) for image in images if isinstance(image, np.ndarray)]
    return max([0.0, *maxima]) or 1.0


def data_url(image: Image, white: float) -> str:
    """The image as a `data:` URL, which needs no network; `white` is the largest number."""
    data = image if isinstance(image, bytes) else png(_shown(image, white))
    return f"data:image/{_kind(data)};base64,{base64.b64encode(data).decode()}"


def draw(rows: Sequence[tuple[str, Sequence[Image | None]]], white: float) -> PIL.Image.Image:
    """A picture of titled rows of images; a missing image is grey.

    `white` is the number that is shown as white, see `largest`.
    """
    font = PIL.ImageFont.load_default(size=11)
    width = max([SIDE, *(round(font.getlength(title)) for title, _ in rows)])
    width = max([width, *(min(MOST, len(images)) * (SIDE + GAP) for _, images in rows)])
    height = GAP + len(rows) * (LINE + SIDE + GAP)
    canvas = PIL.Image.new("RGB", (width + 2 * GAP, height), "white")
    pen = PIL.ImageDraw.Draw(canvas)
    for index, (title, images) in enumerate(rows):
        top = GAP + index * (LINE + SIDE + GAP)
        pen.text((GAP, top), title, fill="black", font=font)
        shown = np.linspace(0, len(images) - 1, min(len(images), MOST)).round().astype(int)
        for column, position in enumerate(shown):
            image = images[position]
            corner = (GAP + column * (SIDE + GAP), top + LINE)
            if image is None:
                pen.rectangle((*corner, corner[0] + SIDE, corner[1] + SIDE), fill="lightgrey")
            else:
                canvas.paste(_scaled(_shown(image, white)), corner)
    return canvas


def png(image: PIL.Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _kind(data: bytes) -> str | None:
    """The format of an encoded image: png, jpeg, gif or webp; None for other bytes."""
    return next((kind for start, kind in KINDS.items() if data.startswith(start)), None)


def _shown(image: Image, white: float) -> PIL.Image.Image:
    """The image in colours; the numbers of a grid from black, 0, to `white`."""
    if isinstance(image, bytes):
        return PIL.Image.open(io.BytesIO(image)).convert("RGB")
    pixels = (np.clip(image / white, 0, 1) * 255).round().astype(np.uint8)
    return PIL.Image.fromarray(pixels).convert("RGB")


def _scaled(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image with a longer side of SIDE; the pixels of small images stay sharp."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resample = PIL.Image.Resampling.NEAREST if scale > 1 else PIL.Image.Resampling.LANCZOS
    return image.resize(size, resample)
