"""One driver per run: a lock on the folder, which ends with the process that holds it.

The lock is the kernel's (`flock` on `<run>/run.lock`), so a killed driver leaves none behind, and
the file itself stays: what counts is who holds it. Over NFS (Linux, since 2.6.12) it is a lock of
the server and holds between hosts, unless the mount says `nolock` or `local_lock`; there a host
that is lost keeps its lock until the server gives up on it (NFSv4: its lease, 90 s by default).
"""

import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import RunFolderError

LOG = logging.getLogger(__name__)
ASK_S = 0.5
"""How long a driver asks for a free lock: another command may hold it to look at it."""
WAIT_S = 1.0
"""Between two attempts of a driver that waits."""


@dataclass(frozen=True)
class Driver:
    """Who works on a run."""

    pid: int
    host: str
    since: str
    """When it began, in UTC, in ISO 8601."""

    def __str__(self) -> str:
        name = f"process {self.pid} on {self.host}" if self.pid else "a process without a name"
        return f"{name}, since {self.since}"

    @property
    def began(self) -> float:
        """When it began, in seconds since 1970."""
        return datetime.datetime.fromisoformat(self.since).timestamp()


@contextmanager
def hold(
    folder: Path, waits: bool = False, say: Callable[[str], None] = LOG.info
) -> Iterator[None]:
    """Within, this process alone works on the run in `folder`, which must exist.

    Args:
        folder: The run's folder.
        waits: Whether to wait for another driver to end.
        say: Hears for whom this one waits.

    Raises:
        RunFolderError: another driver works on the run, or the folder cannot be written.
    """
    try:
        file = (folder / "run.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"{folder}: found that the folder cannot be written ({error.strerror}), expected a "
            "place for the run's files. Correct `run:`, or the rights of the folder."
        ) from error
    with file:
        _acquire(file, folder, waits, say)
        driver = Driver(os.getpid(), socket.gethostname(), _text(time.time()))
        _write(file, json.dumps(asdict(driver)))
        try:
            yield
        finally:
            _write(file, "")


def driver_of(folder: Path) -> Driver | None:
    """The driver that works on the run in `folder`; None where there is none."""
    try:
        with (folder / "run.lock").open("r", encoding="utf-8") as file:
            return None if _locks(file, fcntl.LOCK_SH) else _driver(file)
    except OSError:
        return None


def _acquire(file: IO[str], folder: Path, waits: bool, say: Callable[[str], None]) -> None:
    """Takes the lock, or raises."""
    until, is_told = time.monotonic() + ASK_S, False
    while not _locks(file, fcntl.LOCK_EX):
        if waits and not is_told:
            say(f"{folder} is being worked on by {_driver(file)}: waiting for its end ...")
            is_told = True
        if not waits and time.monotonic() > until:
            raise RunFolderError(
                f"{folder}: found that another command works on this run ({_driver(file)}), "
                "expected one at a time. Wait for it, or say --wait; or name another `run:` in the "
                "YAML, which shares what is in the store where both name the same `store:`."
            )
        time.sleep(WAIT_S if waits else ASK_S / 10)


def _locks(file: IO[str], kind: int) -> bool:
    """Whether the lock could be taken; on a file system without locks it counts as taken."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
        LOG.warning("%s: its file system has no locks: start one command at a time", file.name)
    return True


def _driver(file: IO[str]) -> Driver:
    """Who holds the lock, by what it wrote into the file."""
    file.seek(0)
    try:
        return Driver(**json.loads(file.read()))
    except (ValueError, TypeError):  # just taken, or a command that only looks at the run
        return Driver(0, "", _text(os.fstat(file.fileno()).st_mtime))


def _write(file: IO[str], text: str) -> None:
    """Replaces what the file says; a full disk is no reason to stop here."""
    try:
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), text.encode())
    except OSError as error:
        LOG.warning("%s: cannot be written (%s)", file.name, error.strerror)


def _text(seconds: float) -> str:
    """A time in seconds since 1970 as text, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
