"""Paths of the inputs that a YAML names: relative to the folder of the YAML.

So a folder with a YAML and its data means the same wherever its run is started. Paths that a run
writes to (`run`, `store`) and paths on the command line are relative to the working directory. The
resolved YAML of a run has absolute paths only.

An input that is not beside the YAML and is below the working directory is an error, not a guess.
"""

import dataclasses
import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigFileError
from stages.corpus.source import Source, is_url, local
from stages.corpus.yaml_value import in_yaml
from stages.model.spec import ModelSpec


@dataclass(frozen=True)
class Inputs:
    """Makes the paths of a run's inputs absolute, from the folder of its YAML."""

    name: str
    """What errors call the YAML."""
    folder: str
    """The folder of the YAML, absolute."""
    overridden: tuple[str, ...] = ()
    """Key paths set on the command line: their values are relative to the working directory."""

    def source(self, source: Source, key: str) -> Source:
        """The source with absolute local paths; ids of the hub and URLs stay as they are.

        `key` is its key path in the YAML: `corpus` or `queries`.

        Raises:
            ConfigFileError: an input is below the working directory only.
        """
        features = source.features
        if source.features_file is not None:
            (features,) = self._absolute([source.features_file], f"{key}.features")
        corrections = self._absolute(source.corrections, f"{key}.corrections")
        path = source.path
        if not is_url(path):
            # Of an id such as owner/name-v2.5 the dot begins no ending.
            has_ending = re.fullmatch(r"\.[A-Za-z]\w*", Path(path).suffix) is not None
            is_file = _is_marked(path) or glob.has_magic(path) or has_ending
            path = self._local_or_id(path, f"{key}.path", is_file)
        return dataclasses.replace(
            source, path=path, features=features, corrections=tuple(corrections)
        )

    def model(self, model: ModelSpec, key: str) -> ModelSpec:
        """The model with absolute local folders; other paths stay as they are.

        `key` is its key path in the YAML.

        Raises:
            ConfigFileError: a folder is below the working directory only.
        """
        path, adapter = model.path, model.adapter
        if not is_url(path) and not path.startswith("package:"):
            path = self._local_or_id(path, f"{key}.path", _is_marked(path))
        if adapter is not None:
            (adapter,) = self._absolute([adapter], f"{key}.adapter")
        return dataclasses.replace(model, path=path, adapter=adapter)

    def _local_or_id(self, path: str, key: str, is_local: bool) -> str:
        """The absolute path of a file or folder; `path` itself where there is none: it is an id."""
        (absolute,) = self._absolute([path], key, may_be_id=not is_local)
        return absolute if is_local or exists(absolute) else path

    def _absolute(self, paths: Iterable[str], key: str, may_be_id: bool = False) -> list[str]:
        """The absolute paths of the values of a key; a glob pattern stays a pattern.

        Raises:
            ConfigFileError: a path is not beside the YAML and is below the working directory.
        """
        written = list(paths)
        base = self._base(key)
        absolute = [path if is_url(path) else self._from(base, path) for path in written]
        elsewhere = [
            not is_url(path) and not exists(beside) and exists(self._from(os.getcwd(), path))
            for path, beside in zip(written, absolute, strict=True)
        ]
        if any(elsewhere):
            right = [
                os.path.relpath(local(path), self.folder) if is_elsewhere else path
                for path, is_elsewhere in zip(written, elsewhere, strict=True)
            ]
            missing = written[elsewhere.index(True)]
            field = key.rpartition(".")[2]
            value = in_yaml(right if field == "corrections" else right[0])
            raise ConfigFileError(
                f"{self.name}: {key}: found {missing} in the working directory and not beside the "
                f"file, in {self.folder}, expected a path relative to the file's folder. Write "
                f"`{field}: {value}`"
                + (", or start elsewhere if the hub's is meant." if may_be_id else ".")
            )
        return absolute

    def _base(self, key: str) -> str:
        """The folder that the values of a key are relative to."""
        is_overridden = any(f"{key}.".startswith(f"{path}.") for path in self.overridden)
        return os.getcwd() if is_overridden else self.folder

    def _from(self, base: str, path: str) -> str:
        path = os.path.expanduser(path)
        if glob.has_magic(path) and not os.path.isabs(path):
            base = glob.escape(base)
        return os.path.abspath(os.path.join(base, path))


def exists(path: str) -> bool:
    """Whether a local path or pattern names something."""
    return os.path.exists(path) or (
        glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None
    )


def _is_marked(path: str) -> bool:
    """Whether a path begins as only a local one does."""
    return path.startswith(("/", ".", "~"))
