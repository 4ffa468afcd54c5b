"""The size of a corpus, by which stages choose what their fields leave open.

What decides the features of all rows is chosen by the number of rows at first, so that rows that
are appended do not change those that are there. Up to `SMALL` rows nothing depends on it. Beyond, a
note in the store keeps it; before there was one, the earlier readings of the corpus tell it.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from pipeline.corpus import Corpus
from stages.corpus.yaml_value import in_yaml
from stages.stage import Size, Stage
from storage.manifest import Manifest
from storage.table import Store

SMALL = 5_000
"""Rows up to which what depends on the first size is the same."""
NOTES = ".sizes"
"""Folder of the store with a note for each corpus, named by the key of its first shard."""


def size_of(corpus: Corpus, store: Store, is_dry: bool = True) -> Size:
    """The size of `corpus`; unless `is_dry`, the store keeps how many examples it had at first."""
    n_examples = corpus.rows("text", "example")
    lengths = {
        name: manifest.vector_length
        for name, manifest in corpus.tables.items()
        if manifest.vector_length is not None
    }
    return Size(
        n_examples=n_examples,
        first_examples=_first_examples(corpus, n_examples, store, is_dry),
        n_queries=corpus.rows("text", "query"),
        n_classes=len(corpus.classes),
        lengths=lengths,
        task=corpus.task,
    )


def choice_notes(stages: Mapping[str, Stage], resized: Mapping[str, Stage]) -> Iterator[str]:
    """Sentences about stages whose choice would be another one today.

    `resized` are the stages as a corpus that is read for the first time would have them.
    """
    for instance, stage in stages.items():
        other = resized.get(instance, stage)
        for f in dataclasses.fields(stage):
            kept, new = getattr(stage, f.name), getattr(other, f.name, None)
            if type(other) is type(stage) and kept != new:
                yield (
                    f"{instance} keeps {f.name}: {in_yaml(kept)}, chosen when the corpus was "
                    f"smaller, so that its rows stay as they are; {in_yaml(new)} would now be "
                    f"chosen. Set stages.{instance}.{f.name} to compute all rows anew."
                )


def _first_examples(corpus: Corpus, n_examples: int, store: Store, is_dry: bool) -> int:
    """How many examples the corpus had when it was first read into the store."""
    key = _first_shard(corpus.tables["text"])
    if n_examples <= SMALL or key is None:
        return n_examples
    note = store.read_note(NOTES, key)
    if note is not None:
        return min(n_examples, int(note["first_examples"]))
    earlier = [m for m in store.earlier_manifests("text") if _first_shard(m) == key]
    counts = [sum(s.rows for s in m.shards if s.role == "example") for m in earlier]
    first = min([n_examples, *counts])
    if not is_dry:
        store.write_note(NOTES, key, {"first_examples": first})
    return first


def _first_shard(manifest: Manifest) -> str | None:
    """Key of a table's first shard of examples."""
    return next((s.key for s in manifest.shards if s.role == "example"), None)
