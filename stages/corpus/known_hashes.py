"""The SHA-256 of local files, of which only those are read that may have changed.

A note in the store says with what size, times and inode each file of a source was read. A file that
still has them is the same, unless its times are as late as the note: within one tick of the clock a
file can be written twice. Such a file is read again, as git does it.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any

from stages.corpus.source import Source
from stages.corpus.source_files import SourceFile, open_file
from storage.manifest import digest
from storage.schema import FileError
from storage.table import Store

NOTES = ".sources"
"""Folder of the store with a note for every source."""
RACY_NS = 2_000_000_000
"""How much older than the note the last change of a file must be: some file systems tell times in
steps of two seconds."""


def note_key(source: Source) -> str:
    """The name of the note of a source's files."""
    return digest(["files", source.path, source.features_file])


def hashes(
    files: Sequence[SourceFile],
    listed_ns: int,
    key: str,
    store: Store | None,
    is_dry: bool,
) -> dict[str, str]:
    """The SHA-256 of each local file in hex, by path.

    Args:
        files: The files, as they were listed.
        listed_ns: When their listing began, in ns since 1970.
        key: Names the note of the source that they are of.
        store: Holds the note. It is written where a file was read.
        is_dry: Whether nothing is written.
    """
    if not files:
        return {}
    known, noted_ns = _note(store, key)
    found: dict[str, str] = {}
    for file in files:
        entry = known.get(file.path, "")
        if entry.rpartition(" ")[0] != _state(file) or noted_ns - _changed_ns(file) <= RACY_NS:
            with open_file(file.path) as stream:
                entry = f"{_state(file)} {hashlib.file_digest(stream, 'sha256').hexdigest()}"
        found[file.path] = entry
    is_new = any(known.get(path) != entry for path, entry in found.items())
    is_racy = any(noted_ns - _changed_ns(file) <= RACY_NS for file in files)
    if store is not None and not is_dry and (is_new or is_racy):
        store.write_note(NOTES, key, {"noted_ns": listed_ns, "files": found})
    return {path: entry.rpartition(" ")[2] for path, entry in found.items()}


def _note(store: Store | None, key: str) -> tuple[dict[str, str], int]:
    """State and hash of each file by path, and when they were noted; nothing without a note."""
    note: dict[str, Any] = {}
    if store is not None:
        with contextlib.suppress(FileError):  # One that is damaged is written anew.
            note = store.read_note(NOTES, key) or {}
    return note.get("files", {}), note.get("noted_ns", 0)


def _state(file: SourceFile) -> str:
    return f"{file.bytes} {' '.join(map(str, file.version or ()))}"


def _changed_ns(file: SourceFile) -> int:
    """When the content or the inode of a local file was last changed, in ns since 1970."""
    assert isinstance(file.version, tuple)
    return max(file.version[:2])
