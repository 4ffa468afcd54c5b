"""bergson's per-row gradients, both sides of a layer projected to 16.

`StreamingGradientCollector` hooks the linear layers and leaves one (rows, 16 * 16) array per layer
in `mod_grads` after each backward pass. As in bergson's own loop, the weights are frozen and the
embedding table alone asks for a gradient, so that torch calls the hooks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from benchmarks.by_autograd import batches, by_length, linear_weights, load
from benchmarks.contestant import Contestant, Rows
from bergson.collector.gradient_collectors import StreamingGradientCollector
from bergson.gradients import GradientProcessor
from torch import nn


def contestant(name: str, settings: dict[str, Any]) -> Contestant:
    """Batches of 32 rows, in the order given or sorted by length."""
    network = load(settings, for_hooks=True)
    network.requires_grad_(False)
    network.trunk.get_input_embeddings().requires_grad_(True)
    is_sorted = name == "bergson_sorted"
    layers = [weight.removesuffix(".weight") for weight in linear_weights(network)]

    def collector(projection_dim: int | None) -> StreamingGradientCollector:
        return StreamingGradientCollector(
            model=network,
            processor=GradientProcessor({}, projection_dim=projection_dim),
            dtype=torch.float32,
        )

    def collected(
        hooks: StreamingGradientCollector, rows: Rows
    ) -> Iterator[dict[str, torch.Tensor]]:
        for ids, mask, labels in batches(rows):
            with hooks.with_batch(mask.bool()):
                loss = nn.functional.cross_entropy(network(ids, mask), labels, reduction="sum")
                loss.backward()
                network.zero_grad()
            yield dict(hooks.mod_grads)
            hooks.mod_grads.clear()

    # Kept, because it draws its random matrices once and holds them.
    projecting = collector(16)

    def features(rows: Rows) -> int:
        return sum(
            torch.cat([batch[layer] for layer in layers], 1).numpy().nbytes
            for batch in collected(projecting, by_length(rows) if is_sorted else rows)
        )

    def gradients(rows: Rows) -> list[np.ndarray]:
        per_batch = list(collected(collector(None), rows))
        return [torch.cat([batch[layer] for batch in per_batch]).numpy() for layer in layers]

    return Contestant(features, gradients, ("bergson", "transformers"))
