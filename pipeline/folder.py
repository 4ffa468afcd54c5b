"""The folder of a run: the resolved YAML, the catalog and the record of its tables.

<run>/config.yaml        resolved; `assay run` on it repeats the run
<run>/run.json           run id, and for every table its shards and, once whole, its manifest
<run>/catalog.duckdb     views over the tables that are whole
<run>/assay.log          the log of its executions
<run>/store/             the tables, unless `store:` says elsewhere
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import read_config
from pipeline.errors import RunFolderError
from pipeline.settings import Run
from storage.table import Store, write_whole
from storage.views import Entry, build_catalog


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

    def read_record(self) -> dict[str, Any]:
        """The record of tables, as `run.json` holds it.

        Raises:
            RunFolderError: the folder holds no run, or its record cannot be read.
        """
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunFolderError(
                f"{self.path}: found no run.json, expected the folder of a run. "
                "Name the `run:` of a configuration that `assay run` has been given."
            ) from error
        except ValueError as error:
            raise RunFolderError(
                f"{self.record}: found text that is not JSON ({error}), expected a run's record. "
                "Delete the file and run again: nothing that is stored is computed twice."
            ) from error
        wanted = {"run_id", "path", "store", "splits", "tables"}
        if not isinstance(record, dict) or not wanted <= set(record):
            raise RunFolderError(
                f"{self.record}: found other keys than {', '.join(sorted(wanted))}, expected a "
                "run's record. Delete the file and run again: nothing that is stored is computed "
                "twice."
            )
        return record

    def read_run(self) -> Run:
        """The resolved configuration, with the folder's present place as `run`.

        Raises:
            RunFolderError: the folder holds no config.yaml.
            ConfigFileError: the file cannot be used.
        """
        if not self.config.is_file():
            raise RunFolderError(
                f"{self.path}: found no config.yaml, expected the folder of a run. "
                "Name the `run:` of a configuration that `assay run` has been given."
            )
        return read_config(self.config, [f"run={json.dumps(str(self.path), ensure_ascii=False)}"])

    def store(self) -> Store:
        """The store of the run's tables; one inside the folder moves with the folder."""
        url = self.read_record()["store"]
        return Store(url if url is not None else str(self.path / "store"))

    def entries(self, store: Store) -> list[Entry]:
        """The tables that are whole, each with its manifest."""
        return [
            Entry(instance, store.read_manifest(table, state["manifest"]))
            for instance, tables in self.read_record()["tables"].items()
            for table, state in tables.items()
            if state["manifest"]
        ]

    def rebuild_catalog(self) -> None:
        """Builds the catalog over the tables that are whole; records where the folder lies."""
        record, store = self.read_record(), self.store()
        entries = self.entries(store)
        build_catalog(self.catalog, entries, store, record["run_id"], record["splits"])
        if record["path"] != str(self.path):
            self.write_record({**record, "path": str(self.path)})

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replaces `run.json` by `record`, whole or not at all."""
        replace_file(self.record, json.dumps(record, indent=1) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Writes `text` to `path`, unless the file holds it already."""
    data = text.encode()
    if not path.exists() or path.read_bytes() != data:
        write_whole(path, data)
