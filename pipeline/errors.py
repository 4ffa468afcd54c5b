"""Errors of this room, importable without the packages that the others need.

Every one of them ends a command with exit code 1:

    RunError
      ConfigFileError   the YAML, or a `--set`, cannot be used
      RunFolderError    a folder is not the run it should be
      TaskError         a task failed; says which, and why
"""

import errno

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class RunError(Exception):
    """A run cannot be planned, executed or read."""


class ConfigFileError(RunError):
    """The YAML of a run, or an override, cannot be used."""


class RunFolderError(RunError):
    """A folder is not the run it should be."""


class TaskError(RunError):
    """A task of a stage failed."""


def told(error: BaseException) -> str | None:
    """What to tell of a disk that is full or may not be written to; None of any other error."""
    # Here, for this module is loaded before a signal can end in a sentence.
    from storage.files import FULL

    if not isinstance(error, OSError) or error.errno not in (*FULL, *FORBIDDEN):
        return None
    found = f"{error.filename or 'disk'}: found that it cannot be written ({error.strerror})"
    if error.errno in FULL:
        return (
            f"{found}, expected room. Make room, or raise the quota, and give the same command "
            "again: it goes on from here."
        )
    return f"{found}, expected a place that may be. Correct its permissions, or name another place."
