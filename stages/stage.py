"""The contract between a method and the pipeline that runs it.

A stage is a frozen dataclass whose fields are its configuration. It reads named tables, writes
named tables, and computes rows for one *part* of its work at a time: one shard, one block of
queries, one Monte-Carlo round, or the whole. It opens no table file, starts no task, prints
nothing, reads no clock, and takes its randomness from a seed field and the part's number: the same
inputs give the same rows.

Sign, everywhere in assay: positive helps. A positive Shapley value raises the utility; a positive
score raises the measured output of the query's predicted class.

Errors of this room:

    StageError
      ConfigError      a field of a stage has a value it cannot work with
      DataError        the rows a stage was given cannot be used
      ModelError       a model, tokenizer or head cannot be loaded or does not fit
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from storage.schema import TableSpec

Role = Literal["example", "query"]
Split = Literal["shard", "query", "round", "whole"]
Steps = Callable[[int, int], None]
"""Told how many steps of how many are done; first of all that none is."""


class StageError(Exception):
    """A stage cannot do what it was asked to."""


class ConfigError(StageError):
    """A field of a stage or of the run has a value that cannot be used."""


class DataError(StageError):
    """The rows a stage was given cannot be used."""


class ModelError(StageError):
    """A model, tokenizer or head cannot be loaded, or does not fit the task."""


@dataclass(frozen=True)
class Part:
    """One piece of a stage's work: what a task is told, and nothing more.

    `role` and `index` name a shard (`split="shard"`), a block of queries (`"query"`: role "query",
    the shard's index) or a round (`"round"`: role "", the round's number); the whole is ("", 0).
    """

    role: str
    index: int


class Vectors(NamedTuple):
    """All rows of a vector column for one role, as read-only memory.

    `ids` has shape (rows,), int64, ascending by shard then id; `matrix` has shape (rows, dim) and
    is a memory map: indexing it reads only the rows that are touched.
    """

    ids: np.ndarray
    matrix: np.ndarray


@runtime_checkable
class Inputs(Protocol):
    """What a stage may see while it computes one part.

    `opened` is what the stage's `open` returned in this worker, None without one.
    """

    part: Part
    opened: Any

    def table(self, name: str, role: Role | None = None) -> pa.Table:
        """Rows of the table `name` that this part reads.

        For `split="shard"` the rows of the part's own shard (tables that are not cut into shards
        come whole); otherwise all rows, of one role if given. For `split="query"` the rows of the
        role "query" are those of the part's own block.
        """

    def vectors(self, name: str, role: Role) -> Vectors:
        """All vectors of the feature table `name` for one role, memory-mapped."""

    def details(self, name: str) -> Mapping[str, Any]:
        """Facts about the table `name` that its writer recorded, such as `classes` of `label`."""


@dataclass(frozen=True)
class Work:
    """How much there is to do, as far as it is known before anything is computed."""

    n_examples: int
    n_queries: int
    n_tokens: int
    """Tokens in all texts together, estimated from characters."""
    n_classes: int
    dim: int
    """Length of the feature vectors that are read or written."""
    n_shards: int = 1
    """Shards of examples."""


@dataclass(frozen=True)
class Cost:
    """What a stage expects to spend on all of its parts together."""

    forward_rows: int = 0
    backward_rows: int = 0
    flops: float = 0.0
    written_bytes: int = 0
    memory_bytes: int = 0
    """Peak of one task."""
    note: str = ""
    """A choice that follows from the size of the work, such as an algorithm."""


@runtime_checkable
class Stage(Protocol):
    """Reads named tables, writes named tables.

    Optional members that the pipeline looks for:

    - `open(inputs) -> Any`: loads what is worth loading once per worker (a model, a kernel).
    - `opens: ClassVar[tuple[Role, ...]]`: for `split="shard"`, the roles of which `open` reads the
      rows of every shard, so that each shard of the result depends on them all.
    - `outside_key: ClassVar[frozenset[str]]`: names of fields that do not change rows; a name such
      as `model.head` stands for one field of a field.
    - `is_kept: ClassVar[bool]`: the output is an artefact that is fitted once and then kept, also
      when the labels it was fitted on are corrected or rows are appended.
    - `tasks: ClassVar[tuple[str, ...]]`: the kinds of corpora it can work on (`task` of a source);
      all of them if it says nothing. Another one is refused before anything is computed.
    - `asks: Mapping[str, Mapping[str, Any]]`: the fields of a stage that the run does not name and
      that is added because this one reads it, by the name in `reads`; the defaults where it asks
      for nothing. Two readers that ask for different ones are refused.
    - `check_reads(writers: Mapping[str, Any]) -> None`: refuses, by a `ConfigError` and before
      anything is computed, stages whose tables it cannot work with. `writers` holds the stage
      behind each name in `reads`, but for tables of the corpus.
    - `rounds: int`: for `split="round"`, how many rounds are wanted; outside the key.
    - `watch() -> Watch | None`: for `split="round"`, who says when fewer are enough: it is given
      the first table's rows of each round in turn (`add`), and asked for the `reason` to stop
      (`stages.game.stopping.Watch`). The rounds that count are then those up to the first reason.
    - `details(inputs) -> Mapping[str, Any]`: facts for the manifests of the tables written, asked
      for after `compute`. Five keys have a meaning of their own and are added up over shards:
      `notices: list[str]` are sentences for the user, `n_not_finite` rows whose features could not
      be stored, `n_left_out` rows that another input of the shard lacks, `n_without_label` queries
      of a block that have no label, and `is_exact_bytes: False` exempts the shard from byte
      identity, say because memory ran out and batches were cut in another way.
    - `merge(parts: Mapping[str, Sequence[pa.Table]]) -> Iterator[tuple[str, pa.RecordBatch]]`:
      for `split="shard"`, the rows of each table that stand for those of several parts together,
      given by table name, in the order of the corpus. `compute` is then asked for the shards of
      examples alone, what it yields are partial results such as sums, and a tree of tasks combines
      them (`pipeline.merge_tree`): the tables hold the rows of the last call. A part may have no
      rows. `merge` sees nothing but the rows, so it must do for merged parts as for computed ones,
      and be associative up to rounding. Memory of a task: eight parts.
    - `of_queries(inputs)`: for `split="whole"`, what `compute` yields of queries alone, soon: what
      it found for the examples is in its own tables, which `inputs` has under their names. So a new
      text gets rows of it, for `assay explain`.
    - `replay(inputs, query_id, rounds, told) -> (ids, Values)`: for `split="round"`, what these
      rounds say of every example for a single query, and `replay_cost(work, n_rounds) -> Cost`
      before it, both for `assay explain`.
    - `speaks_for: str | None`: for scores of pairs, and features they are made of, which class of a
      query a positive score raises: "label", or without one the predicted class, or "prediction".
    - `cost(work) -> Cost`: for `assay plan`.
    """

    version: ClassVar[int]
    """Raised when the same inputs would give other rows."""
    split: ClassVar[Split]
    """How the work divides."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tables (or of instances that write them) this stage reads.

        `instance.table` is another table of an instance than its first.
        """

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Tables this stage writes; the first is what the name of an instance stands for."""

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Rows for one part, as pairs of table name and batch, in any order."""
