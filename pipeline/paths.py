"""Where the inputs that a YAML names lie: relative to its own folder.

So a folder with a YAML and its data means the same wherever a run of it starts. What a run writes
(`run`, `store`) and what is said on the command line is relative to the working directory. The
resolved YAML of a run has absolute paths only.

An input that is not beside the YAML and is below the working directory is an error, not a guess.
"""

import dataclasses
import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigFileError
from stages.corpus.source import Source, local
from stages.model.spec import ModelSpec


@dataclass(frozen=True)
class Inputs:
    """The folder that the inputs of a run begin from, and what errors say of it."""

    name: str
    """What errors call the YAML."""
    folder: str
    """Of the YAML, absolute."""
    overridden: tuple[str, ...] = ()
    """Key paths that the command line gave, whose values begin from the working directory."""

    def source(self, given: Source, key: str) -> Source:
        """A source whose local paths are absolute; ids of the hub and URLs stay as they are.

        Raises:
            ConfigFileError: an input is below the working directory only.
        """
        features = given.features
        if given.features_file is not None:
            (features,) = self._found([given.features_file], f"{key}.features")
        corrections = self._found(given.corrections, f"{key}.corrections")
        path = given.path
        if "://" not in path:
            is_file = _is_marked(path) or glob.has_magic(path) or bool(Path(path).suffix)
            path = self._local_or_id(path, f"{key}.path", is_file)
        return dataclasses.replace(
            given, path=path, features=features, corrections=tuple(corrections)
        )

    def model(self, given: ModelSpec, key: str) -> ModelSpec:
        """A model whose local folders are absolute; other paths stay as they are.

        Raises:
            ConfigFileError: a folder is below the working directory only.
        """
        path, adapter = given.path, given.adapter
        if "://" not in path and not path.startswith("package:"):
            path = self._local_or_id(path, f"{key}.path", _is_marked(path))
        if adapter is not None:
            (adapter,) = self._found([adapter], f"{key}.adapter")
        return dataclasses.replace(given, path=path, adapter=adapter)

    def _local_or_id(self, path: str, key: str, is_local: bool) -> str:
        """The absolute path of what is local, and `path` itself where it can only be an id."""
        (found,) = self._found([path], key, may_be_id=not is_local)
        return found if is_local or _exists(found) else path

    def _found(self, paths: Iterable[str], key: str, may_be_id: bool = False) -> list[str]:
        """The absolute paths of the values of a key; a pattern's stays a pattern.

        Raises:
            ConfigFileError: one is not beside the YAML and is below the working directory.
        """
        given = list(paths)
        found = [self._from(self._base(key), path) for path in given]
        elsewhere = [
            not _exists(here) and _exists(self._from(os.getcwd(), path))
            for path, here in zip(given, found, strict=True)
        ]
        if any(elsewhere):
            right = [
                os.path.relpath(local(path), self.folder) if is_elsewhere else path
                for path, is_elsewhere in zip(given, elsewhere, strict=True)
            ]
            missing = given[elsewhere.index(True)]
            field = key.rpartition(".")[2]
            line = _line(field, right if field == "corrections" else right[0])
            raise ConfigFileError(
                f"{self.name}: {key}: found {missing} in the working directory and not beside the "
                f"file, in {self.folder}, expected a path relative to the file's folder. Write "
                f"`{line}`" + (", or start elsewhere if the hub's is meant." if may_be_id else ".")
            )
        return found

    def _base(self, key: str) -> str:
        is_overridden = any(f"{key}.".startswith(f"{given}.") for given in self.overridden)
        return os.getcwd() if is_overridden else self.folder

    def _from(self, base: str, path: str) -> str:
        path = os.path.expanduser(path)
        if glob.has_magic(path) and not os.path.isabs(path):
            base = glob.escape(base)
        return os.path.abspath(os.path.join(base, path))


def _exists(path: str) -> bool:
    return os.path.exists(path) or (
        glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None
    )


def _is_marked(path: str) -> bool:
    return path.startswith(("/", ".", "~"))


def _line(key: str, value: Any) -> str:
    """The line of a YAML that gives `key` the value."""
    text = yaml.safe_dump({key: value}, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip().removeprefix("{").removesuffix("}")
