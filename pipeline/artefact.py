"""Which artefact a stage uses: artefacts, such as a probe, are fitted once and then kept.

An artefact is part of the key of every feature that is computed with it, so fitting it anew makes
all of them stale. It therefore stays within one lineage, while the corpus that it was fitted on
lives on: correcting labels or appending rows recomputes no feature. A lineage is

- the executions of one run folder: the artefact that the last one used (`artefacts:` of its
  resolved configuration) is used again, where the store is the same;
- the runs that `assay apply` makes of one another: each begins from the configuration of the run
  that was reviewed, which pins the artefact.

Any other run fits its own, whatever a shared store holds: two runs over one corpus may differ in
their labels, and scores by a probe that was fitted on the other's would be wrong. Where the labels
are the same, so is the artefact's key. Within a lineage, too, it is fitted anew where the labels
answer another question, say because the classes are others.
"""

import dataclasses
import logging
from collections.abc import Mapping

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
    """The node with the artefact that it uses: pinned, that of the last execution, or a new one.

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
    if last is None or last == fresh.tasks[0].key:
        return fresh, None
    fitted_on = _labels_of(last, node, planned, corpus, store)
    if fitted_on is None:
        return fresh, None
    return _pinned(node, last, fitted_on), _kept_note(node.instance, last)


def _kept_note(instance: str, key: str) -> str:
    return (
        f"{instance} {key} is kept: it was fitted on an earlier state of this corpus and its "
        f"labels. Set artefacts.{instance}=refit to fit it anew."
    )


def _pinned(node: Node, key: str, labels: str) -> Node:
    """The node with the artefact `key`, which was fitted on the labels of the key `labels`."""
    task = Task(node.tasks[0].part, key)
    return dataclasses.replace(node, tasks=(task,), pinned={"key": key, "labels": labels})


def _labels_of(
    key: str, node: Node, planned: Mapping[str, Node], corpus: Corpus, store: Store
) -> str | None:
    """Key of the labels that the artefact `key` was fitted on; None where it cannot be used again.

    It can where it is in the store, of the node's stage and fields, the labels answer the same
    question, and at least half of the features that it was fitted on are this corpus's.
    """
    table = node.stage.writes[0].name
    manifest_key = _pinned(node, key, "").manifest_key(table)
    # Where the shard is gone, the manifest says what it was fitted on, and it is fitted again.
    manifest = readable(store, table, manifest_key)
    if manifest is None or not node.has_made(manifest):
        return None
    fitted_on = manifest.inputs.get("label", "")
    if not _same_label_question(fitted_on, corpus, store):
        return None
    for read, source in node.reads.items():
        keys = {shard_key for _, _, shard_key in shards_of(source, planned, corpus)}
        if read != "label" and _overlap(manifest, read, keys, source[1], store) < 0.5:
            return None
    return fitted_on


def _same_label_question(fitted_on: str, corpus: Corpus, store: Store) -> bool:
    """Whether an artefact's labels have the column, classes and planted flips of the corpus's.

    Corrected labels have; `fitted_on` is the manifest key of the artefact's labels.
    """
    manifest = readable(store, "label", fitted_on)
    if manifest is None:
        return False
    before, now = manifest.details, corpus.tables["label"].details
    return all(before.get(name) == now.get(name) for name in ("classes", "column", "flip_labels"))


def readable(store: Store, table: str, key: str | None) -> Manifest | None:
    """A manifest; None where there is none of that key in the store, or it is damaged."""
    try:
        if key is not None and store.has_manifest(table, key):
            return store.read_manifest(table, key)
    except FileError as error:
        LOG.warning("left out: %s", error)
    return None


def _overlap(manifest: Manifest, read: str, keys: set[str], table: str, store: Store) -> float:
    """Share of the artefact's rows in the table `read` that lie in the corpus's shards `keys`."""
    key = manifest.inputs.get(read)
    before = readable(store, table, key)
    if before is None:
        return 0.0
    shards = [s for s in before.shards if s.role != "query"]
    rows = sum(s.rows for s in shards)
    return sum(s.rows for s in shards if s.key in keys) / rows if rows else 0.0
