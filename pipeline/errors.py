"""Errors of this room, importable without the packages that the others need.

Every one of them ends a command with exit code 1:

    RunError
      ConfigFileError   the YAML, or a `--set`, cannot be used
      RunFolderError    a folder is not the run it should be
      TaskError         a task failed; says which, and why
"""


class RunError(Exception):
    """A run cannot be planned, executed or read."""


class ConfigFileError(RunError):
    """The YAML of a run, or an override, cannot be used."""


class RunFolderError(RunError):
    """A folder is not the run it should be."""


class TaskError(RunError):
    """A task of a stage failed."""
