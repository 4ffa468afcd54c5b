"""Stages that compute in bfloat16, and whether this machine does."""

import os
from collections.abc import Iterable

from pipeline.errors import ConfigFileError
from pipeline.node import Node
from pipeline.settings import Run
from stages.model.devices import device
from stages.model.spec import ModelSpec
from stages.stage import ConfigError, Stage


def in_bfloat16(stage: Stage) -> bool:
    """Whether most of a stage's arithmetic is in bfloat16: its model's, or that of its passes."""
    dtype = getattr(stage.model_ref, "dtype", None)
    return "bfloat16" in (dtype, getattr(stage, "precision", None))


def bfloat16_notes(run: Run, nodes: Iterable[Node]) -> list[str]:
    """A sentence for each model that is held in bfloat16 where the processor emulates that.

    Of a run on this machine; what the nodes of a cluster compute in is not known here.

    Raises:
        ConfigFileError: a stage is to train or differentiate in it, which its first task would
            refuse.
    """
    is_elsewhere = run.ray.engine == "ray" and (run.ray.address or os.environ.get("RAY_ADDRESS"))
    missing = [node for node in nodes if node.missing and in_bfloat16(node.stage)]
    if is_elsewhere or not missing:
        return []
    from stages.model import precision  # it imports torch, which a finished run does without

    if precision.has_bfloat16(device()):
        return []
    models = [node.stage.model_ref for node in missing]
    slow = {m.path: None for m in models if isinstance(m, ModelSpec) and m.dtype == "bfloat16"}
    for node in missing:
        try:
            precision.check_precision(device(), getattr(node.stage, "precision", "float32"))
        except ConfigError as error:
            raise ConfigFileError(f"stages.{node.instance}: {error}") from error
    return [
        f"{path}: this machine's processor emulates bfloat16, which takes several times as long as "
        "float32. Set dtype: float32, or run where a GPU or the processor computes in it."
        for path in slow
    ]
