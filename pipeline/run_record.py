"""The record of a run, and the manifests and catalog that follow it."""

import dataclasses
import datetime
import logging
from collections.abc import Container, Mapping
from contextlib import suppress
from typing import Any

from pipeline.code_version import PACKAGES, package_version
from pipeline.config import dump_config, stage_name
from pipeline.errors import RunFolderError
from pipeline.folder import RunFolder, replace_file
from pipeline.node import CORPUS_INSTANCE, Node
from pipeline.plan import Plan
from pipeline.rounds import Outcome
from pipeline.shard_facts import sentences, together
from pipeline.store_users import register
from storage.manifest import Manifest, ShardRecord, digest
from storage.table import Store
from storage.views import SUMS

LOG = logging.getLogger(__name__)


class RunRecord:
    """The record of a run (`run.json`), and the manifests and catalog that follow it.

    Written anew when a stage is whole, which it is when all of its shards are in the store.
    """

    def __init__(self, plan: Plan, folder: RunFolder, store: Store):
        self.plan, self.folder, self.store = plan, folder, store
        run = plan.run
        resolved = dataclasses.replace(
            run,
            shard_size=plan.corpus.shard_size,
            stages={node.instance: node.stage for node in plan.nodes},
            artefacts=_pins(plan),
        )
        text = dump_config(resolved)
        replace_file(folder.config, text)
        roles = {"example": run.corpus, "query": run.queries}
        self.record: dict[str, Any] = {
            "run_id": f"{folder.path.name}-{digest(text)[:6]}",
            "path": str(folder.path),
            "config": text,
            "store": run.store,
            "splits": {r: s.split or "train" for r, s in roles.items() if s is not None},
            "tables": {
                CORPUS_INSTANCE: {
                    table: {"manifest": m.key, "shards": [s.key for s in m.shards]}
                    for table, m in plan.corpus.tables.items()
                }
            },
        }
        last = _last_record(folder)
        for node in plan.nodes:
            self.record["tables"][node.instance] = {
                spec.name: self._state(node, spec.name, last.get("tables", {}))
                for spec in node.stage.writes
            }
        # Readers of a run that was whole keep its catalog until the new run is whole, too, over
        # any number of kills in between.
        was_whole = bool(last) and (last.get("keeps_catalog") or _is_whole(last))
        self._keeps_catalog = folder.catalog.exists() and was_whole
        if self._keeps_catalog:
            for instance, tables in last["tables"].items():
                if SUMS in tables and instance in self.record["tables"]:
                    self.record["tables"][instance][SUMS] = tables[SUMS]
        self.record["rounds"] = dict(last.get("rounds", {}))
        self.record["catalog"] = dict(last.get("catalog", {}))
        self.record["keeps_catalog"] = self._keeps_catalog and not _is_whole(self.record)
        # First, so that nobody who cleans the store takes away what the record names.
        register(store, self.record)
        self._save()

    def stored(self, node: Node, computed: Container[str] = ()) -> dict[str, list[ShardRecord]]:
        """Records of the stage's shards that an interrupted execution wrote, read from their files.

        By the key of their task, one for each table; none where the manifests are there already,
        and of the tasks `computed`. Read before the stage computes: what is damaged is then
        computed again with the rest.

        Raises:
            storage.schema.FileError: a shard is gone or damaged.
        """
        specs = node.stage.writes
        if all(self.store.has_manifest(s.name, node.manifest_key(s.name)) for s in specs):
            return {}
        done = [t for t in node.whole if t.key in node.done and t.key not in computed]
        return {
            t.key: [self.store.record_of(s, t.key, t.part.role, t.part.index) for s in specs]
            for t in done
        }

    def finish(
        self, node: Node, records: Mapping[str, list[ShardRecord]], seconds: float
    ) -> list[str]:
        """Writes the manifests of a stage whose shards are all in the store.

        `records` holds, by task, those of its shards that no manifest lists yet. Returns the
        notices of all of the stage's tasks, also of those that an interrupted execution ran; none
        where the manifests were in the store already.
        """
        notices: list[str] = []
        for position, spec in enumerate(node.stage.writes):
            key = node.manifest_key(spec.name)
            listed = self._listed(spec.name, key)
            new = {k: of_task[position] for k, of_task in records.items()}
            # A shard that was damaged has been computed again: with the same bytes, as a rule.
            is_listed = all(
                task.key in listed
                and (task.key not in new or _bytes_of(new[task.key]) == _bytes_of(listed[task.key]))
                for task in node.whole
            )
            if not is_listed:
                shards = [
                    new.get(task.key)
                    or self.store.record_of(spec, task.key, task.part.role, task.part.index)
                    for task in node.whole
                ]
                manifest = self._manifest(node, spec.name, shards, seconds)
                self.store.write_manifest(manifest, replaces=True)
                notices = notices or sentences(manifest.details)
            state = self.record["tables"][node.instance][spec.name]
            state["manifest"] = key
            state.pop("before", None)
        self._save()
        return notices

    def _listed(self, table: str, key: str) -> dict[str, ShardRecord]:
        """What the manifest of a table lists, by shard; nothing where it is not there."""
        if not self.store.has_manifest(table, key):
            return {}
        return {shard.key: shard for shard in self.store.read_manifest(table, key).shards}

    def outcome(self, node: Node) -> Outcome:
        """The outcome that the last execution recorded for the rounds of a stage."""
        return Outcome.before(node, self.record["rounds"].get(node.instance, {}))

    def keep_outcome(self, node: Node, outcome: Outcome) -> None:
        """Records which rounds of a stage count; `node` has the tasks of these alone."""
        self.record["rounds"][node.instance] = dataclasses.asdict(outcome)
        for spec in node.stage.writes:
            table = self.record["tables"][node.instance][spec.name]
            table["shards"] = [task.key for task in node.tasks]

    def close(self, finished: Mapping[str, Any] | None = None) -> None:
        """Puts the catalog of the whole run in its place.

        `finished` is what tells that nothing is to do the next time (`pipeline.unchanged`); None
        where the run is to be planned then in any case.
        """
        self.record["keeps_catalog"] = False
        if finished is not None:
            self.record["finished"] = finished
        self.folder.rebuild_catalog(self.store, self.record)
        register(self.store, self.record)

    def _manifest_if_whole(self, node: Node, table: str) -> str | None:
        """The manifest's key, where the table has all of its shards and a manifest."""
        key = node.manifest_key(table)
        return key if not node.missing and self.store.has_manifest(table, key) else None

    def _state(self, node: Node, table: str, last: Mapping[str, Any]) -> dict[str, Any]:
        """A table in the record; until it is whole, with the one that was whole `before`, if any.

        `last` holds the tables of the last execution.
        """
        manifest = self._manifest_if_whole(node, table)
        state = {"manifest": manifest, "shards": [task.key for task in node.tasks]}
        was = last.get(node.instance, {}).get(table, {})
        before = was.get("manifest") or was.get("before")
        return state | ({"before": before} if manifest is None and before is not None else {})

    def _save(self) -> None:
        """Writes `run.json`, and the catalog where no older one is to be kept."""
        self.folder.write_record(self.record)
        if not self._keeps_catalog:
            self.folder.rebuild_catalog(self.store, self.record)

    def _manifest(
        self, node: Node, table: str, shards: list[ShardRecord], seconds: float
    ) -> Manifest:
        """The manifest of one table of a stage, with the facts of its shards added up."""
        model = node.stage.model_ref
        inputs = dict(node.inputs)
        if node.pinned is not None and "label" in inputs:
            inputs["label"] = str(node.pinned["labels"])
        return Manifest(
            table=table,
            stage=stage_name(node.stage),
            version=node.stage.version,
            fields=node.fields,
            inputs=inputs,
            shards=tuple(dataclasses.replace(s, details={}) for s in shards),
            details=together(s.details for s in shards),
            model=model.path if model is not None else None,
            revision=node.fields.get("model", {}).get("fingerprint") if model else None,
            seed=node.stage.seed,
            threads=self.plan.run.resources(node.instance).cpus,
            packages={name: package_version(name) for name in PACKAGES},
            seconds=seconds,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def last_record(folder: RunFolder, store: Store) -> dict[str, Any]:
    """The record of the folder's last execution in this store; empty where there is none."""
    with suppress(RunFolderError):
        record = folder.read_record()
        return record if folder.store(record).url == store.url else {}
    return {}


def _last_record(folder: RunFolder) -> dict[str, Any]:
    """The record of the folder's last execution; empty where there is none, or it is damaged."""
    try:
        return folder.read_record()
    except RunFolderError as error:
        if folder.record.exists():
            LOG.warning("written anew: %s", error)
        return {}


def _bytes_of(shard: ShardRecord) -> tuple[int, str]:
    """Size and hash of a shard's file."""
    return shard.bytes, shard.sha256


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether every table in the record of a run has a manifest."""
    return all(
        state["manifest"] for tables in record["tables"].values() for state in tables.values()
    )


def _pins(plan: Plan) -> dict[str, Any]:
    """The artefacts of the plan, by stage instance, each with its key and its labels' key."""
    return {node.instance: dict(node.pinned) for node in plan.nodes if node.pinned is not None}
