"""The contract between a method and the pipeline that runs it.

A stage is a frozen dataclass whose fields are its configuration. It reads named tables, writes
named tables, and computes rows for one *part* of its work at a time: one shard, one block of
queries, one Monte-Carlo round, or the whole. It opens no table file, starts no task, prints
nothing, reads no clock, and takes its randomness from a seed field and the part's number: the same
inputs give the same rows.

Sign, everywhere in assay: positive helps. A positive Shapley value raises the utility; a positive
score raises the measured output of the query's class that it speaks for (`speaks_for`).

Errors of this room:

    StageError
      ConfigError      a field of a stage has a value it cannot work with
      DataError        the rows a stage was given cannot be used
        RefusedRow     a row that a model cannot read, and why
      ModelError       a model, tokenizer or head cannot be loaded or does not fit
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from stages.hooks import check_names
from storage.schema import TableSpec

Role = Literal["example", "query"]
Split = Literal["shard", "query", "round", "whole"]
CorpusTask = Literal[
    "classification", "regression", "completion", "preference", "question_answering"
]
"""What a model is to predict for the rows of a corpus; of a preference, which of two answers."""
TASKS: tuple[CorpusTask, ...] = (
    *("classification", "regression", "completion", "preference"),
    "question_answering",
)
Rows = Iterator[tuple[str, pa.RecordBatch]]
"""Rows that a stage computes: pairs of a table's name and a batch of its rows, in any order."""
Steps = Callable[[int, int], None]
"""A progress callback, called with the steps done and the steps in all; first with 0 done."""


class StageError(Exception):
    """A stage cannot compute its rows: base of the errors of this room."""


class ConfigError(StageError):
    """A field of a stage or of the run has a value that cannot be used."""


class DataError(StageError):
    """The rows a stage was given cannot be used."""


class RefusedRow(DataError):
    """A row that a model cannot read; `reason` says why in a few words."""

    def __init__(self, reason: str, expected: str):
        self.reason = reason
        super().__init__(f"text: found {reason}, expected {expected}. Change the row, or drop it.")


class ModelError(StageError):
    """A model, tokenizer or head cannot be loaded, or does not fit the task."""


@dataclass(frozen=True)
class Part:
    """One piece of a stage's work, which one task computes.

    `role` and `index` name a shard (`split="shard"`), a block of queries (`"query"`: role "query",
    the shard's index) or a round (`"round"`: role "", the round's number); the whole is ("", 0).
    """

    role: str
    index: int
    n_shards: int = 1
    """Shards that the part spans from `index` on, see `Merges.shards_per_part`."""


class Vectors(NamedTuple):
    """All rows of a feature table's vector column for one role, as read-only memory.

    `ids` has shape (rows,), int64, ascending by shard then id; `matrix` has shape (rows, dim) and
    is a memory map: indexing it reads only the rows that are touched.
    """

    ids: np.ndarray
    matrix: np.ndarray


@runtime_checkable
class Tell(Protocol):
    """Records facts about the computation of a part; they are kept in the shard's manifest."""

    def __call__(
        self,
        notice: str | None = None,
        *,
        n_not_finite: int = 0,
        n_left_out: int = 0,
        n_without_tokens: int = 0,
        is_exact_bytes: bool = True,
        efficiency: Mapping[str, Mapping[str, int | float]] | None = None,
    ) -> None:
        """Records one fact or several; counts are added up over the part, and over shards.

        Args:
            notice: A sentence for the user, once the table is whole.
            n_not_finite: Rows whose features could not be stored.
            n_left_out: Rows that another input of the shard lacks.
            n_without_tokens: Queries, or outputs of them, without a token that could have a score.
            is_exact_bytes: False exempts the shard from byte identity, say where memory ran out.
            efficiency: By utility, by how much values miss their sum (`stages.game.efficiency`).
        """


@runtime_checkable
class Inputs(Protocol):
    """The tables that a stage may read while it computes one part.

    `part` is the part of the work, `opened` is what the stage's `open` returned in this worker.
    """

    part: Part
    opened: Any

    def table(self, name: str, role: Role | None = None) -> pa.Table:
        """Rows of the table `name` that this part reads.

        For `split="shard"` the rows of the part's own shard (tables that are not cut into shards
        come whole); otherwise all rows, of one role if given. For `split="query"` the rows of the
        role "query" are those of the part's own block.
        """

    def by_shard(self, name: str, role: Role, most: int | None = None) -> Iterator[pa.Table]:
        """The rows of `name` of one role, a shard at a time, in the order of the corpus.

        While a `split="shard"` computes, those that the part spans; otherwise all, or `most` of
        them, evenly spread. A table that is not cut comes as one. Memory: one shard.
        """

    def vectors(self, name: str, role: Role) -> Vectors:
        """All vectors of the feature table `name` for one role, memory-mapped."""

    def details(self, name: str) -> Mapping[str, Any]:
        """Facts about the table `name` that its writer recorded, such as `classes` of `label`."""

    @property
    def tell(self) -> Tell:
        """Records facts about the part beside its rows."""

    @property
    def stepped(self) -> Steps:
        """Hears how much of a long part is done, for people who wait; no row follows from it."""


@dataclass(frozen=True)
class Size:
    """The size of a corpus, by which stages choose what their fields leave open (`Stage.sized`)."""

    n_examples: int
    first_examples: int
    """How many there were at first: what changes the features of all rows is chosen by this."""
    n_queries: int
    n_classes: int
    """Of a classification; 0 for other tasks."""
    lengths: Mapping[str, int]
    """Length of the vectors of the tables whose length is known, by the name that is read."""
    task: str = "classification"
    """The task of the corpus."""


@dataclass(frozen=True)
class Work:
    """The size of a stage's work, as far as it is known before anything is computed."""

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
    """The expected cost of all parts of a stage together, estimated before it runs."""

    forward_rows: int = 0
    backward_rows: int = 0
    flops: float = 0.0
    written_bytes: int = 0
    memory_bytes: int = 0
    """Peak of one task."""
    vector_length: int = 0
    """Numbers of each vector that is written; 0 where none are, or the fields say how many."""
    read_bytes: int | None = None
    """Of a whole: what it reads, where that is less than the tables in `reads`."""
    note: str = ""
    """A choice that follows from the size of the work, such as an algorithm."""


@dataclass(frozen=True)
class Stage(ABC):
    """A method. A subclass is a frozen dataclass of its own.

    All that is public in it is a field or a hook, of this class or of a capability (`Merges`,
    `Samples`, `AnswersQueries`): a misspelt hook is a `TypeError` when the class is made. What the
    methods of a folder share is a class made with `contract=True`, which may add hooks.
    """

    version: ClassVar[int]
    """Part of the key; raise it when the code gives other rows for the same inputs."""
    opens: ClassVar[tuple[Role, ...]] = ()
    """For `split="shard"`, the roles of which `open` reads the rows of every shard, so that each
    shard of the result depends on them all."""
    roles: ClassVar[tuple[Role, ...]] = ("example", "query")
    """For `split="shard"`, the roles of whose shards there are rows: others get no task."""
    instead: ClassVar[Mapping[str, str]] = {}
    """For tasks of corpora that it cannot work on, the stage that does there what it is for."""
    judges_rows: ClassVar[bool] = False
    """Whether each row is judged by a fit on all, so that rows by an older fit may stand beside."""
    is_one_map: ClassVar[bool] = True
    """Whether vectors of examples and of queries are made alike, so that they have a kernel."""
    is_kept: ClassVar[bool] = False
    """Whether the output is an artefact that is fitted once and then kept, also when the labels it
    was fitted on are corrected or rows are appended: within one run folder, and by `assay apply`.
    """

    def __init_subclass__(cls, contract: bool = False) -> None:
        """See `stages.hooks.check_names`."""
        super().__init_subclass__()
        if not contract:
            check_names(cls)

    @property
    @abstractmethod
    def split(self) -> Split:
        """The parts that the work divides into: shards, blocks of queries, rounds, or one whole."""

    def sized(self, size: Size) -> "Stage":
        """The stage with what its fields leave open, chosen by size before reads are added."""
        return self

    @property
    def outside_key(self) -> frozenset[str]:
        """Names of fields that do not change rows, as they are set.

        A name such as `model.head` stands for one field of a field. A field that came later may be
        here while it is not set: rows of before have the same key.
        """
        return frozenset()

    @property
    def key_files(self) -> tuple[Path, ...]:
        """Files beside those of its model that its rows follow from: their content is in the key.

        Raises:
            ModelError: one is missing.
        """
        return ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of corpora it can work on; another is refused before anything is computed."""
        return TASKS

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Names of the tables (or of instances that write them) this stage reads.

        `instance.table` is another table of an instance than its first.
        """

    @property
    @abstractmethod
    def writes(self) -> tuple[TableSpec, ...]:
        """Tables this stage writes; the first is what the name of an instance stands for."""

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Fields for the stages in `reads` that the run does not name and that are hence added.

        By the name in `reads`, which names the stage; a name that is not here gets the defaults.
        Readers that ask for different fields get a stage instance each, and the field that holds
        the name then points to it. The fields may name instances that stand earlier in `reads`.
        """
        return {}

    def check_reads(self, writers: Mapping[str, "Stage"]) -> None:
        """Refuses stages whose tables it cannot work with, before anything is computed.

        `writers` holds the stage behind each name in `reads`, but for tables of the corpus.

        Raises:
            ConfigError: one of `writers` is such a stage.
        """
        return None

    def open(self, inputs: Inputs) -> Any:
        """State that is loaded once per worker, such as a model or a kernel: `inputs.opened`."""
        return None

    @abstractmethod
    def compute(self, inputs: Inputs) -> Rows:
        """Rows for one part; facts about the part beside its rows go to `inputs.tell`."""

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Facts for the manifests of the tables written, known once `open` has returned.

        `notices`, `n_left_out` and `n_without_label` (queries of a block without a label) are added
        up over shards.
        """
        return {}

    def cost(self, work: Work) -> Cost:
        """The expected cost of all parts together, for `assay plan`."""
        return Cost()

    @property
    def n_rounds(self) -> int:
        """For `split="round"`, the number of rounds to run; outside the key."""
        return 1

    @property
    def seed(self) -> int | None:
        """The seed of the stage's random draws; None where nothing is drawn."""
        return None

    @property
    def model_ref(self) -> Any:
        """The `stages.model.spec.ModelSpec` of the model that is run; None where none is."""
        return None

    @property
    def least_queries(self) -> int:
        """Queries without which it has nothing to do, where its rows do not tell that by a key."""
        return 0

    @property
    def query_column(self) -> str | None:
        """The column of the queries that it reads in `extra`, by the name in their source."""
        return None

    @property
    def feature_dim(self) -> int | None:
        """Length of the feature vectors that it writes; None where the fields leave it open."""
        return None

    @property
    def chosen_share(self) -> float:
        """Share of the examples that it chooses for the stages that read it; 1 for all others."""
        return 1.0

    @property
    def speaks_for(self) -> str | None:
        """The class whose output a positive score raises, for scores of pairs and their features.

        "label" is the query's label or, without one, the predicted class; "prediction" is the
        predicted class; "likeness" is how alike two rows are. None leaves it to what is read.
        """
        return None


def check_alike(instance: str, writer: Stage, wanted: Mapping[str, Any], other: str = "") -> None:
    """Refuses a stage whose fields are others than its reader's, of which `wanted` holds some.

    Raises:
        ConfigError: one differs; `instance` is the name of the stage `writer`, `other` what may be
            done instead of setting it.
    """
    for name, value in wanted.items():
        found = getattr(writer, name)
        if found != value:
            here, there = _apart(found, value), _apart(value, found)
            raise ConfigError(
                f"{instance}: found {name}: {here}, expected {there}, as in the stage that reads "
                f"it. Set {name} alike in both{other}."
            )


def _apart(value: Any, other: Any) -> Any:
    """A value for people to read; of several fields those that the other one has otherwise."""
    if is_dataclass(value) and type(value) is type(other):
        names = [field.name for field in fields(value)]
        differ = [name for name in names if getattr(value, name) != getattr(other, name)]
        return ", ".join(f"{name}: {getattr(value, name)}" for name in differ)
    return list(value) if isinstance(value, tuple) else value
