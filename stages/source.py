"""Where rows come from: which file, folder or data set, and which of its columns mean what."""

import difflib
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from stages.stage import ConfigError, DataError

KINDS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
ENDINGS = ", ".join(KINDS)


@dataclass(frozen=True)
class FlipLabels:
    """Labels that are made wrong on purpose, so that finding them again can be measured."""

    fraction: float
    """Part of the labelled rows whose label is changed, in [0, 1)."""
    seed: int = 0
    """Which rows, and which of the other classes each of them gets."""

    def __post_init__(self) -> None:
        """Refuses a fraction that leaves no right label, or is none."""
        if not 0 <= self.fraction < 1:
            raise ConfigError(
                f"flip_labels.fraction: found {self.fraction}, expected a number in [0, 1). "
                "Write 0.1 to flip one label in ten."
            )


@dataclass(frozen=True)
class Source:
    """One set of rows: where it lies and which of its columns mean what."""

    path: str
    """Id of a data set on the hub, a folder written by `save_to_disk`, a folder of data files, or
    a Parquet, JSONL or CSV path or glob."""
    name: str | None = None
    """Configuration of a data set on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub."""
    split: str | None = None
    """Split expression such as `train`, `train[:1000]` or `train[:50%]+test`; files are `train`."""
    text: str = "text"
    """Column of the text."""
    text_b: str | None = None
    """Column of the second text of a pair."""
    label: str | None = "label"
    """Column of the label; null for queries without labels."""
    id: str | None = None
    """Column that identifies a row for good; without one, the row's number does."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of their indices; otherwise taken from the labels."""
    flip_labels: FlipLabels | None = None
    """Labels to make wrong on purpose, on the corpus only."""
    corrections: tuple[str, ...] = ()
    """Reviewed files, applied in order: columns source_id or example_id, decision, new_label."""

    def __post_init__(self) -> None:
        """Refuses an empty path and class names that are repeated or fewer than two."""
        if not self.path:
            raise ConfigError(
                "path: found an empty string, expected a hub id, folder, file or glob. Set path."
            )
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise ConfigError(
                f"classes: found {list(self.classes)}, expected at least two different names. "
                "List every class once, in the order of the label's indices."
            )


def local(path: str) -> str:
    """The absolute path of a local one."""
    return os.path.abspath(os.path.expanduser(path))


def is_local(path: str) -> bool:
    """Whether `path` names something on disk; an existing path wins over a hub id of that name."""
    if glob.has_magic(path) or os.path.exists(local(path)) or path.startswith(("/", ".", "~")):
        return True
    if Path(path).suffix.lower() in KINDS:
        return True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise DataError(
            f"{path}: found neither a file or folder of that name nor the form of a hub id, "
            "expected owner/name, a local path or a glob. Correct path; for a file at a URL, "
            "download it first."
        )
    return False


def matches(path: str) -> list[str]:
    """Files that `path` names, sorted, as absolute paths."""
    whole = local(path)
    if os.path.isfile(whole):
        return [whole]
    if glob.has_magic(path):
        found = sorted(f for f in glob.glob(whole, recursive=True) if os.path.isfile(f))
        if found:
            return found
        raise DataError(
            f"{path}: found no file that the pattern matches (looked for {whole}), expected at "
            "least one. Correct the pattern or the folder the run starts in."
        )
    folder = os.path.dirname(whole)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    close = difflib.get_close_matches(os.path.basename(whole), names, n=1)
    raise DataError(
        f"{path}: found no file or folder at {whole}, expected one with an ending among "
        f"{ENDINGS}. {f'Did you mean {close[0]}?' if close else 'Correct path.'}"
    )
