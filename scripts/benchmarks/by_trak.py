"""TRAK's features: per-row gradients by vmap, projected by one dense random matrix.

`TRAKer.featurize` with the package's own task for text and its projector for CPUs, float32, and
gradients with respect to the weights of the linear layers. The projector draws its matrix anew for
every batch, 100 columns at a time, so the cost of a row depends on the rows in a batch.

The task measures the logit's margin, whose gradient is that of the loss divided by -(1 - p), p the
probability of the label; TRAK keeps the factor beside the features.
"""

import logging
import tempfile
from typing import Any

import numpy as np
import torch
from benchmarks.by_autograd import batches, linear_weights, load
from benchmarks.contestant import Contestant, Rows
from trak import TRAKer
from trak.projectors import NoOpProjector


def contestant(name: str, settings: dict[str, Any]) -> Contestant:
    """Batches of as many rows as are given."""
    network = load(settings, for_vmap=True).requires_grad_(True)
    weights = list(linear_weights(network))

    def featurized(rows: Rows, projector: Any, folder: str) -> TRAKer:
        traker = TRAKer(
            model=network,
            task="text_classification",
            train_set_size=len(rows.ids),
            save_dir=folder,
            device="cpu",
            projector=projector,
            proj_dim=settings["projection_dim"],
            use_half_precision=False,
            grad_wrt=weights,
            logging_level=logging.ERROR,
        )
        traker.load_checkpoint(network.state_dict(), model_id=0)
        for ids, mask, labels in batches(rows, len(rows.ids)):
            traker.featurize([ids, torch.zeros_like(ids), mask, labels], num_samples=len(ids))
        return traker

    def features(rows: Rows) -> int:
        with tempfile.TemporaryDirectory() as folder:
            store = featurized(rows, None, folder).saver.current_store
            return int(store["grads"].nbytes)

    def gradients(rows: Rows) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            traker = featurized(rows, NoOpProjector(device="cpu"), folder)
            store = traker.saver.current_store
            scaled = np.array(store["grads"]) * float(traker.normalize_factor)
            scaled *= -np.array(store["out_to_loss"])
        sizes = [dict(network.named_parameters())[weight].numel() for weight in weights]
        return np.split(scaled, np.cumsum(sizes)[:-1], axis=1)

    return Contestant(features, gradients, ("traker", "transformers"), warms_up=False)
