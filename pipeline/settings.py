"""The configuration of a run: every field of the YAML, its meaning and its default."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.corpus.source import Source
from stages.model.spec import ModelSpec
from stages.stage import ConfigError

FOR = "_for_"
"""In the name of an added instance, between its stage and its reader: `gradient_for_influence`
(`pipeline.added`)."""


_ABOVE_0 = 1e-4
"""The least share of a resource that Ray tells apart from none."""


def _check_amounts(where: str, amounts: Iterable[tuple[str, float | None, float]]) -> None:
    """Raises unless each amount, of (name, amount, least), is as large as the least, or None."""
    for name, amount, least in amounts:
        if amount is not None and not least <= amount < math.inf:
            wanted = f"at least {least:g}" if least != _ABOVE_0 else "a number above 0"
            raise ConfigError(
                f"{where}: found {name}: {amount}, expected {wanted}. Correct it, or leave it out "
                "for the default."
            )


@dataclass(frozen=True)
class Resources:
    """Cores, GPUs and memory of one worker of a stage, and how many workers there may be."""

    cpus: int = 1
    """Cores per worker, and threads per task. It decides the last bits of a result, so it is pinned
    in the manifest."""
    gpus: float | None = None
    """GPUs per worker; with a share such as 0.5, two workers use one GPU. By default one where the
    stage runs a model and Ray has GPUs, and else none; with 0 a model runs on cores."""
    memory_gb: float | None = None
    """Memory that Ray sets aside per worker, 10^9 bytes; none is set aside by default. Workers
    start on nodes that have it, such as those with much memory."""
    accelerator: str | None = None
    """Kind of GPU that a worker's node must have, as Ray names it: `A100`, `L4`, `T4`."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Amounts per worker of resources that the cluster's own configuration gives its nodes, such as
    `{big_memory: 1}`: only these nodes take the stage."""
    workers: int | None = None
    """Workers at most; by default as many as the cluster's cores and GPUs allow."""

    def __post_init__(self) -> None:
        """Refuses amounts that no worker can have.

        Raises:
            ConfigError: one is negative, or there would be no core, memory or worker.
        """
        above = {"memory_gb": self.memory_gb, **self.resources}
        least = [("cpus", self.cpus, 1), ("gpus", self.gpus, 0), ("workers", self.workers, 1)]
        _check_amounts("ray", [*least, *((name, n, _ABOVE_0) for name, n in above.items())])


@dataclass(frozen=True)
class RaySettings:
    """Where the tasks run, and with which resources. Nothing here is in any key."""

    engine: Literal["ray", "in_process"] = "ray"
    """`in_process` runs every task in the driver, one after the other, for debugging."""
    address: str | None = None
    """A cluster's address, by default RAY_ADDRESS; without either, Ray starts on this machine."""
    retries: int = 3
    """How often a task is tried again when its worker is lost."""
    wait_minutes: float = 0.0
    """How long to wait for a node with the resources of a stage where none has them, while Ray is
    asked for one: of a cluster whose autoscaler starts nodes when they are needed, say 15."""
    default: Resources = field(default_factory=Resources)
    """Resources of the stages that `stages` does not name."""
    stages: Mapping[str, Resources] = field(default_factory=dict)
    """Resources by stage instance; those of `gradient` hold for `gradient_for_influence`, too."""

    def __post_init__(self) -> None:
        """Refuses numbers below 0.

        Raises:
            ConfigError: one is.
        """
        numbers = [("retries", self.retries, 0), ("wait_minutes", self.wait_minutes, 0)]
        _check_amounts("ray", numbers)


@dataclass(frozen=True)
class Run:
    """The configuration of a run, with every default filled in."""

    run: str
    """The run's folder; it is made when it is not there. Relative to the working directory."""
    corpus: Source
    """The examples: the training rows, which are valued."""
    queries: Source | None = None
    """The rows whose predictions matter: a validation set, or predictions to explain."""
    model: ModelSpec | None = None
    """The model of every stage that does not name its own."""
    store: str | None = None
    """Where tables lie, a folder or URL that runs can share; by default `store` in the run.
    Relative to the working directory."""
    shard_size: int | Literal["auto"] = "auto"
    """Rows per shard. `auto` is 1,000 up to 2 million rows, one in 2,000 up to 10 million, and
    beyond by their bytes (`pipeline.shard_sizes`); a corpus that grows keeps what was chosen."""
    stages: Mapping[str, Any] = field(default_factory=dict)
    """Stage instances by name."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Where the tasks run."""
    old_rows: Literal["again", "kept"] = "again"
    """Whether rows that are judged by a fit on all rows are judged again when others are appended,
    or keep what they have (`pipeline.kept_rows`)."""
    open_lengths: tuple[str, ...] = field(default=(), metadata={"in_yaml": False})
    """Places with a `model` whose `max_length` the corpus decides, since the YAML leaves it open:
    `model`, and instances of stages. The run has none any more once it is chosen
    (`pipeline.max_length`)."""
    artefacts: Mapping[str, Any] = field(default_factory=dict)
    """Fitted artefacts by instance: `{key, labels}` pins one, `refit` asks for a new one."""

    @property
    def store_url(self) -> str:
        """Folder or URL of the store."""
        return self.store if self.store is not None else str(Path(self.run) / "store")

    def resources(self, instance: str) -> Resources:
        """The resources of one worker of the stage instance."""
        by_instance, stage = self.ray.stages, instance.partition(FOR)[0]
        return by_instance.get(instance, by_instance.get(stage, self.ray.default))
