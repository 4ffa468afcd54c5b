"""The head `random`: a layer of random weights on the trunk's mean-pooled hidden states."""

from typing import Any, ClassVar

import torch
from torch import nn

from stages.model.heads.head import Head
from stages.model.networks import PooledNetwork
from stages.model.pretrained import linear, load_trunk
from stages.model.spec import ModelSpec
from stages.stage import ConfigError, Inputs


class Random(Head):
    """A trunk with a linear layer of random weights on its mean-pooled last hidden states.

    Weights are normal of variance 1 / dim, drawn with the seed of the model; biases are 0.
    """

    takes: ClassVar[tuple[str, ...]] = ("num_labels",)
    is_on_trunk: ClassVar[bool] = True

    @classmethod
    def check(cls, spec: ModelSpec) -> None:
        """See `Head.check`; `num_labels`, the number of outputs, is required."""
        if spec.num_labels is None:
            raise ConfigError(
                f"model: found head: {spec.head} with num_labels: None, expected num_labels for "
                "head: random and for no other. Set or remove num_labels."
            )
        if spec.num_labels < 1:
            raise ConfigError(
                f"model: found num_labels: {spec.num_labels}, expected at least 1. Raise it."
            )
        super().check(spec)

    def load(self, tokenizer: Any, inputs: Inputs | None) -> tuple[nn.Module, int]:
        """The trunk with the layer on top, and the number of its outputs."""
        trunk = load_trunk(self.spec)
        dim, n_outputs = int(trunk.config.hidden_size), self.spec.num_labels or 0
        generator = torch.Generator().manual_seed(self.spec.seed)
        weight = torch.randn(n_outputs, dim, generator=generator) / dim**0.5
        return PooledNetwork(trunk, linear(weight, torch.zeros(n_outputs))), n_outputs


HEAD = Random
