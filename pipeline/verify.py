"""Whether the files of a run are what was written: compared, removed, computed again.

`assay run` compares sizes, hashes up to `LOOKED_AT_BYTES` of a local store, and every byte that its
tasks read. What is damaged is removed, and the run is planned anew: it computes exactly that again.
`assay verify` compares every byte, and the key of every shard with what it was computed from.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import stage_name
from pipeline.corpus import CORPUS, NOTES, Corpus
from pipeline.errors import RunError
from pipeline.finished import Finished
from pipeline.folder import REMOVED, RunFolder
from pipeline.node import CORPUS_INSTANCE, Node
from pipeline.plan import Plan, sources, tasks_of
from pipeline.progress import Progress
from storage.damage import Claim, Damage, DamagedFiles, Examination
from storage.feature_map import map_fault, map_place, remove_map
from storage.manifest import Manifest
from storage.schema import FileError, StorageError
from storage.table import Store
from storage.views import SUMS

LOG = logging.getLogger(__name__)
LOOKED_AT_BYTES = 256 << 20
"""Of a local store, `assay run` hashes this much of what is done already: a fraction of a second.
An object store answers for its own bytes, and would take as many requests as there are shards."""
SHOWN = 20
WRONG_KEY = "a key that does not follow from its inputs"


def claims_of(plan: Plan) -> list[Claim]:
    """The files that a plan takes for done."""
    claims = _claims_of_corpus(plan.corpus.tables)
    for node in plan.nodes:
        keys = tuple(task.key for task in node.tasks)
        for spec in node.stage.writes:
            claims.append(Claim(spec.name, node.manifest_key(spec.name), keys))
    return claims


def _claims_of_corpus(tables: Mapping[str, Manifest]) -> list[Claim]:
    return [
        Claim(table, manifest.key, tuple(s.key for s in manifest.shards))
        for table, manifest in tables.items()
    ]


def claims_of_record(record: Mapping[str, Any]) -> list[Claim]:
    """The files that the record of a run names."""
    return [
        Claim(table, state["manifest"], tuple(state["shards"]))
        for tables in record["tables"].values()
        for table, state in tables.items()
    ]


def look_at(claims: list[Claim], store: Store) -> None:
    """The quick look of a run at the files of claims.

    Raises:
        DamagedFiles: one is damaged, or gone.
    """
    if gone := _gone_manifests(claims, store):
        raise DamagedFiles(gone)
    Look(store, ()).at(claims)


def _gone_manifests(claims: Iterable[Claim], store: Store) -> list[Damage]:
    return [
        Damage(claim.table, f"{claim.manifest}.json", "gone")
        for claim in claims
        if claim.manifest is not None and not store.has_manifest(claim.table, claim.manifest)
    ]


class Look:
    """A quick look, before anything is computed, at the files that a run takes for done."""

    def __init__(self, store: Store, seen: Container[tuple[str, str]]):
        """Looks at nothing yet; `seen` are files that were found damaged and are missing now."""
        self._seen = seen
        self._examination = Examination(store, LOOKED_AT_BYTES if store.is_local else 0)

    def at_corpus(self, tables: Mapping[str, Manifest]) -> None:
        """Raises DamagedFiles for what is wrong with these tables of the corpus."""
        self.at(_claims_of_corpus(tables))

    def at_plan(self, plan: Plan) -> None:
        """Raises DamagedFiles for what is wrong with the files of the plan's stages."""
        self.at([claim for claim in claims_of(plan) if claim.table not in CORPUS])

    def at_values(self, folder: RunFolder) -> None:
        """Raises DamagedFiles for what is wrong with the values that a run has summed."""
        with contextlib.suppress(RunError):  # a folder without a run, or with a damaged record
            states = folder.read_record()["tables"].values()
            values = [tables[SUMS] for tables in states if SUMS in tables]
            self.at([Claim(SUMS, v["manifest"], tuple(v["shards"])) for v in values])

    def at(self, claims: list[Claim]) -> None:
        """Raises DamagedFiles for what is wrong with the files of claims."""
        found = [damage for claim in claims for damage in self._examination.of(claim)]
        if new := [d for d in found if (d.table, d.name) not in self._seen]:
            raise DamagedFiles(new)


def drop_damaged_maps(plan: Plan, store: Store) -> list[str]:
    """Removes the damaged maps of this machine over a plan's tables, and says what was wrong.

    A quick look as at shards: large maps are compared when they are opened.
    """
    found = damaged_maps(claims_of(plan), store)
    for place in found:
        remove_map(place)
    return [f"the map {place} was damaged and is removed: {why}" for place, why in found.items()]


def damage_behind(error: BaseException, plan: Plan | None, store: Store) -> list[Damage]:
    """The files that an error is about, and others of that table of the plan; empty for none.

    Looks at the files again: an error is no proof, the bytes are.
    """
    if isinstance(error, DamagedFiles):
        return list(error.damages)
    file = _file_behind(error)
    if file is None:
        return []
    table, name = file
    store.refresh()
    key = name.partition(".")[0]
    claims = [c for c in claims_of(plan) if c.table == table] if plan is not None else []
    if name.endswith(".parquet"):
        claims += [Claim(table, m.key, ()) for m in _listing(table, key, store)]
        claims.append(Claim(table, None, (key,)))
    elif table != NOTES:
        claims.append(Claim(table, key, ()))
    found = [damage for claim in claims for damage in Examination(store).of(claim)]
    found += _damaged_note(name, store) if table == NOTES else []
    if name not in store.sizes(table):
        found.append(Damage(table, name, "gone"))
    return list({(d.table, d.name): d for d in found}.values())


def repair(damages: Iterable[Damage], store: Store) -> None:
    """Removes damaged files, and nothing else."""
    for damage in damages:
        store.remove(damage.table, damage.name)
        LOG.info("removed %s", damage)
    store.refresh()


def told(damages: list[Damage]) -> str:
    """A sentence about damaged files, with a line for each."""
    n_files = len(damages)
    lines = [f"  {damage}" for damage in damages[:SHOWN]]
    more = [f"  and {n_files - SHOWN} more"] if n_files > SHOWN else []
    files = "1 damaged file was" if n_files == 1 else f"{n_files} damaged files were"
    return "\n".join([f"{files} found and computed again:", *lines, *more])


def verify_run(
    path: Path, is_repair: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """What is damaged among the files of the run in the folder `path`, as plain values.

    Keys: run_id, store, n_files (compared), damaged (a list of file, what was found, and what was
    done: removed, written again or, as with one that is gone, None), is_repaired. Every
    byte of every shard and manifest is compared with its hash, every shard's key with what it was
    computed from, and every map of this machine with its checksums.

    Args:
        path: Folder of the run.
        is_repair: Removes what is damaged, so that `assay run` computes it again.
        progress: Hears how far it is.

    Raises:
        pipeline.errors.RunFolderError: the folder holds no run, or its record is damaged.
    """
    progress = progress or Progress()
    folder = RunFolder(path.expanduser().resolve())
    record = folder.read_record()
    store = folder.store(record)
    claims = claims_of_record(record)
    total = sum(len(claim.shards) for claim in claims)
    done = 0
    progress.stepped("verify", 0, total)

    def stepped() -> None:
        nonlocal done
        done += 1
        if done < total:
            progress.stepped("verify", done, total)

    examination = Examination(store, stepped=stepped)
    damages = _gone_manifests(claims, store)
    damages += [damage for claim in claims for damage in examination.of(claim)]
    progress.stepped("verify", total, total)
    damages += _wrong_keys(folder, store, {(d.table, d.name) for d in damages})
    damages = list({(d.table, d.name): d for d in damages}.values())
    in_folder = folder.faults(record)
    maps = damaged_maps(claims, store, None)
    mended: dict[str, str] = {}
    faults = {f"{d.table}/{d.name}": d.what for d in damages}
    faults |= {str(place): fault for place, fault in maps.items()}
    if is_repair:
        mended = {file: REMOVED for file, fault in faults.items() if fault != "gone"}
        repair([damage for damage in damages if damage.what != "gone"], store)
        for place in maps:
            remove_map(place)
        mended |= {str(file): what for file, what in folder.mend().items()}
    faults |= {str(file): fault for file, fault in in_folder.items()}
    found = [{"file": f, "found": what, "done": mended.get(f)} for f, what in faults.items()]
    return {
        "run_id": record["run_id"],
        "run": str(folder.path),
        "store": store.url,
        "n_files": total + sum(claim.manifest is not None for claim in claims),
        "damaged": found,
        "is_repaired": is_repair and bool(found),
    }


def _wrong_keys(folder: RunFolder, store: Store, known: set[tuple[str, str]]) -> list[Damage]:
    """The shards whose key does not follow from the recipe in their manifest and its inputs."""
    try:
        finished = Finished(folder)
        corpus = Corpus({t: finished.corpus(t) for t in CORPUS if finished.has(CORPUS_INSTANCE, t)})
    except (RunError, StorageError):
        return []  # a damaged table of the corpus is told of already
    planned: dict[str, Node] = {}
    found: list[Damage] = []
    for instance, stage in finished.stages.items():
        try:
            manifests = [finished.manifest(instance, spec.name) for spec in stage.writes]
        except (RunError, FileError):
            return found  # not computed yet, or damaged; what reads it has no key to compare
        node = _recomputed(instance, finished, manifests[0], planned, corpus)
        node = dataclasses.replace(node, tasks=tasks_of(node, planned, corpus))
        keys = [(s.role, s.index, s.key) for s in manifests[0].shards]
        is_of_this_version = (manifests[0].stage, manifests[0].version) == (
            stage_name(stage),
            stage.version,
        )
        is_older = stage.judges_rows and finished.run.old_rows == "kept"
        if is_of_this_version and not stage.is_kept and not is_older:
            expected = set(node.shards())
            for spec, manifest in zip(stage.writes, manifests, strict=True):
                found += [
                    Damage(spec.name, f"{s.key}.parquet", WRONG_KEY)
                    for s in manifest.shards
                    if (s.role, s.index, s.key) not in expected
                    and (spec.name, f"{s.key}.parquet") not in known
                ]
        task_of = {(t.part.role, t.part.index): t for t in node.tasks}
        kept = [task_of[role, i] for role, i, _ in keys if (role, i) in task_of]
        whole = [
            dataclasses.replace(task, key=key, parts=())
            for task, (_, _, key) in zip(kept, keys, strict=False)
        ]
        planned[instance] = dataclasses.replace(node, tasks=tuple(whole))
    return found


def _recomputed(
    instance: str,
    finished: Finished,
    manifest: Manifest,
    planned: dict[str, Node],
    corpus: Corpus,
) -> Node:
    """The node of a stage as its manifest describes it, without tasks."""
    stage = finished.stages[instance]
    reads = sources(instance, finished.stages)
    inputs = {
        read: corpus.tables[table].key
        if writer == CORPUS_INSTANCE
        else planned[writer].manifest_key(table)
        for read, (writer, table) in reads.items()
    }
    return Node(instance, stage, reads, manifest.fields, (), inputs)


def damaged_maps(
    claims: Iterable[Claim], store: Store, most_bytes: int | None = LOOKED_AT_BYTES
) -> dict[Path, str]:
    """The maps of this machine over the tables of claims that are not as written, and why.

    Those of tables of more than `most_bytes` are left out.
    """
    found = {}
    for claim in claims:
        if claim.manifest is None or not store.has_manifest(claim.table, claim.manifest):
            continue
        try:
            manifest = store.read_manifest(claim.table, claim.manifest)
        except FileError:
            continue
        if manifest.vector_length is None:
            continue
        for role in {shard.role for shard in manifest.shards}:
            place = map_place(manifest, role)
            if not place.exists() or (most_bytes is not None and manifest.bytes > most_bytes):
                continue
            if fault := map_fault(place):
                found[place] = fault
    return found


def _file_behind(error: BaseException) -> tuple[str, str] | None:
    """The file that an error, or one that it was raised from, is about."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        if isinstance(cause, FileError) and cause.file is not None:
            return cause.file
        # An error of a task on Ray holds the error of its worker as `cause`.
        waiting += [cause.__cause__, cause.__context__, getattr(cause, "cause", None)]
    return None


def _listing(table: str, key: str, store: Store) -> list[Manifest]:
    """The manifests of a table that list a shard."""
    return [m for m in store.earlier_manifests(table) if any(s.key == key for s in m.shards)]


def _damaged_note(name: str, store: Store) -> list[Damage]:
    """The note of a reading of a corpus, where it is damaged."""
    try:
        store.read_note(NOTES, name.removesuffix(".json"))
    except FileError:
        return [Damage(NOTES, name, "other content than was written")]
    return []
