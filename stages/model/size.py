"""The size of a model, from its config alone: parameters, operations and bytes."""

from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from stages.model.heads.head import head_of
from stages.model.hub import as_model_error, quiet, resolve
from stages.model.layers import shape_of
from stages.model.pretrained import (
    DTYPES,
    encoder_of,
    load_config,
    load_tokenizer,
    longest_row,
    without_pooler,
)
from stages.model.spec import ModelSpec

# Parts of transformers that its own types leave out.
_auto: Any = transformers
_logging: Any = logging


class NetworkSize(NamedTuple):
    """The number of a network's parameters and the shapes of its linear layers."""

    n_parameters: int
    dim: int
    """Length of a hidden state."""
    n_states: int
    """Number of hidden states: one behind the embedding tables and one behind each layer."""
    linear: tuple[tuple[int, int], ...]
    """Inputs and outputs of each linear layer."""
    weight_bytes: int = 4
    """Of one weight in memory."""

    def forward_flops(self, n_tokens: int) -> float:
        """Operations of a forward pass: two per linear weight and token, without attention's."""
        return 2.0 * n_tokens * sum(n_in * n_out for n_in, n_out in self.linear)

    def forward_bytes(self, token_budget: int) -> int:
        """Memory of a forward pass: the weights and four times a batch's widest activations."""
        widest = max(n_in + n_out for n_in, n_out in self.linear)
        return self.weight_bytes * self.n_parameters + 16 * token_budget * widest


def network_size(model: ModelSpec, n_classes: int | None) -> NetworkSize:
    """The size of the network for `n_classes`, or of its trunk alone (None).

    No weight is read or allocated.
    """
    config = load_config(model)
    head, is_trunk = head_of(model), n_classes is None
    name = "AutoModel" if is_trunk else head.architecture
    trust = {"trust_remote_code": model.trust_remote_code}
    unused = without_pooler(config) if name == "AutoModel" else {}
    with torch.device("meta"), quiet():
        network = getattr(_auto, name).from_config(config, **trust, **unused)
        network = encoder_of(network) if name == "AutoModel" else network
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | Conv1D)]
    linear = [(shape.inputs, shape.outputs) for shape in map(shape_of, layers)]
    width = None if n_classes is None else head.output_width(config, n_classes)
    if width is not None:
        linear.append((config.hidden_size, width))
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    dtype = DTYPES[model.dtype]
    dtype = (config.dtype or torch.float32) if dtype == "auto" else dtype
    return NetworkSize(
        n_parameters,
        int(config.hidden_size),
        int(config.num_hidden_layers) + 1,
        tuple(linear),
        dtype.itemsize,
    )


def most_tokens(model: ModelSpec) -> int:
    """The most tokens that a row of the model may have; no weight is read or allocated.

    Raises:
        ModelError: its network is of another kind than the head, or there is no tokenizer.
    """
    folder, name = resolve(model), head_of(model).architecture
    config = load_config(model)
    with torch.device("meta"), quiet(), as_model_error(folder, "a network"):
        network = getattr(_auto, name).from_config(
            config, trust_remote_code=model.trust_remote_code
        )
    return longest_row(network, load_tokenizer(model))
