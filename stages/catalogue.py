"""Names of stages, metrics and kinds of models, and the classes behind them.

A file in a folder of methods is a stage of that name, unless it is one of `CONTRACTS`, which the
folder's methods share. A module is imported when its class is loaded and not before, so `--help`
never loads torch.
"""

import functools
import importlib
import sys
from pathlib import Path
from typing import Any, cast

from stages.stage import ConfigError, Stage
from storage.names import near

METHODS = ("features", "predictions", "pairs", "values", "tokens")
"""Folders of `stages/` in which every file is a stage, but for `CONTRACTS`."""
CONTRACTS = frozenset(
    {"pairs.scores", "tokens.scores", "tokens.anchored_path", "metrics.metric"}
    | {"metrics.explanations", "metrics.bootstrap", "metrics.ranks", "metrics.scored"}
    | {"metrics.outcomes", "metrics.true_labels", "metrics.refitted"}
    | {"model/heads.head"}
)
"""Files in folders of methods, metrics and heads that hold what these share, and are none."""
HERE = Path(__file__).parent


def stage_names() -> list[str]:
    """Names of all stages, in alphabetical order."""
    return sorted(_places())


def load(name: str) -> type[Stage]:
    """The stage class of that name, from `stages/<folder>/<name>.py`.

    Raises:
        ConfigError: there is no such stage, or its file does not end with `STAGE = <Class>`.
    """
    place = _places().get(name)
    if place is None:
        folders = ", ".join(METHODS)
        raise ConfigError(
            f"stages.{name}: found no stage of that name, expected a file {name}.py in a folder of "
            f"stages/ ({folders}). Correct the name, or set `stage:` when the entry is an instance "
            "name of your own."
        )
    return cast(type[Stage], _class_of(place, "STAGE"))


def loaded_version(name: str) -> int | None:
    """The version of a stage whose module this process has imported; None of any other."""
    module = sys.modules.get(_places().get(name, ""))
    return None if module is None else int(module.STAGE.version)


def metric_names() -> list[str]:
    """Names of all metrics, in alphabetical order."""
    return sorted(_modules("metrics"))


def load_metric(name: str) -> type[Any]:
    """The metric class of `stages/metrics/<name>.py`.

    Raises:
        ConfigError: there is no such metric, or its file does not end with `METRIC = <Class>`.
    """
    if name not in _modules("metrics"):
        raise ConfigError(
            f"stages.metrics.{name}: found no metric of that name, expected a file "
            f"stages/metrics/{name}.py. Correct the name."
        )
    return cast(type[Any], _class_of(f"stages.metrics.{name}", "METRIC"))


def head_names() -> list[str]:
    """Names of all kinds of models, in alphabetical order."""
    return sorted(_modules("model/heads"))


def load_head(name: str) -> type[Any]:
    """The model kind of that name from `stages/model/heads/<name>.py`, a `heads.head.Head`.

    Raises:
        ConfigError: there is no such kind of model.
    """
    names = head_names()
    if name not in names:
        raise ConfigError(
            f"model: found head: {name}{near(name, names)}, expected one of "
            f"{', '.join(names)}. Correct it."
        )
    return cast(type[Any], _class_of(f"stages.model.heads.{name}", "HEAD"))


@functools.cache
def _places() -> dict[str, str]:
    """The module of each stage, by the stage's name."""
    return {name: f"stages.{folder}.{name}" for folder in METHODS for name in _modules(folder)}


@functools.cache
def _modules(folder: str) -> tuple[str, ...]:
    """Names of the files in a folder that are methods, metrics or heads, in alphabetical order."""
    names = (path.stem for path in sorted((HERE / folder).glob("*.py")))
    return tuple(n for n in names if n != "__init__" and f"{folder}.{n}" not in CONTRACTS)


def _class_of(place: str, constant: str) -> Any:
    """The class that the module `place` binds to `constant`."""
    module = importlib.import_module(place)
    if not hasattr(module, constant):
        raise ConfigError(
            f"{place}: found a module without {constant}, expected one that ends with "
            f"`{constant} = <Class>`. Add it."
        )
    return getattr(module, constant)
