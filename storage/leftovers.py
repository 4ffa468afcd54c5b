"""Files that nothing needs: what kills leave under temporary names, and maps that nobody reads."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage.feature_map import map_folder
from storage.listing import written
from storage.table import Store


class Found(NamedTuple):
    """A file or folder, with its size and when it was last written, in seconds since 1970."""

    path: str
    bytes: int
    written: float


def is_temporary(name: str) -> bool:
    """Whether a file of this name was being written: the writer renames it when it is whole."""
    return name.startswith(".") and (name.endswith(".tmp") or name.endswith(".tmp.wal"))


def stored(store: Store) -> Iterator[tuple[str, str, Found]]:
    """Every file of the store with its table and name, those under temporary names too.

    One whose age the store does not tell counts as new.
    """
    if store.is_local and not os.path.isdir(store.root):
        return
    for path, entry in store.fs.find(store.root, detail=True).items():
        table, slash, name = str(path)[len(store.root) :].strip("/").partition("/")
        if slash and "/" not in name:
            yield (
                table,
                name,
                Found(str(path), int(entry.get("size") or 0), written(entry) or time.time()),
            )


def remove_stored(store: Store, found: Found) -> None:
    """Removes a file of the store; one that is gone already is no error."""
    try:
        store.fs.rm_file(found.path)
    except FileNotFoundError:
        return


def temporaries(folder: Path) -> Iterator[Found]:
    """Files under temporary names directly in a local folder."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_temporary(path.name) and path.is_file():
            state = path.stat()
            yield Found(str(path), state.st_size, state.st_mtime)


def maps() -> Iterator[tuple[Found, bool]]:
    """This machine's maps of vectors, each with whether it was never finished.

    Those that a living process of this account has open are left out.
    """
    folder, read = map_folder(), _mapped(str(map_folder()))
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        if place.is_dir() and place.name not in read:
            size = sum(file.stat().st_size for file in place.iterdir())
            yield Found(str(place), size, place.stat().st_mtime), is_temporary(place.name)


def _mapped(folder: str) -> set[str]:
    """Names of the maps below `folder` that a living process has in its memory."""
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "maps").read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            _, slash, below = line.partition(f"{folder}/")
            if slash:
                names.add(below.split("/")[0])
    return names
