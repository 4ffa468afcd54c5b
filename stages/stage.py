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

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_origin, runtime_checkable

import numpy as np
import pyarrow as pa

from storage.schema import TableSpec

Role = Literal["example", "query"]
Split = Literal["shard", "query", "round", "whole"]
CorpusTask = Literal["classification", "regression", "completion", "question_answering"]
"""What a corpus asks of a model."""
TASKS: tuple[CorpusTask, ...] = ("classification", "regression", "completion", "question_answering")
Rows = Iterator[tuple[str, pa.RecordBatch]]
"""Rows that a stage computes: pairs of table name and batch, in any order."""
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
class Tell(Protocol):
    """How a part's computation tells of itself; what is told is kept with the shard."""

    def __call__(
        self,
        notice: str | None = None,
        *,
        n_not_finite: int = 0,
        n_left_out: int = 0,
        is_exact_bytes: bool = True,
    ) -> None:
        """Tells one thing or several; counts are added up over the part, and over shards.

        Args:
            notice: A sentence for the user, once the table is whole.
            n_not_finite: Rows whose features could not be stored.
            n_left_out: Rows that another input of the shard lacks.
            is_exact_bytes: False exempts the shard from byte identity, say because memory ran out
                and batches were cut in another way.
        """


@runtime_checkable
class Inputs(Protocol):
    """What a stage may see while it computes one part.

    `opened` is what the stage's `open` returned in this worker.
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

    @property
    def tell(self) -> Tell:
        """Takes what there is to say of the part beside its rows."""


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


@dataclass(frozen=True)
class Stage(ABC):
    """Reads named tables, writes named tables.

    A subclass is a frozen dataclass of its own. Everything public in it is a field or one of the
    hooks below, or of a capability (`Merges`, `Samples`, `AnswersQueries`): a misspelt hook is a
    `TypeError` when the class is made. What methods of a folder share is a class made with
    `contract=True`, which may add hooks.
    """

    version: ClassVar[int]
    """Raised when the same inputs would give other rows."""
    split: ClassVar[Split]
    """How the work divides."""
    opens: ClassVar[tuple[Role, ...]] = ()
    """For `split="shard"`, the roles of which `open` reads the rows of every shard, so that each
    shard of the result depends on them all."""
    outside_key: ClassVar[frozenset[str]] = frozenset()
    """Names of fields that do not change rows; a name such as `model.head` stands for one field of
    a field."""
    is_kept: ClassVar[bool] = False
    """Whether the output is an artefact that is fitted once and then kept, also when the labels it
    was fitted on are corrected or rows are appended."""

    def __init_subclass__(cls, contract: bool = False) -> None:
        """Refuses a class with a public name that no contract knows.

        Raises:
            TypeError: it has one, or says neither `version` nor `split`.
        """
        super().__init_subclass__()
        if contract:
            return
        known = {name for base in cls.__mro__[1:-1] for name in _names_of(base)}
        fields = {name for name, kind in cls.__annotations__.items() if not _is_class_var(kind)}
        for name in _names_of(cls) - fields - known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(
                f"{cls.__module__}.{cls.__name__}: found {name}, which no contract knows, expected "
                "a field, a hook of stages.stage.Stage, or a name that begins with an underscore. "
                + (f"Did you mean {near[0]}?" if near else "Rename it.")
            )
        for name in ("version", "split"):
            if not hasattr(cls, name):
                raise TypeError(
                    f"{cls.__module__}.{cls.__name__}: found no {name}, expected one. Add "
                    f"`{name}: ClassVar[...] = ...`."
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Kinds of corpora it can work on; another is refused before anything is computed."""
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
        """Fields of stages that the run does not name and that are added as this one reads them.

        By the name in `reads`; the defaults where it asks for nothing. Readers that ask for
        different ones get one each, and the field that holds the name then points to it. What is
        asked may name what stands before it in `reads`.
        """
        return {}

    def check_reads(self, writers: Mapping[str, "Stage"]) -> None:
        """Refuses stages whose tables it cannot work with, before anything is computed.

        `writers` holds the stage behind each name in `reads`, but for tables of the corpus.

        Raises:
            ConfigError: there is such a stage.
        """
        return None

    def open(self, inputs: Inputs) -> Any:
        """What is worth loading once per worker, such as a model or a kernel."""
        return None

    @abstractmethod
    def compute(self, inputs: Inputs) -> Rows:
        """Rows for one part; what is to be said of it beside goes to `inputs.tell`."""

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Facts for the manifests of the tables written, known once `open` has returned.

        `notices`, `n_left_out` and `n_without_label` (queries of a block without a label) are added
        up over shards.
        """
        return {}

    def cost(self, work: Work) -> Cost:
        """What all parts together take, for `assay plan`."""
        return Cost()

    @property
    def rounds(self) -> int:
        """For `split="round"`, how many rounds are wanted; outside the key."""
        return 1

    @property
    def seed(self) -> int | None:
        """What the rows are drawn with; None where nothing is drawn."""
        return None

    @property
    def model_ref(self) -> Any:
        """The `stages.model.spec.ModelSpec` that is run; None where no model is."""
        return None

    @property
    def feature_dim(self) -> int | None:
        """Length of the feature vectors that it writes, where its fields say it."""
        return None

    @property
    def speaks_for(self) -> str | None:
        """Of scores of pairs, and features they are made of: which class a positive score raises.

        "label" is that of the query or, without one, the predicted class; "prediction" is the
        predicted class; "likeness" is no class, for scores say how alike two rows are. None leaves
        it to what is read.
        """
        return None


@dataclass(frozen=True)
class Merges(Stage, contract=True):
    """Of `split="shard"`: partial results of shards of examples, combined by a tree of tasks.

    `compute` is asked for the shards of examples alone; what it yields are partial results such as
    sums, and the tables hold the rows of the last `merge` (`pipeline.merge_tree`).
    """

    @abstractmethod
    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """The rows of each table that stand for those of several parts together.

        The parts of a table, given by its name, are in the order of the corpus and may have no
        rows. Nothing is seen but the rows, so it must do for merged parts as for computed ones, and
        be associative up to rounding. Memory of a task: eight parts.
        """


@dataclass(frozen=True)
class Samples(Stage, contract=True):
    """Of `split="round"`: rounds that may end by a rule, and be drawn again for one query."""

    @property
    @abstractmethod
    def units_per_round(self) -> int:
        """Independent estimates in a round."""

    @property
    @abstractmethod
    def utilities(self) -> tuple[str, ...]:
        """What sets of examples are worth; the order of values."""

    @abstractmethod
    def watch(self) -> Any:
        """A fresh stopping rule (`stages.game.stopping.Watch`); None runs all rounds.

        It is given the first table's rows of each round in turn (`add`), and asked for the `reason`
        to stop. The rounds that count are then those up to the first reason.
        """

    @abstractmethod
    def replay(
        self, inputs: Inputs, query_id: int, rounds: Sequence[int], stepped: Steps
    ) -> tuple[np.ndarray, Any]:
        """Ids of the examples, and what these rounds say each is worth to a single query."""

    @abstractmethod
    def replay_cost(self, work: Work, n_rounds: int) -> Cost:
        """What `replay` takes."""


@dataclass(frozen=True)
class AnswersQueries(Stage, contract=True):
    """Of `split="whole"`: what is found for new queries once the examples are done with."""

    @abstractmethod
    def of_queries(self, inputs: Inputs) -> Rows:
        """What `compute` yields of queries alone, soon, so that a new text gets rows of it.

        What was found for the examples is in the stage's own tables, which `inputs` has under their
        names.
        """


def _is_class_var(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is ClassVar


def _names_of(cls: type) -> set[str]:
    """Public names that a class declares itself."""
    return {name for name in {*vars(cls), *vars(cls).get("__annotations__", {})} if name[0] != "_"}
