"""The trained layers of a network, and the embedding tables that share their weights.

Trained are the weights of `nn.Linear` and of the `Conv1D` of GPT-2. Biases, norms (a few
thousandths of an encoder's parameters) and embedding tables (lookups) are left out, with one
exception: where a trained output layer shares its weight with an embedding table, as in many causal
language models, both uses count, as it is a single weight. With `last_blocks` the table lies below
the trained blocks, so such an output layer is left out.
"""

import fnmatch
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.model.spec import Trained
from stages.stage import ConfigError, ModelError

Named = TypeVar("Named")

CONVOLUTIONS = (nn.Conv1d, nn.ConvTranspose1d)
"""Layers whose weights have three axes and are no stack of matrices."""


class Shape(NamedTuple):
    """The lengths of a linear layer's input and output vectors."""

    inputs: int
    outputs: int


def shape_of(layer: nn.Module) -> Shape:
    """The input and output lengths of a linear layer or a Conv1D."""
    rows, columns = layer.weight.shape  # type: ignore[misc]
    return Shape(int(rows), int(columns)) if transposes(layer) else Shape(columns, rows)


def transposes(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight as (inputs, outputs), as the Conv1D of GPT-2 does."""
    return isinstance(layer, Conv1D)


def trained_layers(network: nn.Module, trained: Trained) -> dict[str, nn.Module]:
    """The layers whose weights `trained` selects, by name, in module order.

    Raises:
        ConfigError: no layer matches the patterns, or the network has too few blocks.
        ModelError: the patterns select weights that are in no such layer, as those of experts.
    """
    candidates: dict[str, nn.Module] = {
        n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | Conv1D)
    }
    head = set(getattr(network, "trained_head", ()))
    # Fresh adapters have B = 0, so that the gradient of A is exactly zero.
    counted = (".lora_B.",) if trained.lora is not None else (".lora_A.", ".lora_B.")
    if any(".lora_B." in name for name in candidates):
        candidates = {
            n: m for n, m in candidates.items() if any(c in n for c in counted) or n in head
        }
    if trained.last_blocks is not None:
        candidates = _above(network, candidates, trained.last_blocks)
        tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
        candidates = {n: m for n, m in candidates.items() if id(_weight(m)) not in tables}
    chosen = {
        n: m
        for n, m in candidates.items()
        if any(fnmatch.fnmatchcase(n, pattern) for pattern in trained.layers)
    }
    if not any(".lora_B." in name for name in candidates):
        _refuse_stacked(network, trained)
    if not chosen:
        raise ConfigError(
            f"train: found no layer that fits layers: {list(trained.layers)} among "
            f"{len(candidates)} ({', '.join(list(candidates)[:3])}, ...), expected at least one. "
            "Correct the patterns."
        )
    return chosen


def _refuse_stacked(network: nn.Module, trained: Trained) -> None:
    """Raises where matrices in a stack are selected, as a mixture of experts keeps its weights.

    They would be left out without a word.

    Raises:
        ModelError: there is such a stack.
    """
    weights = dict(network.named_parameters())
    if trained.last_blocks is not None:
        weights = _above(network, weights, trained.last_blocks)
    for name, weight in weights.items():
        owner = network.get_submodule(name.rpartition(".")[0])
        is_stack = weight.dim() == 3 and len(weight) > 1 and not isinstance(owner, CONVOLUTIONS)
        if is_stack and any(fnmatch.fnmatchcase(name, pattern) for pattern in trained.layers):
            raise ModelError(
                f"train: found {name}, {len(weight)} matrices in a stack, as of a mixture of "
                "experts, expected weights of linear layers that every token passes. Name such by "
                "train.layers, for example ['*attn*'], or train LoRA adapters (train.lora)."
            )


def tied_tables(
    network: nn.Module, layers: dict[str, nn.Module]
) -> dict[str, tuple[nn.Embedding, Tensor]]:
    """The embedding tables that share their weight with a trained layer, and that weight, by name.

    Raises:
        ModelError: the layer is a Conv1D, which keeps the weight transposed.
    """
    weights = {id(_weight(layer)): layer for layer in layers.values()}
    tied = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and id(module.weight) in weights:
            layer = weights[id(module.weight)]
            if isinstance(layer, Conv1D):
                raise ModelError(
                    f"network: found the weight of the embedding table {name} in a Conv1D, "
                    "expected it in an nn.Linear or no other layer. Leave it out by train.layers."
                )
            tied[name] = (module, module.weight)
    return tied


def scale_of(table: nn.Embedding) -> float:
    """What an embedding table multiplies the rows by that it looks up, as of Gemma; of most 1.

    Raises:
        ModelError: it does something else to them.
    """
    if type(table).forward is nn.Embedding.forward:
        return 1.0
    with torch.no_grad():
        # One of padding may be zero.
        longest = table.weight[:64].float().norm(dim=1).argmax(0, keepdim=True)
        row, found = table.weight[longest].float(), table(longest).float()
        scale = float((row * found).sum() / row.square().sum())
    if not torch.allclose(found, scale * row, rtol=torch.finfo(table.weight.dtype).eps ** 0.5):
        raise ModelError(
            f"network: found an embedding table, {type(table).__name__}, that gives no multiples "
            "of its rows, expected one that scales them at most. Use another model."
        )
    return scale


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def blocks_of(network: nn.Module, last_blocks: int) -> tuple[str, nn.ModuleList]:
    """Name and blocks of the longest stack of blocks in the network.

    Raises:
        ConfigError: it has fewer than `last_blocks`, or there is none.
    """
    lists = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.ModuleList)]
    blocks = max(lists, key=lambda item: (len(item[1]), -item[0].count(".")), default=None)
    if blocks is None or last_blocks > len(blocks[1]):
        raise ConfigError(
            f"train: found last_blocks: {last_blocks} for a network with "
            f"{len(blocks[1]) if blocks else 0} blocks, expected at most as many. Lower it."
        )
    return blocks


def parameters_above(network: nn.Module, last_blocks: int) -> dict[str, nn.Parameter]:
    """All parameters of the last blocks and of the layers above them, biases and norms included.

    Raises:
        ConfigError: as `blocks_of`.
    """
    tables = {
        id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    return {
        n: p
        for n, p in _above(network, dict(network.named_parameters()), last_blocks).items()
        if id(p) not in tables
    }


def _above(network: nn.Module, named: dict[str, Named], last_blocks: int) -> dict[str, Named]:
    """Of the `named` modules or parameters, those in the last blocks or in layers above them.

    Layers above are all that are neither in a block nor in the embeddings.
    """
    name, stack = blocks_of(network, last_blocks)
    lower = [f"{name}.{i}." for i in range(len(stack) - last_blocks)]
    return {
        n: m
        for n, m in named.items()
        if not any(n.startswith(prefix) for prefix in lower)
        and not ("embed" in n and not n.startswith(f"{name}."))
    }
