"""Keys and manifests: what decides the rows of a shard, and which shards make a table.

A shard's key is a hash of everything that decides its rows; a manifest lists the shards that make
a table. Keys are derived from keys, not from bytes, so that `plan` knows every key before anything
is computed. The one exception is the corpus itself, whose shards are keyed by their content.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.names import is_key, is_table
from storage.schema import CorruptError, TableSpec

FORMAT_VERSION = 1
HEALS = "Run `assay verify RUN --repair`, then `assay run` again: it computes that file again."
"""What to do about a damaged file of a store."""


def digest(value: Any) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON of `value`."""
    return _digest_of(canonical(value))


def canonical(value: Any) -> str:
    """The canonical JSON of `value`: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest_with(value: Any, text: str) -> str:
    """`digest([value, other])` of another value whose canonical JSON is `text`."""
    return _digest_of(f"[{canonical(value)},{text}]")


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ShardRecord:
    """What a task returns about a shard that it wrote: key, counts and hash, never rows."""

    key: str
    role: str
    index: int
    rows: int
    bytes: int
    sha256: str
    smallest_id: int | None
    largest_id: int | None
    vector_length: int | None = None
    dtype: str | None = None
    """Value type of the vectors on disk, by NumPy's name."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts that the stage recorded; they travel in the Parquet file's own metadata."""


@dataclass(frozen=True)
class Manifest:
    """One table: its shards in order, and the stage, inputs and packages that made them."""

    table: str
    stage: str
    version: int
    fields: Mapping[str, Any]
    """The stage's fields that change rows, with models as fingerprints."""
    inputs: Mapping[str, str]
    """For each name that the stage reads: the manifest key of the table."""
    shards: tuple[ShardRecord, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts that the stage recorded for its readers."""
    model: str | None = None
    revision: str | None = None
    seed: int | None = None
    threads: int = 1
    packages: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""
    format_version: int = FORMAT_VERSION

    @functools.cached_property
    def key(self) -> str:
        """Key of the manifest: sixteen hex digits that stand for the table's content."""
        return table_key(self.table, [(s.role, s.index, s.key) for s in self.shards])

    @functools.cached_property
    def by_part(self) -> Mapping[tuple[str, int], ShardRecord]:
        """The shards by role and index."""
        return {(shard.role, shard.index): shard for shard in self.shards}

    @property
    def rows(self) -> int:
        """Rows in all shards together."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes on disk of all shards together."""
        return sum(shard.bytes for shard in self.shards)

    @functools.cached_property
    def vector_length(self) -> int | None:
        """Length of the vectors; None for a table without vectors."""
        lengths = {s.vector_length for s in self.shards if s.vector_length is not None}
        return lengths.pop() if lengths else None

    @property
    def dtype(self) -> str | None:
        """Value type of the vectors on disk; None for a table without vectors."""
        dtypes = {s.dtype for s in self.shards if s.dtype is not None}
        return dtypes.pop() if dtypes else None

    def to_json(self) -> str:
        """The manifest as the text of its file, with its seal."""
        # Not `dataclasses.asdict`, which copies every value of every shard.
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        names = [f.name for f in dataclasses.fields(ShardRecord)]
        value["shards"] = [{name: getattr(s, name) for name in names} for s in self.shards]
        return sealed_json(value, is_sorted=True)


@dataclass(frozen=True)
class Recipe:
    """What decides the rows of a stage's shards, beside the tables that it reads."""

    stage: str
    version: int
    fields: Mapping[str, Any]
    """The stage's fields that change rows."""
    tables: tuple[TableSpec, ...] = ()
    """The tables that are written; with a new column every shard has another key."""

    def key(self, inputs: Sequence[str], index: int = 0) -> str:
        """Key of the shards that a task writes, one in each table.

        `inputs` are the keys of the shards and tables that it reads. `index` is the round for
        `split="round"`, else 0: a shard's place in the corpus is already in the keys it reads, and
        must not change the key when the corpus grows.
        """
        declared = [spec.signature for spec in self.tables]
        made_of = [self.stage, self.version, dict(self.fields), declared, list(inputs), index]
        return digest(made_of)


def table_key(table: str, shards: Sequence[tuple[str, int, str]]) -> str:
    """Key of a table that consists of `shards`, given as role, index and shard key.

    The stage and its inputs are in the shards' keys already; times and package versions are in no
    key.
    """
    return digest([table, [list(shard) for shard in shards]])


def sealed_json(value: Mapping[str, Any], is_sorted: bool = False) -> str:
    """The JSON object `value` as the text of a file, with a digest of all else under `seal`."""
    return json.dumps({**value, "seal": _seal(value)}, indent=1, sort_keys=is_sorted) + "\n"


def open_sealed(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a file, without its seal; one of before there were seals as it is.

    Raises:
        ValueError: the text is no JSON object, or not the one that was sealed.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}")
    seal = value.pop("seal", None)
    if seal is not None and seal != _seal(value):
        raise ValueError("other content than was written")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def parse_manifest(text: str | bytes, url: str, table: str, key: str) -> Manifest:
    """The manifest `key` of `table`, which the file at `url` holds as `text`.

    Raises:
        CorruptError: the text is not what was written as this manifest, or has another format.
    """
    file = (table, f"{key}.json")
    try:
        raw = open_sealed(text)
        version = raw.get("format_version")
        if version != FORMAT_VERSION and "format_version" in raw:
            raise CorruptError(
                f"{url}: found manifest format {version}, expected {FORMAT_VERSION}. "
                "Use the version of assay that wrote it, or run again with an empty store."
            )
        shards = tuple(ShardRecord(**shard) for shard in raw.pop("shards"))
        manifest = Manifest(shards=shards, **raw)
        _refuse_odd(manifest)
        if (manifest.table, manifest.key) != (table, key):
            raise ValueError(f"the manifest {manifest.table} {manifest.key}")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CorruptError(
            f"{url}: found {error}, expected the JSON of this manifest as it was written. {HEALS}",
            file,
        ) from error
    return manifest


def _refuse_odd(manifest: Manifest) -> None:
    """Raises unless names, keys and numbers of a manifest are such as assay writes.

    Raises:
        ValueError: they are not.
    """
    optional = (int, type(None))
    checks: tuple[tuple[Any, Any, str], ...] = (
        *((value, dict, name) for name, value in vars(manifest).items() if name in _MAPPINGS),
        *((value, str, name) for name, value in vars(manifest).items() if name in _TEXTS),
        (manifest.version, int, "version"),
        (manifest.threads, int, "threads"),
        (manifest.seed, optional, "seed"),
        (manifest.seconds, (int, float), "seconds"),
        *((getattr(shard, n), int, n) for shard in manifest.shards for n in _COUNTS),
        *((getattr(shard, n), optional, n) for shard in manifest.shards for n in _IDS),
        *((getattr(shard, n), str, n) for shard in manifest.shards for n in ("role", "sha256")),
        *((shard.details, dict, "details") for shard in manifest.shards),
    )
    for value, kinds, name in checks:
        if not isinstance(value, kinds) or (kinds in (int, optional) and not _fits(value)):
            raise ValueError(f"{name}: {str(value)[:60]!r}")
    keys = [shard.key for shard in manifest.shards]
    if not is_table(manifest.table) or not all(map(is_key, keys)):
        raise ValueError(f"other names than of tables and shards, {str(keys)[:60]!r}")


def _fits(value: int | None) -> bool:
    return value is None or -(2**63) <= value < 2**63


_MAPPINGS = ("fields", "inputs", "details", "packages")
_TEXTS = ("table", "stage", "created")
_COUNTS = ("index", "rows", "bytes")
_IDS = ("smallest_id", "largest_id", "vector_length")
