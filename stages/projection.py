"""Per-example gradients of linear layers, projected while they are made.

For a linear layer with input a_t and output gradient delta_t at token t, the gradient of its weight
is `G = sum_t delta_t a_t'`. With one Gaussian matrix L for the outputs and one R for the inputs,
`L G R' = sum_t (L delta_t) (R a_t)'` needs two small products per token and never forms G: the
price is a backward pass without weight gradients. Each layer's k x k block then goes through a
Gaussian block of its own to `projection_dim`, and the blocks are summed.

Entries are N(0, 1/k): the expected inner product of two projected gradients is the inner product of
the gradients. A side that is no longer than k is kept as it is, and so is the concatenation of all
blocks when it is no longer than `projection_dim`: projecting upward would add noise for nothing.
Matrices are drawn on the CPU from the seed and the layer's name alone, so that neither the device,
nor the other layers, nor their order change a layer's projection.

**What is in theta**: the weights of all `nn.Linear` layers, the head's included. Biases, layer
norms (a few thousandths of an encoder's parameters) and embedding tables (lookups, with no input to
project) are left out. A weight used several times, or by several layers, counts once
with the sum of its gradients.

Source: Choe et al. 2023, arXiv:2405.13954, section 3 (projection inside the backward pass).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.batching import Tokens, batches
from stages.measurement import Measurement, ModelSpec, load_measurement, network_size
from stages.stage import ConfigError, Cost, Inputs, ModelError, Work


class Layer(NamedTuple):
    """How one weight is projected.

    `left` (outputs, k) and `right` (inputs, k) are None where a side is kept; `dense`
    (block, projection_dim) is None where blocks are concatenated, each from `start`.
    """

    name: str
    left: Tensor | None
    right: Tensor | None
    dense: Tensor | None
    start: int
    size: int


def gaussian(
    seed: int, name: str, n_rows: int, n_columns: int
) -> Float[Tensor, "n_rows n_columns"]:
    """Independent N(0, 1 / n_columns) entries that depend on the arguments alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    entries = torch.randn(n_rows, n_columns, generator=generator)
    return entries.div_(n_columns**0.5)


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a network by name, in module order.

    Raises:
        ModelError: there is none; or weights of another kind of layer would be left out silently;
            or a weight is shared with an embedding table, whose part of the gradient is not seen.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    foreign = [n for n, m in network.named_modules() if isinstance(m, Conv1D)]
    if foreign or not layers:
        raise ModelError(
            f"network: found {len(foreign)} Conv1D and {len(layers)} nn.Linear layers, expected "
            "nn.Linear only. Use a model whose layers are nn.Linear (GPT-2's are not)."
        )
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    shared = [name for name, layer in layers.items() if id(layer.weight) in tables]
    if shared:
        raise ModelError(
            f"network: found the weight of {shared[0]} shared with an embedding table, expected "
            "weights of their own. Use a classification head instead of a language model's."
        )
    return layers


class Projector:
    """Projected gradients of scalar outputs, one per row, with respect to linear weights.

    Attributes:
        dim: Length of a feature vector.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Linear],
        layer_projection: int | None = None,
        projection_dim: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        for name, value in (
            ("layer_projection", layer_projection),
            ("projection_dim", projection_dim),
        ):
            if value is not None and value < 1:
                raise ConfigError(
                    f"projection: found {name}: {value}, expected a positive number, or null for "
                    "no projection. Raise it."
                )
        blocks, self.dim = block_sizes(
            [(layer.in_features, layer.out_features) for layer in _distinct(layers).values()],
            layer_projection,
            projection_dim,
        )
        is_dense = self.dim != sum(blocks)
        self.modules = dict(layers)
        self._layers: dict[int, Layer] = {}
        start = 0
        for (name, module), size in zip(_distinct(layers).items(), blocks, strict=True):

            def draw(side: str, length: int, k: int | None, name: str = name) -> Tensor | None:
                if k is None or k >= length:
                    return None
                return gaussian(seed, f"{name}/{side}", length, k).to(device)

            self._layers[id(module.weight)] = Layer(
                name,
                left=draw("left", module.out_features, layer_projection),
                right=draw("right", module.in_features, layer_projection),
                dense=gaussian(seed, f"{name}/dense", size, self.dim).to(device)
                if is_dense
                else None,
                start=start,
                size=size,
            )
            start += size

    def features(
        self, measure: Callable[[], Float[Tensor, " rows"]], mask: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows dim"]:
        """Projected gradient of each row's output.

        `measure` runs one forward pass and returns one number per row; `mask` is true at real
        tokens, and padding contributes exactly nothing. Sign: the gradient of the output itself.
        Cost: a forward pass and a backward pass to activations only; per token and layer
        O(k * (inputs + outputs + k)), per row and layer O(k^2 * projection_dim).

        Raises:
            ModelError: a layer's output is neither (rows, outputs) nor (rows, tokens, outputs).
        """
        features = torch.zeros(mask.shape[0], self.dim, device=mask.device)
        with torch.enable_grad(), self._hooks(features, mask):
            torch.autograd.backward(measure().sum())
        return features

    @contextmanager
    def _hooks(
        self, features: Float[Tensor, "rows dim"], mask: Bool[Tensor, "rows tokens"]
    ) -> Iterator[None]:
        def after_forward(module: nn.Module, args: tuple[Tensor], output: Any) -> None:
            layer = self._layers[id(module.weight)]
            _check_shape(layer.name, output, mask)
            inputs = args[0].detach()
            inputs = inputs if layer.right is None else inputs @ layer.right
            # The first layers' outputs become the leaves: nothing below them needs a gradient.
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(lambda delta: _add(features, layer, inputs, delta, mask))

        handles = [m.register_forward_hook(after_forward) for m in self.modules.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def block_sizes(
    shapes: Sequence[tuple[int, int]], layer_projection: int | None, projection_dim: int | None
) -> tuple[list[int], int]:
    """Numbers per layer after its two small projections, and the length of a feature vector.

    `shapes` holds the inputs and outputs of each layer.
    """
    blocks = [
        min(n_in, layer_projection or n_in) * min(n_out, layer_projection or n_out)
        for n_in, n_out in shapes
    ]
    return blocks, min(sum(blocks), projection_dim or sum(blocks))


class Projected(NamedTuple):
    """What a stage of projected gradients loads once per worker."""

    measurement: Measurement
    projector: Projector


def load_projected(
    model: ModelSpec,
    inputs: Inputs,
    layer_projection: int | None,
    projection_dim: int | None,
    seed: int,
) -> Projected:
    """The classifier, and the projections of all its linear layers."""
    measurement = load_measurement(model, inputs)
    layers = linear_layers(measurement.network)
    projector = Projector(layers, layer_projection, projection_dim, seed, measurement.device)
    return Projected(measurement, projector)


def projected_cost(
    model: ModelSpec,
    work: Work,
    layer_projection: int | None,
    projection_dim: int | None,
    token_budget: int,
) -> Cost:
    """One forward and one weight-free backward pass per row, and the projections."""
    size = network_size(model, work.n_classes)
    n_rows = work.n_examples + work.n_queries
    blocks, dim = block_sizes(size.linear, layer_projection, projection_dim)
    per_token = 0.0
    for n_in, n_out in size.linear:
        right, left = (min(n, layer_projection or n) for n in (n_in, n_out))
        per_token += 2.0 * (n_in * right + n_out * left + left * right)
    dense = sum(blocks) * dim if dim < sum(blocks) else 0
    widths = sum(n_in + n_out for n_in, n_out in size.linear)
    # Attention, norms and activations keep about as much again as the linear layers.
    kept_bytes = 4 * token_budget * 2 * widths
    return Cost(
        forward_rows=n_rows,
        backward_rows=n_rows,
        flops=2 * size.forward_flops(work.n_tokens)
        + work.n_tokens * per_token
        + 2.0 * n_rows * dense,
        written_bytes=n_rows * (4 * dim + 16),
        memory_bytes=size.forward_bytes(token_budget) + kept_bytes + 4 * dense,
    )


def project_rows(
    measurement: Measurement,
    projector: Projector,
    tokens: Tokens,
    token_budget: int,
    measured: Callable[[Float[Tensor, "batch classes"], Int[np.ndarray, " batch"]], Tensor],
) -> Iterator[tuple[Int[np.ndarray, " batch"], Float[np.ndarray, "batch dim"]]]:
    """Features of all rows, batch by batch, each with its row numbers.

    `measured(logits, rows)` gives the number per row whose gradient is wanted.
    """

    def measure(
        batch: Mapping[str, Tensor], rows: Int[np.ndarray, " batch"]
    ) -> Float[Tensor, " batch"]:
        return measured(measurement.outputs(batch), rows)

    for rows in batches(tokens.lengths, token_budget):
        batch = measurement.batch(tokens, rows)
        mask = batch["attention_mask"].bool()
        features = projector.features(partial(measure, batch, rows), mask)
        yield rows, features.cpu().numpy()


def _add(
    features: Float[Tensor, "rows dim"],
    layer: Layer,
    inputs: Float[Tensor, "rows *tokens right"],
    delta: Float[Tensor, "rows *tokens outputs"],
    mask: Bool[Tensor, "rows tokens"],
) -> None:
    delta = delta.detach()
    delta = delta if layer.left is None else delta @ layer.left
    if delta.dim() == 3:
        delta = delta.masked_fill(~mask.unsqueeze(-1), 0.0)
        block = torch.bmm(delta.transpose(1, 2), inputs)
    else:
        block = delta.unsqueeze(2) * inputs.unsqueeze(1)
    flat = block.flatten(1)
    if layer.dense is None:
        features[:, layer.start : layer.start + layer.size] += flat
    else:
        features.addmm_(flat, layer.dense)


def _check_shape(name: str, output: Tensor, mask: Bool[Tensor, "rows tokens"]) -> None:
    shape = tuple(output.shape[:-1])
    if shape not in {tuple(mask.shape), (mask.shape[0],)}:
        raise ModelError(
            f"network: layer {name} returned shape {tuple(output.shape)} for a batch of shape "
            f"{tuple(mask.shape)}, expected (rows, tokens, outputs) or (rows, outputs). Use a "
            "model that keeps rows apart (no unpadding, no mixture of experts)."
        )


def _distinct(layers: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    """Layers by the first name of each weight."""
    by_weight: dict[int, str] = {}
    for name, layer in layers.items():
        by_weight.setdefault(id(layer.weight), name)
    return {name: layers[name] for name in by_weight.values()}
