"""How large the work of a plan's stages is, as far as it is known before anything is computed."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.corpus import SOMETIMES, Corpus
from pipeline.node import CORPUS_INSTANCE, Node
from pipeline.plan import Plan
from stages.stage import Work
from storage.manifest import ShardRecord
from storage.schema import FileError
from storage.table import Store

CHARACTERS_PER_TOKEN = 4.2
"""Of English text in the tokens of a language model."""
CELL_BYTES = 29
"""Of a row of the table `text` in memory, beside its texts: id, role, offsets."""
OFFSET_BYTES = 10
"""Of a row of the two columns of text alone, beside its texts."""


def work_of(corpus: Corpus, store: Store) -> Work:
    """The size of the work over a corpus; `dim` is 0, see `of_stage`.

    Texts that lie in the store are looked at in one shard of each role; of others the reading knew
    how many bytes they have.
    """
    text = corpus.tables["text"]
    n_characters = sum(
        _characters([s for s in text.shards if s.role == role], store)
        for role in ("example", "query")
    )
    return Work(
        n_examples=corpus.rows("label", "example"),
        n_queries=corpus.rows("text", "query"),
        n_tokens=round(n_characters / CHARACTERS_PER_TOKEN),
        n_classes=max(1, len(corpus.classes)),
        n_shards=sum(s.role == "example" for s in text.shards),
        dim=0,
    )


class TableSizes(NamedTuple):
    """What is known of the tables of every stage instance before any is computed."""

    lengths: dict[str, int]
    """Length of the vectors that they are made of; 0 where there are none. A table without vectors
    of its own, such as logits, stands for those that it was made of."""
    shares: dict[str, float]
    """Share of the examples that they have rows of; less than 1 behind a choice of rows."""


def of_stage(work: Work, node: Node, sizes: TableSizes) -> Work:
    """The work of one stage: the examples that it reads, and as `dim` the longest vectors.

    Those that it reads or writes.
    """
    share = _share(node, sizes.shares)
    rows = work.n_examples + work.n_queries
    n_examples = round(share * work.n_examples)
    return dataclasses.replace(
        work,
        n_examples=n_examples,
        n_tokens=round(work.n_tokens * (n_examples + work.n_queries) / max(1, rows)),
        dim=_longest(node, sizes.lengths),
    )


def table_sizes(plan: Plan, work: Work) -> TableSizes:
    """The sizes of the tables of all instances of a plan; `work` is that over the corpus."""
    tables = plan.corpus.tables
    known = [tables[name].vector_length or 0 for name in SOMETIMES & set(tables)]
    sizes = TableSizes({CORPUS_INSTANCE: max(known, default=0)}, {CORPUS_INSTANCE: 1.0})
    for node in plan.nodes:
        written = node.stage.feature_dim or node.stage.cost(of_stage(work, node, sizes))
        sizes.lengths[node.instance] = (
            written if isinstance(written, int) else written.vector_length
        ) or _longest(node, sizes.lengths)
        sizes.shares[node.instance] = _share(node, sizes.shares) * node.stage.chosen_share
    return sizes


def _share(node: Node, shares: Mapping[str, float]) -> float:
    """Share of the examples of which a stage has all that it reads."""
    return min((shares[instance] for instance, _ in node.reads.values()), default=1.0)


def _longest(node: Node, lengths: Mapping[str, int]) -> int:
    """The longest vectors that a stage reads or writes."""
    found: list[int] = [node.stage.feature_dim or 0]
    for instance, table in node.reads.values():
        if instance != CORPUS_INSTANCE or table in SOMETIMES:
            found.append(lengths[instance])
    return max(found)


def _characters(shards: Iterable[ShardRecord], store: Store) -> float:
    """About how many characters the texts of some shards have together."""
    shards = list(shards)
    n_rows = sum(shard.rows for shard in shards)
    stored = [shard for shard in shards if shard.sha256 and shard.rows]
    if not stored:
        return max(0, sum(shard.bytes for shard in shards) - CELL_BYTES * n_rows)
    looked_at = stored[len(stored) // 2]
    try:
        rows = store.read_shard("text", looked_at.key, ["text", "text_b"], looked_at)
    except FileError:
        # `plan` reads on where `run` would compute the shard again.
        return 2 * sum(shard.bytes for shard in shards)
    return float(rows.nbytes / rows.num_rows - OFFSET_BYTES) * n_rows
