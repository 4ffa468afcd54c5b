"""Why tasks must run: what is other than when the tables of their stage were last whole.

A task is compared with the manifest that the run's last execution left of its stage or, where it
left none, with an earlier one of the same stage in the store, over a corpus that shares shards with
this one. What differs first, in the order of `Kind`, is the task's reason; tasks whose key is the
one that it was then have lost their shard.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from pipeline.config import stage_name
from pipeline.node import CORPUS_INSTANCE, Node, Task, shards_of
from pipeline.plan import Plan
from stages.capabilities import Merges
from storage.manifest import Manifest, ShardRecord
from storage.schema import FileError
from storage.table import Store

EARLIER = 20
"""Manifests of a table that are looked at, newest first, where the run itself has none."""
WIDTH = 32
"""Characters of a setting's value that are shown."""
CHANGED = {"text": "text changed", "label": "label corrected", "features": "vectors changed"}
"""What happened to a shard of a corpus table that has as many rows as before, but not the same."""
OF_LABELS = {"classes": "corpus.classes", "column": "corpus.label", "flip_labels": "flip_labels"}
"""Details of the table `label` that settings decide, and what these are called."""


class Kind(enum.IntEnum):
    """Kinds of reasons; where a task has several, the first counts."""

    NOTHING_BEFORE = enum.auto()
    VERSION = enum.auto()
    MODEL = enum.auto()
    SETTINGS = enum.auto()
    NEW_ROWS = enum.auto()
    CHANGED_ROWS = enum.auto()
    REMOVED_ROWS = enum.auto()
    READS = enum.auto()
    ROUNDS = enum.auto()
    COLUMNS = enum.auto()

    @property
    def is_of_rows(self) -> bool:
        """Whether rows of the corpus are the reason: readers of the same shards then share it."""
        return Kind.NEW_ROWS <= self <= Kind.REMOVED_ROWS


class Reason(NamedTuple):
    """Why a shard has another key than before."""

    kind: Kind
    phrase: str


NOTHING_BEFORE = Reason(Kind.NOTHING_BEFORE, "nothing before")
NEW_ROWS = Reason(Kind.NEW_ROWS, "new rows")
REMOVED_ROWS = Reason(Kind.REMOVED_ROWS, "rows removed")
MORE_ROUNDS = Reason(Kind.ROUNDS, "more rounds")
OTHER_COLUMNS = Reason(Kind.COLUMNS, "other columns are written")
LOST = "damaged or removed"
UNFINISHED = "not finished before"


def reasons_to_run(
    plan: Plan, store: Store, record: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """By stage instance with tasks to run: how many for each reason, most frequent first.

    `record` is that of the last execution of the run (`run.json`), empty where there was none.
    """
    history = _History(plan, store, record.get("tables", {}))
    counts = {node.instance: history.counts(node) for node in plan.nodes if node.missing}
    return {instance: dict(Counter(found).most_common()) for instance, found in counts.items()}


class _History:
    """What the tables of a plan's stages were computed from the last time."""

    def __init__(self, plan: Plan, store: Store, recorded: Mapping[str, Any]):
        self._nodes = {node.instance: node for node in plan.nodes}
        self._corpus, self._store, self._recorded = plan.corpus, store, recorded
        self._before: dict[str, Manifest | None] = {}
        self._found: dict[tuple[str, str], Reason | None] = {}
        self._of_source: dict[tuple[str, str], dict[tuple[str, int], tuple[str, int, str]]] = {}
        self._of_instance: dict[str, dict[str, Task]] = {}
        self._listed: dict[int, tuple[Manifest, frozenset[str]]] = {}
        self._cuts: dict[int, dict[str, Reason]] = {}
        self._whole: dict[tuple[str, str, tuple[str, ...] | None], Reason | None] = {}

    def counts(self, node: Node) -> Iterator[str]:
        """The reason of every task of a stage that must run."""
        for task in node.missing:
            state = self._recorded.get(node.instance, {}).get(node.stage.writes[0].name, {})
            if task.key in state.get("shards", ()):
                yield LOST if state["manifest"] else UNFINISHED
                continue
            reason = self.of(node, task)
            yield reason.phrase if reason is not None else LOST

    def of(self, node: Node, task: Task) -> Reason | None:
        """Why a task has another key than before; None where it has not."""
        place = (node.instance, task.key)
        if place not in self._found:
            self._found[place] = self._reason(node, task)
        return self._found[place]

    def _reason(self, node: Node, task: Task) -> Reason | None:
        before = self.before(node)
        if before is None:
            return NOTHING_BEFORE
        if task.key in self._keys(before):
            return None
        own = _of_recipe(node, before)
        if own is not None:
            return own
        if task.parts:
            below = self._tasks(node.instance)
            of_parts = _first(self.of(node, below[key]) for key in task.parts)
            return of_parts or _first(self._of_whole(node, read, None) for read in node.reads)
        reason = _first(self._of_read(node, read, task) for read in node.reads)
        if reason is None and node.stage.split == "round":
            return MORE_ROUNDS
        # Of a tree of merges the manifest lists the root alone.
        return reason if reason or isinstance(node.stage, Merges) else OTHER_COLUMNS

    def before(self, node: Node) -> Manifest | None:
        """The manifest of the node's first table that its tasks are compared with, if there is."""
        if node.instance not in self._before:
            self._before[node.instance] = self._manifest_before(node)
        return self._before[node.instance]

    def _manifest_before(self, node: Node) -> Manifest | None:
        table, stage = node.stage.writes[0].name, stage_name(node.stage)
        key = self._recorded.get(node.instance, {}).get(table, {}).get("manifest")
        recorded = self._readable(table, key)
        if recorded is not None and recorded.stage == stage:
            return recorded
        found = [m for m in self._store.earlier_manifests(table, EARLIER) if m.stage == stage]
        found = [m for m in found if not node.reads or self._shared(node, m)]
        # Newest first: the largest of several that are equal is the newest.
        return max(
            found,
            key=lambda m: (_of_recipe(node, m) is None, self._shared(node, m)),
            default=None,
        )

    def _shared(self, node: Node, before: Manifest) -> int:
        """How many shards of the corpus a table was computed from that this corpus has, too."""
        n_shared = 0
        for read, (instance, table) in node.reads.items():
            manifest = self._readable(table, before.inputs.get(read))
            if manifest is None:
                continue
            if instance == CORPUS_INSTANCE:
                now = {shard.key for shard in self._corpus.tables[table].shards}
                n_shared += sum(shard.key in now for shard in manifest.shards)
            else:
                n_shared += self._shared(self._nodes[instance], manifest)
        return n_shared

    def _of_read(self, node: Node, read: str, task: Task) -> Reason | None:
        """Why what a task reads under a name is other than before."""
        stage, part = node.stage, task.part
        shards = self._shards(node.reads[read])
        span = range(part.index, part.index + part.n_shards)
        own = [shards[part.role, n] for n in span if (part.role, n) in shards]
        if stage.split in ("whole", "round") or not own:
            return self._of_whole(node, read, None)
        of_part = _first(self._of_shard(node, read, shard) for shard in own)
        opens = ("example",) if stage.split == "query" else stage.opens
        return _first([of_part, self._of_whole(node, read, opens) if opens else None])

    def _of_whole(self, node: Node, read: str, roles: tuple[str, ...] | None) -> Reason | None:
        """Why the shards of a table that is read, of all roles or some, are others than before."""
        place = (node.instance, read, roles)
        if place not in self._whole:
            of_roles = [
                shard
                for shard in self._shards(node.reads[read]).values()
                if roles is None or shard[0] in roles
            ]
            reason = _first(self._of_shard(node, read, shard) for shard in of_roles)
            if reason is None and (before := self._read_before(node, read)) is not None:
                now = {key for _, _, key in of_roles}
                gone = [s for s in before.shards if roles is None or s.role in roles]
                if any(shard.key not in now for shard in gone):
                    reason = REMOVED_ROWS if gone[0].role else self._by_reading(node, read)
            self._whole[place] = reason
        return self._whole[place]

    def _of_shard(self, node: Node, read: str, shard: tuple[str, int, str]) -> Reason | None:
        """Why a shard of a table that is read is none of those that were read before."""
        instance, table = node.reads[read]
        before = self._read_before(node, read)
        if before is None:
            return self._by_reading(node, read)
        if shard[2] in self._keys(before):
            return None
        if instance == CORPUS_INSTANCE:
            return self._of_cut(table, before)[shard[2]]
        writer = self._nodes[instance]
        reason = self.of(writer, self._tasks(instance)[shard[2]])
        is_by_shard = writer.stage.split == "shard" and not isinstance(writer.stage, Merges)
        if is_by_shard and reason is not None and reason.kind.is_of_rows:
            return reason
        return self._by_reading(node, read)

    def _of_cut(self, table: str, before: Manifest) -> dict[str, Reason]:
        """By key, why shards of a corpus table are none of those of an earlier state of it."""
        if id(before) not in self._cuts:
            self._cuts[id(before)] = _changes(self._corpus.tables[table], before)
        return self._cuts[id(before)]

    def _by_reading(self, node: Node, read: str) -> Reason:
        instance, table = node.reads[read]
        writer = self._nodes.get(instance)
        again = "is computed again" if writer is not None and writer.missing else "changed"
        return Reason(Kind.READS, f"reads {read if writer else table}, which {again}")

    def _read_before(self, node: Node, read: str) -> Manifest | None:
        """What the node's table was computed from the last time under a name."""
        before = self.before(node)
        key = before.inputs.get(read) if before is not None else None
        return self._readable(node.reads[read][1], key)

    def _shards(self, source: tuple[str, str]) -> dict[tuple[str, int], tuple[str, int, str]]:
        """Role, index and key of the shards of a table, by the first two."""
        if source not in self._of_source:
            shards = shards_of(source, self._nodes, self._corpus)
            self._of_source[source] = {(role, n): (role, n, key) for role, n, key in shards}
        return self._of_source[source]

    def _keys(self, manifest: Manifest) -> frozenset[str]:
        """Keys of the shards that a manifest lists; the store keeps manifests that were read."""
        if id(manifest) not in self._listed:
            keys = frozenset(shard.key for shard in manifest.shards)
            self._listed[id(manifest)] = (manifest, keys)
        return self._listed[id(manifest)][1]

    def _tasks(self, instance: str) -> dict[str, Task]:
        """The tasks of a stage by key."""
        if instance not in self._of_instance:
            self._of_instance[instance] = {t.key: t for t in self._nodes[instance].tasks}
        return self._of_instance[instance]

    def _readable(self, table: str, key: str | None) -> Manifest | None:
        """A manifest; None where there is none of that key, or it is damaged."""
        with suppress(FileError):
            if key is not None and self._store.has_manifest(table, key):
                return self._store.read_manifest(table, key)
        return None


def _first(reasons: Iterable[Reason | None]) -> Reason | None:
    """The reason that counts of several."""
    return min((reason for reason in reasons if reason is not None), default=None)


def _of_recipe(node: Node, before: Manifest) -> Reason | None:
    """What is other than before in a stage itself."""
    version = node.stage.version
    if before.version != version:
        return Reason(Kind.VERSION, f"stage version ({before.version} -> {version})")
    if dict(before.fields) == dict(node.fields):
        return None
    was, now = _leaves(before.fields), _leaves(node.fields)
    differing = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if any(name.endswith("fingerprint") for name in differing):
        path = node.stage.model_ref.path if node.stage.model_ref is not None else before.model
        other = f" ({_short(before.model)} -> {_short(path)})" if before.model != path else ""
        return Reason(Kind.MODEL, f"model changed{other}")
    return _of_settings(differing, was, now)


def _changes(now: Manifest, before: Manifest) -> dict[str, Reason]:
    """By key, why each shard of a corpus table that is not in `before` is another.

    Cuts keep the order of earlier shards (`storage.shards.cut`), so what stands between the same
    two shards that remain is the same rows, changed.
    """
    settings = _of_corpus_settings(now, before)
    kept, reasons = {shard.key for shard in now.shards}, {}
    for role in dict.fromkeys(shard.role for shard in now.shards):
        earlier = [shard for shard in before.shards if shard.role == role]
        places = {shard.key: n for n, shard in enumerate(earlier)}
        following = 0
        for shard in (s for s in now.shards if s.role == role):
            if shard.key in places:
                following = places[shard.key] + 1
                continue
            was = earlier[following] if following < len(earlier) else None
            if was is None or was.key in kept:
                reasons[shard.key] = settings or NEW_ROWS
                continue
            following += 1
            reasons[shard.key] = settings or _of_rows(now.table, shard, was)
    return reasons


def _of_rows(table: str, now: ShardRecord, was: ShardRecord) -> Reason:
    if now.rows != was.rows:
        return NEW_ROWS if now.rows > was.rows else REMOVED_ROWS
    return Reason(Kind.CHANGED_ROWS, CHANGED.get(table, f"{table} changed"))


def _of_corpus_settings(now: Manifest, before: Manifest) -> Reason | None:
    """The settings of the corpus that cut or label its rows otherwise than before."""
    was, is_now = dict(before.fields), dict(now.fields)
    if now.table == "label":
        was |= {name: before.details.get(detail) for detail, name in OF_LABELS.items()}
        is_now |= {name: now.details.get(detail) for detail, name in OF_LABELS.items()}
    differing = [name for name in {**was, **is_now} if was.get(name) != is_now.get(name)]
    return _of_settings(differing, was, is_now) if differing else None


def _of_settings(names: Sequence[str], was: Mapping[str, Any], now: Mapping[str, Any]) -> Reason:
    told = [f"{name}: {_short(was.get(name))} -> {_short(now.get(name))}" for name in names[:2]]
    told += [f"{len(names) - 2} more"] if len(names) > 2 else []
    return Reason(Kind.SETTINGS, f"settings changed ({', '.join(told)})")


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their path, such as `projection.dim`."""
    leaves: dict[str, Any] = {}
    for name, value in fields.items():
        inner = isinstance(value, Mapping)
        leaves |= _leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return leaves


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
