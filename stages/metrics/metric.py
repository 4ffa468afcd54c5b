"""The contract between a metric and `assay evaluate`.

A metric is a frozen dataclass whose fields are its configuration. It reads tables of a finished run
through the same `Inputs` as a stage, all rows of them, and computes a small table that is shown
and not stored. It takes its randomness from a field `seed`: the same run gives the same table.

A new metric is one file in `stages/metrics/` that ends with `METRIC = <Class>`, one oracle test,
and one line in the table of `README.md` beside it. No metric imports another, and no stage imports
a metric.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.stage import TASKS, Inputs, Steps


class Result(NamedTuple):
    """The result of a metric, as plain values that can be written as JSON."""

    rows: list[dict[str, Any]]
    """The table that is shown; all rows have the same keys."""
    facts: dict[str, Any]
    """Numbers that belong to all rows, such as sizes and the ridge."""
    details: list[dict[str, Any]]
    """Values for single queries, examples or outputs, from which the rows can be computed again."""


class Instance(NamedTuple):
    """What a metric may know of a stage of the run before it reads tables."""

    model: Any
    """The `stages.model.spec.ModelSpec` that it runs; None where it runs none."""
    tables: tuple[str, ...]
    """Names of the tables that it writes; the first is its own."""
    speaks_for: str | None
    """`stages.stage.Stage.speaks_for`, of the stage or else of one that it reads."""


@dataclass(frozen=True)
class Metric(ABC):
    """A measure of the quality of methods, predictions or explanations, from tables of a run."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Kinds of corpora it can work on."""
        return TASKS

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Names of the tables, or of the run's instances that write them, that it reads.

        An instance stands for its first table; INSTANCE.TABLE is another one of its.
        """

    def with_instances(self, instances: Callable[[], Mapping[str, Instance]]) -> "Metric":
        """The metric with what it takes over from the run, such as the model that it runs.

        `instances` gives the run's stages by the names of their instances.

        Raises:
            ConfigError: none of these will do.
        """
        return self

    @abstractmethod
    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """The table that is shown; `stepped` is told the steps done, and their total."""
