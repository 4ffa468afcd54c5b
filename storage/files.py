"""The files of a store as bytes: in a folder or an object store, read, written, removed, listed."""

import errno
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from storage.listing import File, Listing
from storage.remote import asked, open_file_system
from storage.schema import MissingError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room, or of a quota that is used up."""
KEPT_BYTES = 64 << 20
"""Of files of an object store that a process keeps in memory; they never change."""


class Files:
    """The files of a folder or URL, by table and name; those of a URL are kept once they are read.

    They are immutable, so that what is kept is right until this process writes the file itself.
    """

    def __init__(self, url: str):
        """Opens the folder or URL; creates nothing.

        Raises:
            StorageError: no file system is known for the URL's protocol, or it holds credentials.
        """
        self.fs, root = open_file_system(url)
        self.is_local = "file" in _protocols(self.fs)
        self.root = os.path.abspath(root) if self.is_local else root.rstrip("/")
        self.url = self.root if self.is_local else url.rstrip("/")
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._kept_bytes = 0
        self.refresh()

    def refresh(self) -> None:
        """Forgets the listing."""
        self._listing = Listing(self.root, None if self.is_local else self._find)

    def path(self, table: str, name: str) -> str:
        """Path of a file as the file system knows it."""
        return f"{self.root}/{table}/{name}"

    def of(self, table: str) -> Mapping[str, File]:
        """The files of a table by name, as listed."""
        return self._listing.files(table)

    def read(self, table: str, name: str) -> bytes:
        """The content of a file, unchecked.

        Raises:
            MissingError: there is no such file.
            StorageError: the store refuses or does not answer.
        """
        path = self.path(table, name)
        try:
            if self.is_local:
                with open(path, "rb") as file:
                    return file.read()
            if (table, name) in self._kept:
                self._kept.move_to_end((table, name))
                return self._kept[table, name]
            # With a start, s3fs does not ask for the size first.
            data = bytes(self._asked(lambda: _whole(self.fs, path)))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingError(
                f"{path}: found nothing there, expected a file of table {table}. "
                "Run `assay run` again: it computes what is missing.",
                (table, name),
            ) from error
        self._keep(table, name, data)
        return data

    def _keep(self, table: str, name: str, data: bytes) -> None:
        """Keeps a file of an object store in memory, in place of those not read for longest."""
        if self.is_local or len(data) > KEPT_BYTES // 4:
            return
        self._kept[table, name] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def write(self, table: str, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        path = self.path(table, name)
        self._forget(table, name)
        if self.is_local:
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                write_whole(Path(path), data)
            except OSError as error:
                raise _not_written(path, error) from error
        else:
            self._asked(lambda: self.fs.pipe_file(path, data))
            self._keep(table, name, data)
        self._listing.wrote(table, name, len(data))

    def drop(self, table: str, name: str) -> None:
        """Forgets the content of a file that is kept in memory."""
        self._kept_bytes -= len(self._kept.pop((table, name), b""))

    def _forget(self, table: str, name: str) -> None:
        self.drop(table, name)
        self._listing.removed(table, name)

    def read_part(self, table: str, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file of an object store."""
        path = self.path(table, name)
        return bytes(self._asked(lambda: self.fs.cat_file(path, start=start, end=stop)))

    def remove(self, table: str, name: str) -> None:
        """Removes a file, which must be proven damaged; one that is gone is no error."""
        self._forget(table, name)
        try:
            if self.is_local:
                os.unlink(self.path(table, name))
            else:
                self._asked(lambda: self.fs.rm_file(self.path(table, name)))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _not_written(self.path(table, name), error) from error

    def _find(self) -> dict[str, dict[str, Any]]:
        """All files of an object store, from one listing."""
        try:
            found: dict[str, dict[str, Any]] = self._asked(
                lambda: self.fs.find(self.root, detail=True)
            )
        except FileNotFoundError:
            return {}
        return found

    def _asked(self, request: Callable[[], Any]) -> Any:
        return asked(self.url, request)


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, so that any reader sees all of it or the earlier file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _whole(fs: Any, path: str) -> bytes:
    """The content of a file of an object store; an empty one has no byte 0 to begin at."""
    try:
        return bytes(fs.cat_file(path, start=0))
    except Exception as error:
        cause = error.__cause__ or error
        code = (getattr(cause, "response", None) or {}).get("Error", {}).get("Code", "")
        if str(code) in ("InvalidRange", "416") or "InvalidRange" in str(error):
            return b""
        raise


def _not_written(path: str, error: OSError) -> StorageError:
    """The error of a file that cannot be written or removed."""
    is_full = error.errno in FULL
    expected = "room on the disk" if is_full else "a folder that can be written to"
    advice = "Make room" if is_full else "Correct its permissions, or `store:`"
    return StorageError(
        f"{path}: found that it cannot be written ({error.strerror}), expected {expected}. "
        f"{advice}, and give the same command again: it goes on from here."
    )


def _protocols(fs: Any) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
