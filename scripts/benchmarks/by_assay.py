"""assay's own features, and its own forward pass alone."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from benchmarks.contestant import Contestant, Rows
from benchmarks.memory import MemoryInputs, as_tokens, label_table, text_table

from stages.features.gradient import Gradient
from stages.gradients.projection import Projection
from stages.model.batches import batches
from stages.model.spec import ModelSpec
from stages.reading.vectors import matrix_of

SMALL = Projection(inputs=16, outputs=16, principal=0, dim=2048)
"""As short as the peer's."""
EXACT = Projection(inputs=None, outputs=None, principal=0, dim=None)


def stage(settings: dict[str, Any], projection: Projection, precision: str = "float32") -> Gradient:
    """The stage `gradient` as a run would configure it."""
    return Gradient(
        ModelSpec(settings["model"], head="random", num_labels=2, seed=settings["seed"]),
        projection=projection,
        precision=precision,
        token_budget=settings["token_budget"],
    )


def computed(gradient: Gradient, opened: Any, rows: Rows) -> list[pa.RecordBatch]:
    """What the stage writes for one shard, with its tokens given."""
    numbers = [str(row) for row in range(len(rows.ids))]
    inputs = MemoryInputs(text=text_table(numbers), label=label_table(rows.labels))
    inputs.opened = opened
    opened.measurement.tokenise = lambda text: as_tokens(rows.ids)
    return [batch for name, batch in gradient.compute(inputs) if name == "gradient"]


def linear_sizes(opened: Any) -> list[int]:
    """Numbers of each linear weight, in the order of the network's modules."""
    modules = opened.measurement.network.modules()
    return [m.weight.numel() for m in modules if isinstance(m, torch.nn.Linear)]


def save_head(settings: dict[str, Any]) -> None:
    """Writes the head that the stage draws, for the contestants that are not assay."""
    head = stage(settings, SMALL).open(MemoryInputs()).measurement.network.head
    np.savez(settings["head"], weight=head.weight.numpy(), bias=head.bias.numpy())


def contestant(name: str, settings: dict[str, Any]) -> Contestant:
    """The stage `gradient` shard by shard, or its forward passes alone."""
    projection = SMALL if name in ("assay", "forward") else Projection()
    precision = "bfloat16" if name == "assay_bfloat16" else "float32"
    gradient = stage(settings, projection, precision)
    opened = gradient.open(MemoryInputs())
    shard = settings["shard_size"]

    def features(rows: Rows) -> int:
        starts = range(0, len(rows.ids), shard)
        shards = (computed(gradient, opened, rows.part(start, start + shard)) for start in starts)
        return sum(batch["vector"].flatten().nbytes for batches in shards for batch in batches)

    def forward(rows: Rows) -> int:
        for start in range(0, len(rows.ids), shard):
            tokens = as_tokens(rows.ids[start : start + shard])
            with torch.inference_mode():
                for batch in batches(tokens.lengths, settings["token_budget"]):
                    opened.measurement.outputs(opened.measurement.batch(tokens, batch))
        return 0

    def gradients(rows: Rows) -> list[np.ndarray]:
        exact = stage(settings, EXACT, precision)
        loaded = exact.open(MemoryInputs())
        table = pa.Table.from_batches(computed(exact, loaded, rows)).sort_by("id")
        return np.split(matrix_of(table["vector"]), np.cumsum(linear_sizes(loaded))[:-1], axis=1)

    if name == "forward":
        return Contestant(forward, None, ("transformers",))
    return Contestant(features, gradients, ("transformers",))
