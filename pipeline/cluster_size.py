"""Machines and a corpus that `assay plan` may ask about, and what it takes for granted of them."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import ConfigFileError
from pipeline.shard_sizes import chosen_size
from pipeline.work_size import CHARACTERS_PER_TOKEN
from stages.stage import Work


@dataclass(frozen=True)
class Assumptions:
    """What a forecast takes for granted about the machines; each can be set."""

    core_flops: float | None = None
    """Float32 operations per second of one core in matrix products; by default this machine's."""
    efficiency: float = 0.5
    """Share of them that models and solves reach."""
    gpu_flops: float = 1e14
    """Operations per second of one GPU in matrix products, of the precision that models run in."""
    gpu_efficiency: float = 0.3
    """Share of them that a model reaches."""
    memory_gb: float | None = None
    """Memory of one node, 10^9 bytes; by default 4 for each core."""
    store_gb_s: float = 1.0
    """What one node reads from and writes to the store in a second, 10^9 bytes."""
    request_ms: float = 20.0
    """Between a worker's question to the store and the first byte of the answer; it asks one thing
    after the other."""
    driver_ms: float = 5.0
    """What a task costs the driver, which hands them out one by one."""
    task_ms: float = 20.0
    """What a task costs its worker beside arithmetic: to read, check, sort and write."""
    ingest_us: float = 10.0
    """Time of one core to read, check, hash and write one row of a corpus of short texts."""


@dataclass(frozen=True)
class Cluster:
    """The machines of a forecast."""

    nodes: int = 1
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Per node."""
    gpus: int = 0
    """In the whole cluster; stages that run a model use them, where there are any."""
    assumed: Assumptions = field(default_factory=Assumptions)

    @property
    def node_bytes(self) -> float:
        """Memory of a node."""
        gigabytes = self.assumed.memory_gb
        return 1e9 * (4.0 * self.cores if gigabytes is None else gigabytes)


@dataclass(frozen=True)
class CorpusSize:
    """The size of a corpus; what is None is taken from the run's own."""

    rows: int | None = None
    queries: int | None = None
    tokens_per_row: float | None = None

    def of(self, work: Work, shard_size: int | Literal["auto"]) -> Work:
        """The work over a corpus of this size, where `work` is that over the run's own."""
        n_rows = work.n_examples + work.n_queries
        rows = work.n_examples if self.rows is None else self.rows
        queries = work.n_queries if self.queries is None else self.queries
        of_row = self.tokens_per_row
        if of_row is None:
            of_row = work.n_tokens / max(1, n_rows)
        if not isinstance(shard_size, int):
            shard_size = chosen_size(rows, round(of_row * rows * CHARACTERS_PER_TOKEN))
        return dataclasses.replace(
            work,
            n_examples=rows,
            n_queries=queries,
            n_tokens=round(of_row * (rows + queries)),
            n_shards=work.n_shards if self.rows is None else max(1, -(-rows // shard_size)),
        )


def asked_for(
    nodes: int | None = None,
    cores: int | None = None,
    gpus: int | None = None,
    rows: int | None = None,
    queries: int | None = None,
    tokens_per_row: float | None = None,
    assume: Sequence[str] = (),
) -> tuple[Cluster | None, CorpusSize | None]:
    """The machines and the size that a command asks about; None where it asks about neither.

    Raises:
        ConfigFileError: nothing of a name in `assume` is assumed, or the value is no such number.
    """
    machines = {"nodes": nodes, "cores": cores, "gpus": gpus}
    given = {name: count for name, count in machines.items() if count is not None}
    size = CorpusSize(rows, queries, tokens_per_row)
    if not given and not assume and size == CorpusSize():
        return None, None
    return Cluster(**given, assumed=assumptions(assume)), size


def assumptions(settings: Sequence[str]) -> Assumptions:
    """The assumptions with those of `settings`, `name=number` each, in place of the defaults.

    Raises:
        ConfigFileError: there is no assumption of a name, or its value is no positive number.
    """
    names = [f.name for f in dataclasses.fields(Assumptions)]
    values: dict[str, float] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if name not in names or not 0 < number < math.inf:
            raise ConfigFileError(
                f"--assume: found {setting!r}, expected a positive number for one of "
                f"{', '.join(names)}. Say for example --assume store_gb_s=2."
            )
        values[name] = number
    return Assumptions(**values)
