"""What a run would take on a cluster, over a corpus of any size: `assay plan --nodes 64`.

Nothing of that size is needed: the run's own corpus says which tables, classes and vectors there
are, and every stage says what its work costs at the size that is asked about (`Stage.cost`). How
the work divides says how much of the cluster it can use: shards, blocks of queries and rounds are
tasks that run side by side, a whole is one task, a merge has as many levels as its tree. A stage
takes as long as the slowest of its arithmetic, the traffic with the store, and the driver, which
hands out the tasks.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.cluster_size import Cluster
from pipeline.merge_tree import FAN_IN
from pipeline.node import CORPUS_INSTANCE, Node
from pipeline.plan import Plan
from pipeline.settings import Resources
from pipeline.work_size import CHARACTERS_PER_TOKEN, TableSizes, of_stage
from stages.capabilities import Merges
from stages.corpus.pieces import PIECE_BYTES
from stages.stage import Cost, Work

LISTED_AT_ONCE = 1000
"""Names in one answer of an object store to the question what lies in a folder."""
ROW_BYTES = {"label": 6, "extra": 12, "rejected": 0}
"""Of a row of a corpus table in Parquet, about; seen on short texts."""
TEXT_SHARE = 0.5
"""Size of texts in Parquet, as a share of their characters; seen on short texts."""

DRIVER_ROW_BYTES, DRIVER_ROW_US = 20, 1.0
"""What the driver holds of each row of a corpus while it is read, and the time that takes."""


class _Division(NamedTuple):
    """How the work of a stage divides into tasks."""

    what: str
    tasks: int
    """Tasks that can run side by side."""
    levels: int = 0
    """Levels of merges that follow."""
    merges: int = 0


class _Table(NamedTuple):
    """A table that stages read: its bytes, its files, and the queries' share of both."""

    bytes: float
    files: int
    of_queries: float
    is_mapped: bool
    """Whether it holds vectors, which the workers of a node share."""


def forecast(
    plan: Plan, work: Work, sizes: TableSizes, cluster: Cluster, speed: float
) -> dict[str, Any]:
    """Time, bytes, tasks, memory and requests of a run on a cluster, by stage and in all.

    Args:
        plan: The run over its own corpus.
        work: The size of the corpus that is asked about.
        sizes: Of the tables of all instances (`work_size.table_sizes`).
        cluster: The machines.
        speed: FLOP/s of one core, where the assumptions name none.
    """
    told = _Forecast(plan, work, sizes, cluster, speed)
    rows = [told.ingest(), *map(told.row, plan.nodes)]
    assumed = dataclasses.asdict(cluster.assumed)
    return {
        "examples": work.n_examples,
        "queries": work.n_queries,
        "tokens": work.n_tokens,
        "shards": told.n_shards,
        "nodes": cluster.nodes,
        "cores": cluster.cores,
        "gpus": cluster.gpus,
        "assumed": {
            **assumed,
            "core_flops": told.core_flops,
            "memory_gb": cluster.node_bytes / 1e9,
        },
        "stages": rows,
        "seconds": sum(row["seconds"] for row in rows),
        "chain": told.chain(rows),
        "node_hours": cluster.nodes * sum(row["seconds"] for row in rows) / 3600,
        **{
            name: sum(row[name] for row in rows)
            for name in ("tasks", "read_bytes", "written_bytes", "requests")
        },
        "memory_bytes": max(row["memory_bytes"] for row in rows),
    }


class _Forecast:
    """The rows of a forecast, stage by stage in the order of the plan."""

    def __init__(self, plan: Plan, work: Work, sizes: TableSizes, cluster: Cluster, speed: float):
        self._plan, self._work, self._sizes, self._cluster = plan, work, sizes, cluster
        self.core_flops = cluster.assumed.core_flops or speed
        examples = [s for s in plan.corpus.tables["text"].shards if s.role == "example"]
        per_shard = -(-work.n_examples // work.n_shards) if examples else 1
        self._n_query_shards = -(-work.n_queries // per_shard)
        self.n_shards = work.n_shards + self._n_query_shards
        self._tables = {CORPUS_INSTANCE: {t: self._corpus_table(t) for t in plan.corpus.tables}}

    def ingest(self) -> dict[str, Any]:
        """The reading of the corpus: its pieces are looked through, and then made into shards."""
        work, assumed = self._work, self._cluster.assumed
        n_rows = work.n_examples + work.n_queries
        tables = self._tables[CORPUS_INSTANCE]
        written = sum(table.bytes for table in tables.values())
        source = CHARACTERS_PER_TOKEN * work.n_tokens
        n_pieces = max(1, round(source / PIECE_BYTES))
        division = _Division(f"{n_pieces} pieces", n_pieces)
        slots = self._cluster.nodes * self._cluster.cores
        workers = min(slots, n_pieces)
        n_tasks, files = n_pieces + self.n_shards, self.n_shards * len(tables)
        nodes = min(self._cluster.nodes, -(-workers // self._cluster.cores))
        of_task = n_rows * assumed.ingest_us / 1e6 / n_pieces + assumed.task_ms / 1e3
        limits = {
            "compute" if n_pieces >= slots else division.what: of_task * -(-n_pieces // workers),
            "store": (2 * source + written) / self._bandwidth(nodes),
            "requests": (2 * n_pieces + files) / workers * assumed.request_ms / 1e3,
            "driver": n_tasks * assumed.driver_ms / 1e3 + n_rows * DRIVER_ROW_US / 1e6,
        }
        cost = Cost(written_bytes=round(written), memory_bytes=DRIVER_ROW_BYTES * n_rows)
        requests = 2 * n_pieces + files + len(tables)
        told = self._told(CORPUS_INSTANCE, division, cost, limits, 2 * source, requests, workers)
        return {**told, "tasks": n_tasks}

    def row(self, node: Node) -> dict[str, Any]:
        """One stage; its tables are then there for those that read them."""
        work = of_stage(self._work, node, self._sizes)
        cost = node.stage.cost(work)
        division = self._division(node)
        resources = self._plan.run.resources(node.instance)
        slots, rate, unit = self._slots(node, resources, cost)
        workers = max(1, min(division.tasks, slots))
        nodes = min(self._cluster.nodes, -(-workers // max(1, slots // self._cluster.nodes)))
        self._tables[node.instance] = self._written(node, cost, division)
        read, requests = self._read(node, division, workers, nodes)
        if cost.read_bytes is not None and cost.read_bytes < read:
            requests = max(len(node.reads), round(requests * cost.read_bytes / read))
            read = float(cost.read_bytes)
        waves = -(-division.tasks // workers)
        of_task = cost.flops / division.tasks / rate + self._cluster.assumed.task_ms / 1e3
        requests += (division.tasks + division.merges + 1) * len(node.stage.writes)
        assumed = self._cluster.assumed
        limits = {
            division.what if division.tasks < slots else unit: waves * of_task,
            "store": (read + cost.written_bytes) / self._bandwidth(nodes),
            "requests": requests / workers * assumed.request_ms / 1e3,
            "driver": (division.tasks + division.merges) * assumed.driver_ms / 1e3,
        }
        told = self._told(node.instance, division, cost, limits, read, requests, workers)
        if division.levels:
            part = cost.written_bytes / (division.tasks + division.merges)
            told["seconds"] += division.levels * (FAN_IN + 1) * part / self._bandwidth(1)
        return told

    def chain(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The longest chain of stages of which each reads the one before, and its seconds."""
        seconds = {row["stage"]: row["seconds"] for row in rows}
        longest = {CORPUS_INSTANCE: (seconds[CORPUS_INSTANCE], [CORPUS_INSTANCE])}
        for node in self._plan.nodes:
            before = [longest[instance] for instance, _ in node.reads.values()]
            took, stages = max(before, default=longest[CORPUS_INSTANCE])
            longest[node.instance] = (took + seconds[node.instance], [*stages, node.instance])
        took, stages = max(longest.values())
        return {"seconds": took, "stages": stages}

    def _division(self, node: Node) -> _Division:
        stage, n_examples = node.stage, self._work.n_shards
        if stage.split == "whole":
            return _Division("one task", 1)
        if stage.split == "round":
            return _Division(f"{stage.n_rounds} rounds", stage.n_rounds)
        if stage.split == "query":
            n_blocks = max(1, self._n_query_shards)
            return _Division(f"{n_blocks} blocks of queries", n_blocks)
        if isinstance(stage, Merges):
            n_leaves = left = -(-n_examples // stage.shards_per_part)
            levels = merges = 0
            while left > 1 or not levels:
                left = -(-left // FAN_IN)
                levels, merges = levels + 1, merges + left
            what = "shards" if stage.shards_per_part == 1 else "groups of shards"
            return _Division(f"{n_leaves} {what}", n_leaves, levels, merges)
        roles = {task.part.role for task in node.tasks}
        n_shards = self.n_shards if "query" in roles else n_examples
        return _Division(f"{n_shards} shards", n_shards)

    def _slots(self, node: Node, resources: Resources, cost: Cost) -> tuple[int, float, str]:
        """How many workers the cluster has room for, FLOP/s of one, and what gives out first."""
        cluster, assumed = self._cluster, self._cluster.assumed
        most = resources.workers or math.inf
        has_use = resources.gpus != 0 and node.stage.model_ref is not None and cost.forward_rows
        if cluster.gpus and has_use:
            share = resources.gpus or 1.0
            slots = int(min(most, max(1, cluster.gpus // share)))
            return slots, assumed.gpu_flops * assumed.gpu_efficiency * share, "GPUs"
        by_cores = cluster.cores // resources.cpus
        by_memory = int(cluster.node_bytes // max(1, cost.memory_bytes))
        of_node = max(1, min(by_cores, by_memory))
        rate = self.core_flops * assumed.efficiency * resources.cpus
        slots = int(min(most, of_node * cluster.nodes))
        if slots == most:
            return slots, rate, f"workers: {slots}"
        return slots, rate, "memory" if by_memory < by_cores else "compute"

    def _read(self, node: Node, division: _Division, workers: int, nodes: int) -> tuple[float, int]:
        """Bytes and requests by which the tasks of a stage read their tables."""
        n_bytes, requests = 0.0, 0
        stage = node.stage
        for instance, name in node.reads.values():
            table = self._tables[instance][name]
            is_cut = table.files >= self._work.n_shards
            times = nodes if table.is_mapped else workers
            if stage.split == "shard" and is_cut:
                # Each shard once, and what every worker opens.
                share = (table.of_queries if "query" in stage.opens else 0.0) + (
                    1 - table.of_queries if "example" in stage.opens else 0.0
                )
                n_bytes += table.bytes * (1 + times * share)
                requests += round(table.files * (1 + times * share))
            elif stage.split == "whole":
                n_bytes, requests = n_bytes + table.bytes, requests + table.files
            else:
                n_bytes += table.bytes * times
                requests += table.files * times
            requests += -(-table.files // LISTED_AT_ONCE) * workers
        if division.merges:
            # The merges read every partial result but the root's.
            n_parts = division.tasks + division.merges - 1
            n_bytes += n_parts * sum(t.bytes for t in self._tables[node.instance].values())
            requests += n_parts * len(stage.writes)
        return n_bytes, requests

    def _written(self, node: Node, cost: Cost, division: _Division) -> dict[str, _Table]:
        """The tables of a stage; what it writes is counted to the first of them."""
        n_rows = self._work.n_examples + self._work.n_queries
        files = division.tasks if not division.levels else 1
        n_bytes = cost.written_bytes / (division.tasks + division.merges) * files
        of_queries = self._work.n_queries / max(1, n_rows)
        is_mapped = node.stage.feature_dim is not None
        first, *others = (spec.name for spec in node.stage.writes)
        tables = {first: _Table(n_bytes, files, of_queries, is_mapped)}
        return tables | {name: _Table(0.0, files, of_queries, False) for name in others}

    def _corpus_table(self, name: str) -> _Table:
        work = self._work
        n_rows = work.n_examples + work.n_queries
        if name == "text":
            n_bytes = TEXT_SHARE * CHARACTERS_PER_TOKEN * work.n_tokens
        elif name == "features":
            n_bytes = 4.0 * self._sizes.lengths[CORPUS_INSTANCE] * n_rows
        else:
            n_bytes = ROW_BYTES.get(name, 0) * n_rows
        files = 1 if name == "rejected" else self.n_shards
        return _Table(n_bytes, files, work.n_queries / max(1, n_rows), name == "features")

    def _bandwidth(self, nodes: int) -> float:
        """Bytes per second between some nodes and the store."""
        return nodes * self._cluster.assumed.store_gb_s * 1e9

    def _told(
        self,
        instance: str,
        division: _Division,
        cost: Cost,
        limits: Mapping[str, float],
        read: float,
        requests: int,
        workers: int,
    ) -> dict[str, Any]:
        """One row of the forecast; the slowest of `limits` is the stage's."""
        limit = max(limits, key=lambda name: limits[name])
        fits = cost.memory_bytes <= self._cluster.node_bytes
        return {
            "stage": instance,
            "tasks": division.tasks + division.merges,
            "workers": workers,
            "flops": cost.flops,
            "read_bytes": round(read),
            "written_bytes": cost.written_bytes,
            "requests": requests,
            "memory_bytes": cost.memory_bytes,
            "seconds": limits[limit],
            "limit": limit if fits else f"{limit}; a task needs more memory than a node has",
            "how": cost.note,
        }
