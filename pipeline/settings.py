"""A run as the YAML may describe it: every field, what it means, and its default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.corpus.source import Source
from stages.model.spec import ModelSpec

FOR = "_for_"
"""In the name of a stage that is added once more, between it and who asks (`pipeline.added`)."""


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage gets."""

    cpus: int = 1
    """Cores per worker, and threads per task. It decides the last bits of a result, so it is pinned
    in the manifest."""
    gpus: float = 0.0
    """GPUs per worker; shares such as 0.5 let workers sit together on one."""
    memory_gb: float | None = None
    """Memory that Ray sets aside per worker, 10^9 bytes; none is set aside by default."""
    workers: int | None = None
    """Workers at most; by default as many as the cluster's cores and GPUs allow."""


@dataclass(frozen=True)
class RaySettings:
    """Where the work runs. Nothing here is in any key."""

    engine: Literal["ray", "in_process"] = "ray"
    """`in_process` runs every task in the driver, one after the other, for debugging."""
    address: str | None = None
    """A cluster's address; RAY_ADDRESS stands in; without either, Ray starts on this machine."""
    retries: int = 3
    """How often a task is tried again when its worker is lost."""
    default: Resources = field(default_factory=Resources)
    """For stages that `stages` does not name."""
    stages: Mapping[str, Resources] = field(default_factory=dict)
    """Per stage instance; what `gradient` is given, `gradient_for_influence` has too."""


@dataclass(frozen=True)
class Run:
    """A run as configured, with every default filled in."""

    run: str
    """The run's folder; it is made when it is not there. Relative to the working directory."""
    corpus: Source
    """The training rows, the ones that are valued."""
    queries: Source | None = None
    """The rows whose predictions matter: a validation set, or predictions to explain."""
    model: ModelSpec | None = None
    """The model of every stage that does not name its own."""
    store: str | None = None
    """Where tables lie, a folder or URL that runs can share; by default `store` in the run.
    Relative to the working directory."""
    shard_size: int = 1000
    """Rows per shard."""
    stages: Mapping[str, Any] = field(default_factory=dict)
    """Stage instances by name."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Where the work runs."""
    artefacts: Mapping[str, Any] = field(default_factory=dict)
    """Fitted artefacts by instance: `{key, labels}` pins one, `refit` asks for a new one."""

    @property
    def store_url(self) -> str:
        """Folder or URL of the store."""
        return self.store if self.store is not None else str(Path(self.run) / "store")

    def resources(self, instance: str) -> Resources:
        """What one worker of the stage instance gets."""
        given, plain = self.ray.stages, instance.partition(FOR)[0]
        return given.get(instance, given.get(plain, self.ray.default))
