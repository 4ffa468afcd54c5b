"""An explanation as a file: a page, JSON, or a picture of the images of its rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from pipeline.errors import RunError
from pipeline.explain.as_page import page
from pipeline.explain.picture import Image, draw, image_of, largest, png
from pipeline.explain.set_as_page import set_page
from pipeline.explain.titles import lists_of_examples
from storage.catalog import fetch
from storage.files import write_whole

ENDINGS = (".html", ".json", ".png")
Images = Mapping[int | None, Image]
"""Images by example_id; under None that of the query."""


def check_ending(path: Path) -> None:
    """Raises unless the ending of the output file names a format that can be written.

    Raises:
        RunError: the ending is another than .html, .json and .png.
    """
    if path.suffix not in ENDINGS:
        raise RunError(
            f"{path}: found the ending {path.suffix!r}, expected {', '.join(ENDINGS)}. Rename the "
            "output."
        )


def write_explanation(run: Any, found: Mapping[str, Any], path: Path) -> None:
    """Writes the explanation `found` of `run` to `path`, whole or not at all.

    Raises:
        RunError: the file cannot be written, or a .png is wanted of rows without images.
    """
    check_ending(path)
    is_set = "queries" in found
    if path.suffix == ".json":
        data = (json.dumps(found, indent=1) + "\n").encode()
    elif is_set and path.suffix == ".png":
        raise RunError(
            f"{path}: found a set of queries, expected a single one for a picture. Write .html or "
            ".json instead."
        )
    elif path.suffix == ".html":
        data = (set_page(found) if is_set else page(found, images_of(run, found))).encode()
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
    """The images of the query and of the examples in the explanation, where they have one."""
    ids = sorted({row["example_id"] for _, rows in lists_of_examples(found) for row in rows})
    sources: list[tuple[str, str, list[int]]] = [("examples", "example_id", ids)]
    query_id = found["query"]["query_id"]
    if query_id is not None:
        sources.append(("queries", "query_id", [query_id]))
    images: dict[int | None, Image] = {}
    for view, id_column, row_ids in sources:
        if "image" not in run.sql(f"FROM {view} LIMIT 0").columns or not row_ids:
            continue
        id_list = ", ".join(map(str, row_ids))
        for row_id, cell in fetch(
            run.sql(f"SELECT {id_column}, image FROM {view} WHERE {id_column} IN ({id_list})")
        ):
            image = image_of(cell)
            if image is not None:
                images[row_id if view == "examples" else None] = image
    return images


def _picture(found: Mapping[str, Any], images: Images, path: Path) -> PIL.Image.Image:
    """The image of the query, and below it a row of images for each list of examples."""
    if not images:
        raise RunError(
            f"{path}: found no image of these rows, expected a column `image` in their source. "
            "Write .html or .json instead."
        )
    predictions = [p["predicted"] for p in found["predictions"] if p["predicted"] is not None]
    title = f"the query, predicted {predictions[0]}" if predictions else "the query"
    rows = [(title, [images.get(None)])]
    for title, examples in lists_of_examples(found):
        rows.append((title, [images.get(row["example_id"]) for row in examples]))
    return draw(rows, largest(list(images.values())))
