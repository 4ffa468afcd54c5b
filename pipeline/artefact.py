"""Which artefact a stage uses: artefacts, such as a probe, are fitted once and then kept.

An artefact is part of the key of every feature that is computed with it, so fitting it anew makes
all of them stale. It therefore stays while the corpus it was fitted on lives on: correcting labels
or appending rows recomputes no feature. Where the labels
answer another question, say because the classes are others, it is fitted anew.
"""

import dataclasses
import logging
from collections.abc import Mapping

from pipeline.config import stage_name
from pipeline.corpus import Corpus
from pipeline.errors import ConfigFileError, RunError
from pipeline.node import Node, Task, shards_of
from pipeline.settings import Run
from storage.manifest import Manifest
from storage.schema import FileError
from storage.table import Store

LOG = logging.getLogger(__name__)


def choose_artefact(
    node: Node,
    run: Run,
    planned: Mapping[str, Node],
    corpus: Corpus,
    store: Store,
    last: str | None,
) -> tuple[Node, str | None]:
    """The node with the artefact that it uses: pinned, found in the store, or to be fitted.

    The second value is a sentence for the user where an earlier artefact is kept, else None.

    Args:
        node: A stage that fits an artefact (`Stage.is_kept`), in one task.
        run: Holds what the user wrote under `artefacts:`.
        planned: The nodes that come before, by instance.
        corpus: The corpus as it stands.
        store: Holds earlier artefacts.
        last: Key of the artefact that the run used the last time.

    Raises:
        RunError: a pinned artefact is not in the store, or does not fit the labels.
        ConfigFileError: the entry under `artefacts:` is neither `refit` nor a pin.
    """
    labels = corpus.tables["label"].key
    requested = run.artefacts.get(node.instance)
    fresh = dataclasses.replace(
        node, pinned={"key": node.tasks[0].key, "labels": node.inputs.get("label", labels)}
    )
    table = node.stage.writes[0].name
    if requested == "refit":
        return fresh, None
    if isinstance(requested, Mapping) and {"key", "labels"} <= set(requested):
        key = str(requested["key"])
        if key == fresh.tasks[0].key:
            return fresh, None
        labels = str(requested["labels"])
        listed = store.has_manifest(table, _pinned(node, key, labels).manifest_key(table))
        if key not in store.shard_keys(table) and not listed:
            raise RunError(
                f"artefacts.{node.instance}: found no artefact {key} in {store.url}, expected the "
                f"one this run was pinned to (fitted on labels {labels}). Use the store that holds "
                f"it, or set artefacts.{node.instance}=refit ({node.instance}: refit) to fit a new "
                "one."
            )
        if not _same_label_question(labels, corpus, store):
            raise RunError(
                f"artefacts.{node.instance}: found {key}, which was fitted on other classes or "
                f"another label column, expected one for {', '.join(corpus.classes)}. Set "
                f"artefacts.{node.instance}=refit to fit a new one."
            )
        return _pinned(node, key, labels), _kept_note(node.instance, key)
    if requested is not None:
        raise ConfigFileError(
            f"artefacts.{node.instance}: found {requested!r}, expected `refit` or a mapping with "
            "key and labels. Remove the entry to keep the artefact that is there."
        )
    earlier = _fitted_before(node, planned, corpus, store, last)
    if earlier is None or earlier[0] == fresh.tasks[0].key:
        return fresh, None
    key, fitted_on = earlier
    if key != last and fresh.tasks[0].key in store.shard_keys(table):
        return fresh, None
    return _pinned(node, key, fitted_on), _kept_note(node.instance, key)


def _kept_note(instance: str, key: str) -> str:
    return (
        f"{instance} {key} is kept: it was fitted on an earlier state of this corpus and its "
        f"labels. Set artefacts.{instance}=refit to fit it anew."
    )


def _pinned(node: Node, key: str, labels: str) -> Node:
    """The node with the artefact `key`, which was fitted on the labels of the key `labels`."""
    task = Task(node.tasks[0].part, key)
    return dataclasses.replace(node, tasks=(task,), pinned={"key": key, "labels": labels})


def _fitted_before(
    node: Node, planned: Mapping[str, Node], corpus: Corpus, store: Store, last: str | None
) -> tuple[str, str] | None:
    """Keys of the best earlier artefact of the node's stage and fields, and of its labels.

    That is `last`, or else the one whose labels share most shards with the corpus's, the newest of
    equals. At least half of the features that it was fitted on must be this corpus's.
    """
    name, table = stage_name(node.stage), node.stage.writes[0].name
    shard_sets = {
        read: {key for _, _, key in shards_of(source, planned, corpus)}
        for read, source in node.reads.items()
        if read != "label"
    }
    labels = {shard.key for shard in corpus.tables["label"].shards}
    best: tuple[int, str, str] | None = None
    for manifest in store.earlier_manifests(table):
        if (manifest.stage, manifest.version) != (name, node.stage.version):
            continue
        if dict(manifest.fields) != dict(node.fields):
            continue
        fitted_on = manifest.inputs.get("label", "")
        if not _same_label_question(fitted_on, corpus, store):
            continue
        if all(
            _overlap(manifest, read, keys, node.reads[read][1], store) >= 0.5
            for read, keys in shard_sets.items()
        ):
            key = manifest.shards[0].key
            if key == last:
                return key, fitted_on
            before = _readable(store, "label", fitted_on)
            common = len(labels & {shard.key for shard in before.shards}) if before else 0
            if best is None or common > best[0]:
                best = common, key, fitted_on
    return best[1:] if best is not None else None


def _same_label_question(fitted_on: str, corpus: Corpus, store: Store) -> bool:
    """Whether an artefact's labels have the column, classes and planted flips of the corpus's.

    Corrected labels have; `fitted_on` is the manifest key of the artefact's labels.
    """
    manifest = _readable(store, "label", fitted_on)
    if manifest is None:
        return False
    before, now = manifest.details, corpus.tables["label"].details
    return all(before.get(name) == now.get(name) for name in ("classes", "column", "flip_labels"))


def _readable(store: Store, table: str, key: str) -> Manifest | None:
    """A manifest; None where it is not in the store, or damaged."""
    try:
        return store.read_manifest(table, key) if store.has_manifest(table, key) else None
    except FileError as error:
        LOG.warning("left out: %s", error)
        return None


def _overlap(manifest: Manifest, read: str, keys: set[str], table: str, store: Store) -> float:
    """Share of the artefact's rows in the table `read` that lie in the corpus's shards `keys`."""
    key = manifest.inputs.get(read)
    before = _readable(store, table, key) if key is not None else None
    if before is None:
        return 0.0
    shards = [s for s in before.shards if s.role != "query"]
    rows = sum(s.rows for s in shards)
    return sum(s.rows for s in shards if s.key in keys) / rows if rows else 0.0
