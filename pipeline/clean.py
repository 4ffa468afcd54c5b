"""What is left over: files of kills, maps of vectors, and tables that no run refers to any more.

Nothing that a run may need is removed. A table counts as needed where a run that is known to use
the store (`pipeline.store_users`) has it in its record, or where such a table was computed from it.
Beside a driver at work nothing is touched that is younger than its start; beside runs of other
machines, whose drivers cannot be asked, nothing younger than a day.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.corpus import NOTES as NOTES_OF_CORPUS
from pipeline.errors import RunError, RunFolderError
from pipeline.folder import RunFolder
from pipeline.lock import driver_of, hold
from pipeline.max_length import NOTES as NOTES_OF_LENGTHS
from pipeline.sizes import NOTES as NOTES_OF_SIZES
from pipeline.store_users import NOTES, User, user_in, users
from stages.corpus.known_hashes import NOTES as NOTES_OF_SOURCES
from stages.corpus.known_hashes import note_key
from stages.stage import StageError
from storage import leftovers
from storage.feature_map import map_place, remove_map
from storage.leftovers import Found
from storage.schema import FileError, StorageError
from storage.table import Store

DAY_S = 86_400.0


def clean(
    place: str | None = None,
    runs: Sequence[Path] = (),
    forget: Sequence[str] = (),
    removes: bool = False,
) -> dict[str, Any]:
    """What is left over at `place`, as plain values; `removes` removes it.

    Keys: place, is_removed, runs (those whose tables are kept), notes (sentences about what is not
    shown, and why), items, each with kind (temporary, map, orphan), path and bytes, and bytes, the
    sum of theirs.

    Args:
        place: Folder of a run, or folder or URL of a store; by default the maps of this machine.
        runs: More runs whose tables in the store are kept.
        forget: Paths of runs that are gone for good: what only they used is left over.
        removes: Whether to remove what is found.

    Raises:
        RunFolderError: the place is neither, a run of `runs` is none, or a record cannot be read.
    """
    folder, store = _place(place)
    with contextlib.ExitStack() as stack:
        if removes and folder is not None and driver_of(folder.path) is None:
            stack.enter_context(hold(folder.path))  # no driver begins meanwhile
            mine = [folder.path]
        else:
            mine = []
        return _Cleaning(folder, store, runs, forget, mine).result(place, removes)


class _Cleaning:
    """One look at the leftovers of a run, a store or this machine."""

    def __init__(
        self,
        folder: RunFolder | None,
        store: Store | None,
        runs: Sequence[Path],
        forget: Sequence[str],
        held: Sequence[Path],
    ):
        self.notes: list[str] = []
        self.users: list[User] = []
        self._folder, self._store = folder, store
        self._files = list(leftovers.stored(store)) if store is not None else []
        self._forgotten = {*forget, *(str(Path(path).expanduser().resolve()) for path in forget)}
        if store is not None:
            keys = [name[: -len(".json")] for table, name, _ in self._files if table == NOTES]
            known = users(store, keys)
            self.users = [user for user in known if user.path not in self._forgotten]
            self.users += [user_in(RunFolder(path.expanduser().resolve())) for path in runs]
            if folder is not None and str(folder.path) not in {user.path for user in self.users}:
                self.users.append(user_in(folder))
        self._before = self._youngest(set(map(str, held)))

    def result(self, place: str | None, removes: bool) -> dict[str, Any]:
        """What was found, and removed where it should be; see `clean`."""
        left = list(self._found(removes))
        return {
            "place": place,
            "is_removed": removes,
            "runs": sorted({user.path for user in self.users}),
            "notes": self.notes,
            "items": [{"kind": k, "path": one.path, "bytes": one.bytes} for k, one in left],
            "bytes": sum(one.bytes for _, one in left),
        }

    def _found(self, removes: bool) -> Iterator[tuple[str, Found]]:
        for found in leftovers.temporaries(self._folder.path) if self._folder is not None else ():
            if found.written < self._before:
                if removes:
                    Path(found.path).unlink(missing_ok=True)
                yield "temporary", found
        for kind, found in (*self._temporary(), *self._orphans()):
            if found.written < self._before:
                if removes and self._store is not None:
                    leftovers.remove_stored(self._store, found)
                yield kind, found
        maps = list(leftovers.maps())
        own = self._own_maps() if maps else None
        for found, is_unfinished in maps:
            # One that was not finished is nobody's after an hour.
            kept_s = DAY_S / 24 if is_unfinished else DAY_S if own is None else 0.0
            limit = self._before - kept_s
            if found.written < limit and (own is None or is_unfinished or found.path in own):
                if removes:
                    remove_map(Path(found.path))
                yield "map", found

    def _youngest(self, held: set[str]) -> float:
        """The time before which a file must have been written to be touched."""
        before = time.time()
        users = list(self.users)
        if self._store is not None and self._store.is_local:
            # Before its first plan the run whose folder holds the store has no record.
            owner = str(Path(self._store.root).parent)
            users += [User(owner, "", {})] if owner not in {user.path for user in users} else []
        for user in users:
            driver = driver_of(Path(user.path)) if user.is_here and user.path not in held else None
            if driver is not None:
                self.notes.append(
                    f"{user.path} is being worked on by {driver}: what is younger stays"
                )
                before = min(before, driver.began)
            elif not user.is_here:
                self.notes.append(f"{user.path} is a run of {user.host}: the last day's files stay")
                before = min(before, time.time() - DAY_S)
        return before

    def _own_maps(self) -> set[str] | None:
        """Paths of the maps over tables of the store; None without a store, where all are meant."""
        if self._store is None:
            return None
        own = set()
        for table, name, _ in self._files:
            if name.endswith(".json") and not table.startswith(".") and table != NOTES_OF_CORPUS:
                with contextlib.suppress(StorageError):  # a damaged one has no map to speak of
                    manifest = self._store.read_manifest(table, name.removesuffix(".json"))
                    roles = {s.role for s in manifest.shards if manifest.vector_length}
                    own |= {str(map_place(manifest, role)) for role in roles}
        return own

    def _temporary(self) -> Iterator[tuple[str, Found]]:
        for _, name, found in self._files:
            if leftovers.is_temporary(name):
                yield "temporary", found

    def _orphans(self) -> Iterator[tuple[str, Found]]:
        """Shards, manifests and notes that no run refers to."""
        if self._store is None:
            return
        if not self.users:
            self.notes.append(
                f"no run is known to use {self._store.url}, so tables that no run needs are not "
                "shown. Name its runs with --run"
            )
            return
        needed = _needed(self._store, self.users, {name: table for table, name, _ in self._files})
        sources = _sources(self.users)
        for table, name, found in self._files:
            stem, _, ending = name.rpartition(".")
            if leftovers.is_temporary(name) or ending not in ("json", "parquet"):
                continue
            if table == NOTES:
                note = _note(self._store, NOTES, stem)
                is_orphan = note.get("path") in self._forgotten
            elif table == NOTES_OF_SIZES:
                is_orphan = f"{stem}.parquet" not in needed
            elif table == NOTES_OF_LENGTHS:
                first = _note(self._store, table, stem).get("first")
                is_orphan = first is not None and f"{first}.parquet" not in needed
            elif table == NOTES_OF_SOURCES:
                read = _note(self._store, table, stem).get("files", {})
                is_unused = sources is not None and stem not in sources
                is_orphan = bool(read) and (is_unused or not any(map(os.path.exists, read)))
            elif table.startswith("."):
                is_orphan = False  # a note that serves any run, such as on a model that was checked
            elif table == NOTES_OF_CORPUS:
                keys = [k for k in _note(self._store, table, stem).values() if isinstance(k, str)]
                is_orphan = not keys or not {f"{key}.json" for key in keys} <= needed
            else:
                is_orphan = name not in needed
            if is_orphan:
                yield "orphan", found


def _sources(runs: Iterable[User]) -> set[str] | None:
    """Keys of the notes on the sources that the runs read; None where one of them cannot be asked.

    That is so of a run of another machine, and of one whose folder is gone or damaged.
    """
    found = set()
    for user in runs:
        if not user.is_here:
            return None
        try:
            run = RunFolder(Path(user.path)).read_run()
        except (RunError, StageError):
            return None
        found |= {note_key(source) for source in (run.corpus, run.queries) if source is not None}
    return found


def _note(store: Store, table: str, name: str) -> Mapping[str, Any]:
    """A note of the store; nothing where it is gone or damaged."""
    try:
        return store.read_note(table, name) or {}
    except FileError:
        return {}


def _place(place: str | None) -> tuple[RunFolder | None, Store | None]:
    """The run at `place` with its store, or the store there; neither for no place."""
    if place is None:
        return None, None
    if "://" not in place:
        path = Path(place).expanduser().resolve()
        if (path / "run.json").exists():
            folder = RunFolder(path)
            return folder, folder.store()
        if not path.is_dir() or not any(path.glob("*/*.json")):
            raise RunFolderError(
                f"{place}: found neither a run.json nor tables, expected the folder of a run or of "
                "a store. Name one of them, or none for the maps of this machine."
            )
        place = str(path)
    return None, Store(place)


def _needed(store: Store, runs: Iterable[User], tables: Mapping[str, str]) -> set[str]:
    """Names of the files that the runs need, and of those that their tables were computed from.

    A name is unique in a store, because the name of its table is in the hash; `tables` says, for
    every name that is there, which table it is of.
    """
    needed: set[str] = set()
    manifests: list[str] = []
    for user in runs:
        for states in user.tables.values():
            for state in states.values():
                needed |= {f"{key}.parquet" for key in state["shards"]}
                key = state["manifest"] or state.get("before")
                manifests += [f"{key}.json"] if key else []
    while manifests:
        name = manifests.pop()
        if name in needed or name not in tables:
            continue
        manifest = store.read_manifest(tables[name], name.removesuffix(".json"))
        needed |= {name, *(f"{shard.key}.parquet" for shard in manifest.shards)}
        manifests += [f"{key}.json" for key in manifest.inputs.values()]
    return needed
