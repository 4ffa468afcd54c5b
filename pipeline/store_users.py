"""Which runs use a store: a note for each in the store itself, with the tables that the run has.

A store inside the folder of its run needs no note for that run. One that lies elsewhere, or in the
folder of another run as after `assay apply`, gets `<store>/.runs/<hash of host and path>.json`. So
whoever cleans a store knows what its runs need, wherever they lie, and which of them are at work
before they have a plan.
"""

import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RunFolderError
from pipeline.folder import RunFolder
from storage.manifest import digest
from storage.schema import FileError, StorageError
from storage.table import Store

NOTES = ".runs"


@dataclass(frozen=True)
class User:
    """A run that uses a store."""

    path: str
    host: str
    """Where the run was executed; empty for this machine."""
    tables: Mapping[str, Any]
    """As in `run.json`: by instance and table, the keys of shards and manifest."""

    @property
    def is_here(self) -> bool:
        """Whether the run's folder is one of this machine."""
        return self.host in ("", socket.gethostname())

    @property
    def note(self) -> str:
        """Name of the run's note."""
        return digest([self.host, self.path])


@contextlib.contextmanager
def announced(store: Store, path: Path, is_own: bool) -> Iterator[None]:
    """Within, the store knows the run in the folder `path`, which is at work.

    A note that is there already stays. One that is made here goes again where the run ends with an
    error before it has a plan.

    Args:
        store: Where the run will write.
        path: The run's folder.
        is_own: Whether the store lies in it, which needs no note.
    """
    user = User(str(path), socket.gethostname(), {})
    if is_own or _note_of(store, user) is not None:
        yield
        return
    empty = {"path": user.path, "host": user.host, "tables": {}}
    store.write_note(NOTES, user.note, empty)
    try:
        yield
    except Exception:
        with contextlib.suppress(StorageError):  # The error of the run is the one to be told.
            if _note_of(store, user) == empty:
                store.remove(NOTES, f"{user.note}.json")
        raise


def _note_of(store: Store, user: User) -> dict[str, Any] | None:
    """What the store notes of a run; empty for a damaged note, which `register` writes anew."""
    try:
        return store.read_note(NOTES, user.note)
    except FileError:
        return {}


def register(store: Store, record: Mapping[str, Any]) -> None:
    """Notes in the store what the run of `record` needs, unless the store lies in its folder."""
    if record["store"] is None:
        return
    user = User(record["path"], socket.gethostname(), record["tables"])
    note = {"path": user.path, "host": user.host, "tables": user.tables}
    if store.read_note(NOTES, user.note) != note:
        store.write_note(NOTES, user.note, note)


def users(store: Store, notes: list[str]) -> list[User]:
    """The runs that the store's notes name (by their keys), and the one whose folder it lies in."""
    found = []
    for key in notes:
        try:
            note = store.read_note(NOTES, key)
        except FileError:
            note = None
        if note is None or not {"path", "host", "tables"} <= set(note):
            raise RunFolderError(
                f"{store.path(NOTES, key)}.json: found no note of a run, expected which tables a "
                "run uses. Run `assay run` on the run's config.yaml again: it writes the note anew."
            )
        found.append(User(note["path"], note["host"], note["tables"]))
    owner = Path(store.root).parent
    if store.is_local and (owner / "run.json").exists():
        user = user_in(RunFolder(owner))
        if RunFolder(owner).store().root == store.root:
            found.append(user)
    return found


def user_in(folder: RunFolder) -> User:
    """The run in a folder of this machine.

    Raises:
        RunFolderError: the folder holds no run, or its record cannot be read.
    """
    return User(str(folder.path), "", folder.read_record()["tables"])
