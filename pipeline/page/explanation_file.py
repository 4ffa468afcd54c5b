"""An explanation as a file: a page, JSON, or a picture of the images of its rows."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from pipeline.errors import RunError
from pipeline.explain.picture import Image, data_url, draw, image_of, largest, png
from pipeline.explain.titles import lists_of_examples
from pipeline.page.document import write_output
from pipeline.page.explanation import all_rows, page
from pipeline.page.explanation_of_set import set_page
from pipeline.page.subject import Subject
from storage.catalog import fetch

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
        data = (set_page(found) if is_set else _page(run, found)).encode()
    else:
        data = png(_picture(found, images_of(run, found), path))
    write_output(path, data)


def _page(run: Any, found: Mapping[str, Any]) -> str:
    """The page of one query, with the images and the doubts about its examples."""
    marked = copy.deepcopy(dict(found))
    Subject(run).mark(all_rows(marked))
    return page(marked, pictures_of(run, found))


def pictures_of(run: Any, found: Mapping[str, Any]) -> dict[int | None, str]:
    """The same images as `data:` URLs."""
    images = images_of(run, found)
    white = largest(list(images.values()))
    return {row: data_url(image, white) for row, image in images.items()}


def images_of(run: Any, found: Mapping[str, Any]) -> dict[int | None, Image]:
    """The images of the query and of the examples in the explanation, where they have one."""
    ids = [row["example_id"] for _, rows in lists_of_examples(found) for row in rows]
    images: dict[int | None, Image] = {}
    for row_id, image in images_in(run, "examples", ids).items():
        images[row_id] = image
    query_id = found["query"]["query_id"]
    if query_id is not None:
        own = images_in(run, "queries", [query_id])
        images |= {} if query_id not in own else {None: own[query_id]}
    return images


def images_in(run: Any, view: str, ids: list[int]) -> dict[int, Image]:
    """The images of some rows of `examples` or `queries`, by id, where they have one."""
    if not ids or "image" not in run.sql(f"FROM {view} LIMIT 0").columns:
        return {}
    id_column = {"examples": "example_id", "queries": "query_id"}[view]
    id_list = ", ".join(map(str, sorted(set(ids))))
    rows = run.sql(f"SELECT {id_column}, image FROM {view} WHERE {id_column} IN ({id_list})")
    images = {int(row_id): image_of(cell) for row_id, cell in fetch(rows)}
    return {row_id: image for row_id, image in images.items() if image is not None}


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
