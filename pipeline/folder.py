"""The folder of a run: the resolved YAML, the catalog and the record of its tables.

<run>/config.yaml        resolved; `assay run` on it repeats the run
<run>/run.json           run id, for every table its shards and, once whole, its manifest (until
                         then as `before` that of the last one that was whole), and the resolved
                         YAML once more: of the two, each stands in for the other
<run>/catalog.duckdb     views over the tables that are whole
<run>/assay.log          the log of its executions
<run>/summary.json       what `assay run` shows at its end
<run>/hashed/            which files of the store were compared with their hashes, in which state
<run>/store/             the tables, unless `store:` says elsewhere
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.code_version import source_digest
from pipeline.config import run_of
from pipeline.decided import moved
from pipeline.errors import ConfigFileError, RunFolderError
from pipeline.given import given_in_file, given_in_text
from pipeline.record_check import odd_in
from pipeline.settings import Run
from pipeline.yaml_text import read_yaml
from storage.catalog import open_catalog
from storage.files import write_whole
from storage.manifest import open_sealed, sealed_json
from storage.summed import sum_values
from storage.table import Store
from storage.views import (
    SUMS,
    Entry,
    build_catalog,
    catalog_in_memory,
    content_of,
    summed_tables,
)

REMOVED = "removed"
"""What is said of a damaged file that is removed."""


@dataclass(frozen=True)
class RunFolder:
    """The files in the folder of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """Path of the resolved YAML."""
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """Path of the record of tables."""
        return self.path / "run.json"

    @property
    def catalog(self) -> Path:
        """Path of the catalog, a DuckDB file."""
        return self.path / "catalog.duckdb"

    @property
    def hashed(self) -> Path:
        """Folder that remembers which files were hashed (`storage.hashed`)."""
        return self.path / "hashed"

    def read_record(self) -> dict[str, Any]:
        """The record of tables, as `run.json` holds it.

        Raises:
            RunFolderError: the folder holds no run, or its record cannot be read.
        """
        try:
            record = open_sealed(self.record.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunFolderError(
                f"{self.path}: found no run.json, expected the folder of a run. "
                "Name the `run:` of a configuration that `assay run` has been given."
            ) from error
        except ValueError as error:
            raise RunFolderError(
                f"{self.record}: found a damaged file ({error}), expected a run's record as it was "
                f"written. Run `assay run {self.config}` again: it writes the record anew, and "
                "nothing that is stored is computed twice."
            ) from error
        wanted = {"run_id", "path", "store", "splits", "tables"}
        if not wanted <= set(record):
            raise RunFolderError(
                f"{self.record}: found other keys than {', '.join(sorted(wanted))}, expected a "
                f"run's record. Run `assay run {self.config}` again: it writes the record anew, "
                "and nothing that is stored is computed twice."
            )
        odd = odd_in(record)
        if odd is not None:
            raise RunFolderError(
                f"{self.record}: found {odd}, expected a run's record as assay writes it: names of "
                "stages and tables, and keys of 16 hex digits. Ask for the folder as it was made, "
                f"or run `assay run {self.config}` again."
            )
        return record

    def read_run(self) -> Run:
        """The resolved configuration of the last execution, with the folder's place as `run`.

        Reviews that lay in the folder lie there still.

        Raises:
            RunFolderError: the folder holds no run.
            ConfigFileError: neither the record nor the YAML can be used.
        """
        text = self._recorded_config()
        if text is not None:
            given = given_in_text(text, str(self.config))
        elif self.config.is_file():
            given = given_in_file(self.config)
        else:
            raise RunFolderError(
                f"{self.path}: found no config.yaml, expected the folder of a run. "
                "Name the `run:` of a configuration that `assay run` has been given."
            )
        run = run_of(dataclasses.replace(given, raw={**given.raw, "run": str(self.path)}))
        was = str(given.raw.get("run"))
        reviews = tuple(moved(path, was, self.path) for path in run.corpus.corrections)
        corpus = dataclasses.replace(run.corpus, corrections=reviews)
        return self._trusted(dataclasses.replace(run, corpus=corpus))

    def _trusted(self, run: Run) -> Run:
        """The run, unless code of a model would run because somebody else's folder says so."""
        models = [run.model, *(stage.model_ref for stage in run.stages.values())]
        trusting = [model.path for model in models if model and model.trust_remote_code]
        if trusting and not self._kept_own().get("is_run"):
            raise RunFolderError(
                f"{self.path}: found trust_remote_code: true for {trusting[0]} in a run that was "
                "not made here, expected one whose code you have agreed to. Read that code, and "
                f"make the run your own: assay run {self.config}"
            )
        return run

    def _recorded_config(self) -> str | None:
        """The resolved YAML as the record has it; None where the record has none."""
        try:
            text = self.read_record().get("config")
        except RunFolderError:
            return None
        return str(text) if text is not None else None

    def faults(self, record: Mapping[str, Any] | None = None) -> dict[Path, str]:
        """The files of the folder that are not as the run left them, and what is wrong.

        `record` is the folder's record, where it was read already.
        """
        found = {}
        record = record if record is not None else self.read_record()
        text = record.get("config")
        if text is not None and _content(self.config) != str(text).encode():
            found[self.config] = "other content than the run wrote, which run.json has, too"
        sha256 = record.get("catalog", {}).get("sha256")
        if sha256 is not None and (now := _sha256(self.catalog)) != sha256:
            found[self.catalog] = "gone" if now is None else "other bytes than the run wrote"
        return found

    def mend(self) -> dict[Path, str]:
        """Removes a damaged catalog, and writes config.yaml again; what was done to which file."""
        done = {}
        for file, fault in self.faults().items():
            if file == self.catalog and fault != "gone":
                file.unlink(missing_ok=True)
                done[file] = REMOVED
            elif file != self.catalog and (text := self._recorded_config()) is not None:
                replace_file(file, text)
                done[file] = "written again"
        return done

    def store(self, record: Mapping[str, Any] | None = None) -> Store:
        """The store of the run's tables; one inside the folder moves with the folder.

        `record` is the folder's record, where it was read already.
        """
        url = (record if record is not None else self.read_record())["store"]
        return Store(url if url is not None else str(self.path / "store"))

    def entries(self, store: Store) -> list[Entry]:
        """The tables that are whole, each with its manifest."""
        return self._entries(self.read_record(), store)

    def _entries(
        self, record: Mapping[str, Any], store: Store, has_values: bool = False
    ) -> list[Entry]:
        return [
            Entry(instance, store.read_manifest(table, state["manifest"]))
            for instance, tables in record["tables"].items()
            for table, state in tables.items()
            if state["manifest"] and (has_values or table != SUMS)
        ]

    def rebuild_catalog(
        self, store: Store | None = None, record: dict[str, Any] | None = None
    ) -> None:
        """Builds the catalog over the tables that are whole; records it, and where the folder lies.

        One that was built over the same tables, and not touched since, stays. `record` takes the
        place of the folder's record, and is completed and written.

        Raises:
            storage.schema.FileError: a manifest or shard is gone or damaged.
        """
        is_run = record is not None or bool(self._kept_own().get("is_run"))
        record = record if record is not None else self.read_record()
        store = store or self.store()
        entries = self._entries(record, store)
        entries += _with_values(record, entries, store)
        wanted = content_of(entries, store, record["run_id"], record["splits"])
        last = record.get("catalog", {})
        is_same = last.get("of") == wanted and last.get("sha256") == _sha256(self.catalog)
        if not (is_same and self.has_own_catalog()):
            build_catalog(self.catalog, entries, store, record["run_id"], record["splits"])
            record["catalog"] = {"of": wanted, "sha256": _sha256(self.catalog)}
        self._own.parent.mkdir(exist_ok=True)
        kept = {"state": _state(self.catalog), "is_run": is_run}
        replace_file(self._own, sealed_json(kept))
        record["path"] = str(self.path)
        self.write_record(record)

    def has_own_catalog(self) -> bool:
        """Whether the catalog is the file that this user's assay wrote, untouched since.

        Its SQL would be executed. So one that came with a folder of somebody else's, or was
        changed, is not opened: views are then made from the manifests, in memory. Who packs a
        folder cannot know the inode and the times that a file gets where it is unpacked; who may
        write into the folder where it lies is another user, or this one.
        """
        return bool(self._kept_own())

    def _kept_own(self) -> dict[str, Any]:
        """What is kept of the catalog if it is this user's own: its state, and who made it.

        `is_run` says that `assay run` did, and not `assay status` alone.
        """
        try:
            kept, owner = open_sealed(self._own.read_bytes()), self._own.stat().st_uid
            is_own = owner == os.getuid() and kept.get("state") == _state(self.catalog)
        except (OSError, ValueError):
            return {}
        return kept if is_own else {}

    @property
    def _own(self) -> Path:
        return self.hashed / ".catalog.json"

    def open_catalog(self, store: Store, record: Mapping[str, Any], is_own: bool) -> Any:
        """A connection to the catalog; where the file is not this user's own, to one in memory.

        Raises:
            storage.schema.MissingError: there is no catalog yet.
            storage.schema.FileError: a manifest is gone or damaged.
        """
        if is_own or not self.catalog.exists():
            return open_catalog(self.catalog)
        entries = self._entries(record, store, has_values=True)
        return catalog_in_memory(entries, store, record["run_id"], record["splits"])

    def kept_summary(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """The summary that `keep_summary` kept; None where it is of another state, or damaged."""
        try:
            kept = open_sealed(self._summary.read_bytes())
        except (OSError, ValueError):
            return None
        return kept["summary"] if kept["of"] == self._state_of(record) else None

    def keep_summary(self, record: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Keeps the summary of the state of the run that `record` describes."""
        kept = {"of": self._state_of(record), "summary": summary}
        replace_file(self._summary, sealed_json(kept))

    @property
    def _summary(self) -> Path:
        return self.path / "summary.json"

    def _state_of(self, record: Mapping[str, Any]) -> list[Any]:
        """What decides a summary: the catalog's content, the code, and where the folder lies."""
        return [record.get("catalog", {}).get("of"), source_digest(), str(self.path)]

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replaces `run.json` by `record`, whole or not at all."""
        replace_file(self.record, sealed_json(record))


def _with_values(record: dict[str, Any], entries: list[Entry], store: Store) -> list[Entry]:
    """The tables of values, once all tables that are summed are whole; takes them into `record`."""
    sums = set(summed_tables())
    states = record["tables"].values()
    is_whole = all(s["manifest"] for tables in states for t, s in tables.items() if t in sums)
    values = sum_values(entries, store) if is_whole else []
    for tables in states:
        tables.pop(SUMS, None)
    for entry in values:
        shards = [shard.key for shard in entry.manifest.shards]
        record["tables"][entry.instance][SUMS] = {"manifest": entry.manifest.key, "shards": shards}
    return values


def _state(path: Path) -> list[int]:
    """What changes with a file: who owns it, its inode, size, and times."""
    state = path.stat()
    return [state.st_uid, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def replace_file(path: Path, text: str) -> None:
    """Writes `text` to `path`, unless the file holds it already."""
    data = text.encode()
    if _content(path) != data:
        write_whole(path, data)


def mended_config(path: Path) -> str | None:
    """A sentence about the config.yaml of a run, where it is not as the run wrote it; else None.

    Where it cannot be read as YAML, it is written again from the run's record.
    """
    folder = RunFolder(path.parent)
    text = folder._recorded_config() if path.name == folder.config.name else None
    if text is None or _content(path) == text.encode():
        return None
    try:
        content = (_content(path) or b"").decode()
        is_yaml = isinstance(read_yaml(content, str(path)), dict)
    except (ConfigFileError, UnicodeDecodeError):
        is_yaml = False
    if is_yaml:
        return f"{path} was changed since the run wrote it: it counts as it is now"
    replace_file(path, text)
    return f"{path} was damaged: it is written again as run.json has it"


def _content(path: Path) -> bytes | None:
    """What a file holds; None where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sha256(path: Path) -> str | None:
    """The hash of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
