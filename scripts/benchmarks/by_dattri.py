"""dattri's features: per-row gradients by vmap, projected by one dense random matrix.

`AttributionTask` and `random_project` as dattri's own TRAK calls them, with respect to the weights
of the linear layers. The matrix is drawn anew for every batch, 100 columns at a time, so the cost
of a row depends on the rows in a batch.
"""

from typing import Any

import numpy as np
import torch
from benchmarks.by_autograd import batches, linear_weights, load
from benchmarks.contestant import Contestant, Rows
from dattri.func.projection import random_project
from dattri.task import AttributionTask
from torch import Tensor, nn


def contestant(name: str, settings: dict[str, Any]) -> Contestant:
    """Batches of as many rows as are given."""
    network = load(settings, for_vmap=True).requires_grad_(True)
    weights = list(linear_weights(network))

    def loss(parameters: dict[str, Tensor], row: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        ids, mask, label = row
        logits = torch.func.functional_call(network, parameters, (ids[None], mask[None]))
        return nn.functional.cross_entropy(logits, label[None])

    task = AttributionTask(loss_func=loss, model=network, checkpoints=network.state_dict())
    gradient = task.get_grad_loss_func(in_dims=(None, 0), layer_name=weights, ckpt_idx=0)
    parameters, _ = task.get_param(ckpt_idx=0, layer_name=weights)

    def flat(rows: Rows) -> Tensor:
        ids, mask, labels = next(batches(rows, len(rows.ids)))
        found: Tensor = gradient(parameters, (ids, mask, labels)).detach()
        return found

    def features(rows: Rows) -> int:
        found = flat(rows)
        project = random_project(
            found, len(found), settings["projection_dim"], 32, proj_type="normal", device="cpu"
        )
        return int(project(found).numpy().nbytes)

    def gradients(rows: Rows) -> list[np.ndarray]:
        sizes = [dict(network.named_parameters())[weight].numel() for weight in weights]
        return np.split(flat(rows).numpy(), np.cumsum(sizes)[:-1], axis=1)

    return Contestant(features, gradients, ("dattri", "transformers"), warms_up=False)
