"""Tables that a stage reads and writes, in memory instead of Parquet."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stages.model.batches import Tokens
from stages.reading.vectors import matrix_of
from stages.stage import Inputs, Part, Role, Steps, Tell, Vectors


class MemoryInputs(Inputs):
    """Inputs of a stage: one shard of examples, and tables in memory.

    All inputs that benchmarks make are of this class, so that mypy compares them with the protocol.
    """

    def __init__(self, **tables: pa.Table) -> None:
        self.part = Part("example", 0)
        self.opened: Any = None
        self._tables = tables

    def table(self, name: str, role: Role | None = None) -> pa.Table:
        """The table of that name, whatever the role."""
        return self._tables[name]

    def by_shard(self, name: str, role: Role, most: int | None = None) -> Iterator[pa.Table]:
        """The table of that name as one shard of examples, and no query."""
        if role == "example":
            yield self.table(name, role)

    def vectors(self, name: str, role: Role) -> Vectors:
        """Ids and vectors of the table of that name, whatever the role."""
        table = self._tables[name]
        return Vectors(table["id"].to_numpy(), matrix_of(table["vector"]))

    def details(self, name: str) -> Mapping[str, Any]:
        """Two classes for the table `label`, nothing for others."""
        return {"classes": ["negative", "positive"]} if name == "label" else {}

    @property
    def tell(self) -> Tell:
        """Hears what a stage has to say, and keeps nothing of it."""
        return unheard

    @property
    def stepped(self) -> Steps:
        """Hears how far a part is."""
        return lambda done, steps: None


def unheard(notice: str | None = None, **facts: Any) -> None:
    """What a stage tells to nobody."""


def run(stage: Any, inputs: MemoryInputs) -> pa.Table:
    """All rows of the first table that a stage writes for these inputs, by id where it has one."""
    if inputs.opened is None and hasattr(stage, "open"):
        inputs.opened = stage.open(inputs)
    own = stage.writes[0].name
    table = pa.Table.from_batches([batch for name, batch in stage.compute(inputs) if name == own])
    return table.sort_by("id") if "id" in table.column_names else table


def text_table(texts: Sequence[str]) -> pa.Table:
    """The table `text` of some examples, numbered from 0."""
    columns = {
        "id": pa.array(range(len(texts)), pa.int64()),
        "role": pa.array(["example"] * len(texts)),
        "text": pa.array(texts, pa.string()),
        "text_b": pa.nulls(len(texts), pa.string()),
    }
    return pa.table(columns)


def label_table(labels: np.ndarray) -> pa.Table:
    """The table `label` of the same examples."""
    columns = {
        "id": pa.array(range(len(labels)), pa.int64()),
        "role": pa.array(["example"] * len(labels)),
        "label": pa.array(labels, pa.int64()),
    }
    return pa.table(columns)


def as_tokens(ids: list[list[int]]) -> Tokens:
    """Rows of token ids as the tokens of a model with one kind of token."""
    return Tokens({"input_ids": ids, "token_type_ids": [[0] * len(row) for row in ids]})
