"""Read the configuration of a run as it is given: a YAML file or a mapping, and overrides.

There is no interpolation, no inheritance of files and no code in the YAML; `--set key.path=value`
is the one way to override. What it says is checked in `pipeline.config`, which is slower to import.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigFileError
from pipeline.yaml_text import read_yaml
from storage.names import near


@dataclass(frozen=True)
class Given:
    """The configuration of a run as it was given; nothing but its form is checked."""

    raw: Mapping[str, Any]
    """The content of the YAML, with the overrides."""
    name: str
    """What errors call it."""
    folder: str
    """Its inputs are relative to this absolute folder."""
    overridden: tuple[str, ...] = ()
    """Key paths whose values are relative to the working directory in any case."""


def given_in_file(path: str | Path, overrides: Sequence[str] = ()) -> Given:
    """The configuration in the YAML at `path`.

    Args:
        path: A YAML file; its inputs are relative to its own folder (`pipeline.paths`).
        overrides: `key.path=value`, the value in YAML; paths are relative to the working directory.

    Raises:
        ConfigFileError: the file or an override cannot be used; the message names the place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        meant = near(path, Path().glob("configs/*"))
        raise ConfigFileError(
            f"{path}: found no such file{meant}, expected the YAML of a run. Correct the path, or "
            "start from a copy of configs/tiny.yaml."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(
            f"{path}: found a file that cannot be read ({error}), expected YAML in UTF-8. "
            "Name a YAML file."
        ) from error
    return given_in_text(text, str(path), overrides)


def given_in_text(text: str, path: str, overrides: Sequence[str] = ()) -> Given:
    """The configuration in the text of the YAML at `path`; see `given_in_file`.

    Raises:
        ConfigFileError: the text or an override cannot be used; the message names the place.
    """
    raw = read_yaml(text, path)
    if not isinstance(raw, dict):
        raise ConfigFileError(
            f"{path}: found {type_text(raw)}, expected a mapping with run, corpus and stages. "
            "Start from a copy of configs/tiny.yaml."
        )
    for assignment in overrides:
        override(raw, assignment)
    overridden = tuple(assignment.partition("=")[0] for assignment in overrides)
    return Given(raw, path, os.path.dirname(os.path.abspath(os.path.expanduser(path))), overridden)


def given_in_mapping(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> Given:
    """The configuration in a mapping, whose keys and values are those of the YAML.

    Args:
        config: The mapping, which is not changed; relative paths in it are relative to the
            working directory.
        overrides: `key.path=value`, the value in YAML.

    Raises:
        ConfigFileError: an override cannot be used; errors call the mapping `config`.
    """
    raw = copy.deepcopy(dict(config))
    for assignment in overrides:
        override(raw, assignment)
    return Given(raw, "config", os.getcwd())


def override(raw: dict[str, Any], assignment: str) -> None:
    """Sets one value in `raw`; `assignment` is `key.path=value`, the value in YAML.

    Raises:
        ConfigFileError: the assignment has another form, or leads through a value.
    """
    path, equals, text = assignment.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigFileError(
            f"--set {assignment}: found no key.path=value, expected for example "
            "stages.freeshap.rounds=40. Put a dot between keys and one = before the value."
        )
    place = raw
    for depth, key in enumerate(keys[:-1]):
        inner = place.get(key)
        if inner is None:
            inner = place[key] = {}
        if not isinstance(inner, dict):
            raise ConfigFileError(
                f"--set {assignment}: found {type_text(inner)} at {'.'.join(keys[: depth + 1])}, "
                "expected a mapping. Correct the path."
            )
        place = inner
    try:
        place[keys[-1]] = read_yaml(text, "--set")
    except ConfigFileError as error:
        raise ConfigFileError(
            f"--set {assignment}: found a value that is not YAML, expected for example 40, 0.1 or "
            "[a, b]. Put quotes around text with special signs."
        ) from error


def type_text(value: Any) -> str:
    """A value in an error's words: its type, and what it holds."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {str(value)[:40]!r}"
