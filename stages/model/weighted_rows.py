"""Rows of a training drawn by weight: the column that `select --soft` writes, in a Trainer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch.utils.data import WeightedRandomSampler

from stages.stage import ConfigError


def draw_by_weight(trainer: Any, weights: Sequence[float], seed: int | None = None) -> None:
    """Lets a Trainer draw the rows of every epoch by weight, with replacement.

    A row of weight w is drawn w / (sum of weights) of the time, and an epoch has as many draws as
    there are rows: of weights of mean 1, w times on the mean. A weight of 0 leaves the row out.

    Args:
        trainer: A `Trainer` of transformers, or one of TRL that neither packs nor streams its rows.
        weights: One for each row of its training set, in that order.
        seed: Of the draws; by default the Trainer's `data_seed` or `seed`.

    Raises:
        ConfigError: there are more or fewer weights than rows, or one is negative or no number, or
            all are 0.
    """
    given: Float64[np.ndarray, " rows"] = np.asarray(weights, np.float64)
    n_rows = len(trainer.train_dataset)
    if len(given) != n_rows:
        raise ConfigError(
            f"draw_by_weight: found {len(given)} weights, expected one for each of the {n_rows} "
            "rows that the Trainer has. Give those of its own rows, and do not pack them."
        )
    if not (np.isfinite(given).all() and (given >= 0).all() and given.any()):
        raise ConfigError(
            "draw_by_weight: found weights that are negative, no numbers, or all 0, expected "
            "numbers from 0 on. Give the column `weight` as `assay select` wrote it."
        )
    if seed is None:
        seed = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
    drawn = torch.Generator().manual_seed(seed)

    def sampler(train_dataset: Any = None) -> WeightedRandomSampler:
        return WeightedRandomSampler(given.tolist(), n_rows, generator=drawn)

    trainer._get_train_sampler = sampler
