"""Files that were compared with their hashes, remembered for as long as nobody touches them.

To hash a thousand files for a hundred rows would take longer than the rows. So the run's folder
keeps, for each shard that was found to be as it was written, its inode, size and the times of its
last changes. A file with the same ones holds the same bytes: whoever writes to it changes `ctime`,
which cannot be set. As in git's index, a file that was written to less than `SETTLED_S` before it
was hashed is not remembered, for a change at the same tick of the clock would not be seen. What
changes without a write, such as a bit on the disk, is found by `assay verify`, which remembers
nothing.

    <folder>/<table>.json       sealed: for each shard a digest of its hash and its file's state
"""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from storage.files import write_whole
from storage.manifest import ShardRecord, open_sealed, sealed_json

LOG = logging.getLogger(__name__)
SETTLED_S = 2.0
"""Coarser than the clock of any file system."""


class HashedFiles:
    """What the folder of a run remembers; nothing is kept where there is no folder."""

    def __init__(self, folder: Path | None):
        """Reads nothing yet."""
        self._folder = folder
        self._tables: dict[str, dict[str, str]] = {}
        self._changed: set[str] = set()

    def knows(self, table: str, shard: ShardRecord, state: os.stat_result) -> bool:
        """Whether a file in this state was found to be the shard as it was written."""
        return self._of(table).get(shard.key) == _digest(shard, state)

    def add(self, table: str, shard: ShardRecord, state: os.stat_result, began: float) -> None:
        """Remembers a shard whose file was hashed; `state` is of `began`, before it was read."""
        if began - max(state.st_mtime, state.st_ctime) > SETTLED_S:
            self._of(table)[shard.key] = _digest(shard, state)
            self._changed.add(table)

    def save(self) -> None:
        """Writes what is new; a folder that cannot be written to is left as it is."""
        if self._folder is not None:
            try:
                for table in self._changed:
                    self._folder.mkdir(exist_ok=True)
                    text = sealed_json(self._tables[table])
                    write_whole(self._folder / f"{table}.json", text.encode())
            except OSError as error:
                LOG.debug("not remembered: %s", error)
        self._changed.clear()

    def _of(self, table: str) -> dict[str, str]:
        if table not in self._tables:
            self._tables[table] = {}
            if self._folder is not None:
                with contextlib.suppress(OSError, ValueError):  # none yet, or damaged
                    data = (self._folder / f"{table}.json").read_bytes()
                    self._tables[table] = open_sealed(data)
        return self._tables[table]


def _digest(shard: ShardRecord, state: os.stat_result) -> str:
    touched = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return hashlib.sha256(f"{shard.sha256} {touched}".encode()).hexdigest()[:16]
