"""An explanation as a file: a page, JSON, or a picture of the images of its rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from pipeline.errors import RunError
from pipeline.explain.as_page import page
from pipeline.explain.explanation import listed
from pipeline.explain.picture import Image, draw, image_of, largest, png
from storage.table import write_whole
from storage.views import fetch

ENDINGS = (".html", ".json", ".png")
Images = Mapping[int | None, Image]
"""By id of the example; None is the query."""


def check_ending(path: Path) -> None:
    """Refuses a file that nothing can be written to, before anything is computed.

    Raises:
        RunError: its ending says none of the formats.
    """
    if path.suffix not in ENDINGS:
        raise RunError(
            f"{path}: found the ending {path.suffix!r}, expected {', '.join(ENDINGS)}. Rename the "
            "output."
        )


def write_explanation(run: Any, found: Mapping[str, Any], path: Path) -> None:
    """Puts the explanation at `path`, whole or not at all.

    Raises:
        RunError: the file cannot be written, or a picture of rows without images is wanted.
    """
    check_ending(path)
    if path.suffix == ".json":
        data = (json.dumps(found, indent=1) + "\n").encode()
    elif path.suffix == ".html":
        data = page(found, images_of(run, found)).encode()
    else:
        data = png(_picture(found, images_of(run, found), path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise RunError(
            f"{path}: found that it cannot be written ({error}), expected a folder with room. "
            "Name another output."
        ) from error


def images_of(run: Any, found: Mapping[str, Any]) -> dict[int | None, Image]:
    """The images of the query and of all examples that are named, where they have one."""
    ids = sorted({row["example_id"] for _, rows in listed(found) for row in rows})
    wanted: list[tuple[str, str, list[int]]] = [("examples", "example_id", ids)]
    query_id = found["query"]["query_id"]
    if query_id is not None:
        wanted.append(("queries", "query_id", [query_id]))
    images: dict[int | None, Image] = {}
    for view, key, own in wanted:
        if "image" not in run.sql(f"FROM {view} LIMIT 0").columns or not own:
            continue
        which = ", ".join(map(str, own))
        for row, cell in fetch(
            run.sql(f"SELECT {key}, image FROM {view} WHERE {key} IN ({which})")
        ):
            image = image_of(cell)
            if image is not None:
                images[row if view == "examples" else None] = image
    return images


def _picture(found: Mapping[str, Any], images: Images, path: Path) -> PIL.Image.Image:
    """The query, then a row of images for each list of examples."""
    if not images:
        raise RunError(
            f"{path}: found no image of these rows, expected a column `image` in their source. "
            "Write .html or .json instead."
        )
    predictions = [p["predicted"] for p in found["predictions"] if p["predicted"] is not None]
    rows = [(" ".join(["query, taken for", *predictions[:1]]), [images.get(None)])]
    for title, examples in listed(found):
        rows.append((title, [images.get(row["example_id"]) for row in examples]))
    return draw(rows, largest(list(images.values())))
