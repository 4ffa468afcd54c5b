"""Per-example gradients of linear layers, projected while they are made.

For a linear layer with input a_t and output gradient delta_t at token t, the gradient of its weight
is `G = sum_t delta_t a_t'`. With a matrix L for the outputs and R for the inputs
(`stages.gradients.sketch`), `L G R' = sum_t (L delta_t) (R a_t)'` needs two small products per
token and never forms G: the price is a backward pass without weight gradients.

`stages.model.layers` says which weights count. A weight used several times counts once, with the
sum of its gradients.

Source: Choe et al. 2023, arXiv:2405.13954, section 3 (projection inside the backward pass).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stages.gradients.projection import Precision, Projection
from stages.gradients.sketch import Layer, Sketch
from stages.model.layers import Shape, shape_of, tied_tables
from stages.stage import ModelError


class _LayerActivity(NamedTuple):
    """Inputs a_t and output gradients delta_t of a layer in one pass, one row per token."""

    inputs: Tensor
    deltas: Tensor


class Projector:
    """Projected gradients of scalar outputs, one per row, with respect to the layers' weights.

    Attributes:
        modules: The layers by name; two may share a weight.
        sketch: The projection of each weight, and the layout of a vector.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, nn.Module],
        projection: Projection,
        device: str = "cpu",
    ) -> None:
        """Draws the projections of these layers of the network; principal directions come later."""
        self.modules = dict(layers)
        self._tables = tied_tables(network, self.modules)
        weights: dict[int, tuple[str, Shape]] = {}
        for name, module in self.modules.items():
            weights.setdefault(id(module.weight), (name, shape_of(module)))
        self.sketch = Sketch(weights, projection, device)

    def calibrate(
        self, measure: Callable[[], Float[Tensor, " rows"]], mask: Bool[Tensor, "rows tokens"]
    ) -> None:
        """Makes later projections exact along the principal directions of one batch.

        `measure` runs the batch and returns one number per row, `mask` is true at its real tokens.
        """
        seen: dict[int, list[_LayerActivity]] = {key: [] for key in self.sketch.layers}
        with torch.enable_grad(), self._hooks(mask, torch.float32, seen=seen):
            torch.autograd.backward(measure().sum())
        for key, activities in seen.items():
            if activities:
                inputs = torch.cat([activity.inputs for activity in activities])
                deltas = torch.cat([activity.deltas for activity in activities])
                self.sketch.keep(key, inputs, deltas)

    def features(
        self,
        measure: Callable[[], Tensor],
        mask: Bool[Tensor, "rows tokens"],
        precision: Precision = "float32",
    ) -> tuple[Float[Tensor, "rows measured dim"], Float[Tensor, "rows measured"]]:
        """The projected gradient of each row's measured numbers, and the numbers themselves.

        `measure` runs one forward pass and returns one number per row, or (rows, measured); each
        column costs a backward pass. `mask` is true at real tokens, and padding contributes exactly
        nothing. Sign: the gradient of the number itself. Cost: a forward pass and backward passes
        to activations only; per token and layer O(k * (inputs + outputs + k)).

        Raises:
            ModelError: a layer's output is neither (rows, outputs) nor (rows, tokens, outputs).
        """
        sums: dict[int, Tensor] = {}
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        kind = mask.device.type
        with torch.enable_grad(), self._hooks(mask, dtype, sums=sums):
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                numbers = measure()
            numbers = numbers.unsqueeze(1) if numbers.dim() == 1 else numbers
            last = numbers.shape[1] - 1
            gradients = []
            for column in range(last + 1):
                sums.clear()
                torch.autograd.backward(numbers[:, column].sum(), retain_graph=column < last)
                gradients.append(self.sketch.join(sums, len(mask)))
        return torch.stack(gradients, dim=1), numbers.detach()

    @contextmanager
    def _hooks(
        self,
        mask: Bool[Tensor, "rows tokens"],
        dtype: torch.dtype,
        sums: dict[int, Tensor] | None = None,
        seen: dict[int, list[_LayerActivity]] | None = None,
    ) -> Iterator[None]:
        """While open, each pass adds projected blocks to `sums`, or layers' activity to `seen`."""
        has_padding = not bool(mask.all())
        sides = {
            key: tuple(
                None if side is None else side.to(dtype) for side in (layer.left, layer.right)
            )
            for key, layer in self.sketch.layers.items()
        }

        def record(key: int, layer: Layer, inputs: Tensor, delta: Tensor) -> None:
            if has_padding and delta.dim() == 3 and delta.shape[:2] == mask.shape:
                delta = delta.masked_fill(~mask.unsqueeze(-1), 0.0)
            if seen is not None:
                seen[key].append(_LayerActivity(inputs.flatten(0, -2), delta.flatten(0, -2)))
            elif sums is not None:
                block = outer_sum(delta.float(), inputs.float())
                sums[key] = sums[key] + block if key in sums else block

        def after_layer(module: nn.Module, args: tuple[Tensor], output: Any) -> None:
            key = id(module.weight)
            layer = self.sketch.layers[key]
            _check_shape(layer.name, output, mask)
            left, right = sides[key] if sums is not None else (None, None)
            inputs = args[0].detach()
            inputs = inputs if right is None else inputs.to(dtype) @ right
            _begin(output)

            def after_backward(delta: Tensor) -> None:
                delta = delta.detach()
                record(key, layer, inputs, delta if left is None else delta.to(dtype) @ left)

            output.register_hook(after_backward)

        def after_table(module: nn.Embedding, args: tuple[Tensor], output: Tensor) -> None:
            # The table's gradient at token t is e_token delta_t': in the layer's words the output
            # gradient is e_token, whose projection is a row of `left`, and the input is delta_t.
            key = id(module.weight)
            layer = self.sketch.layers[key]
            left, right = sides[key] if sums is not None else (None, None)
            ids = args[0]
            counts = mask if module.padding_idx is None else mask & (ids != module.padding_idx)
            _begin(output)

            def after_backward(delta: Tensor) -> None:
                delta = delta.detach() * counts.unsqueeze(-1)
                words = (
                    nn.functional.one_hot(ids, layer.shape.outputs).to(delta.dtype)
                    if left is None
                    else left[ids]
                )
                if seen is None:
                    record(key, layer, delta if right is None else delta.to(dtype) @ right, words)

            output.register_hook(after_backward)  # type: ignore[no-untyped-call]

        handles = [m.register_forward_hook(after_layer) for m in self.modules.values()]
        handles += [m.register_forward_hook(after_table) for m, _ in self._tables.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def outer_sum(
    delta: Float[Tensor, "rows *tokens outputs"], inputs: Float[Tensor, "rows *tokens inputs"]
) -> Float[Tensor, "rows outputs inputs"]:
    """sum_t delta_t a_t' of each row, over its tokens t if it has a dimension of tokens."""
    if delta.dim() == 3:
        return torch.bmm(delta.transpose(1, 2), inputs)
    return delta.unsqueeze(2) * inputs.unsqueeze(1)


def _begin(output: Tensor) -> None:
    """Makes the lowest trained layers' outputs the leaves: nothing below needs a gradient."""
    if not output.requires_grad:
        output.requires_grad_()


def _check_shape(name: str, output: Tensor, mask: Bool[Tensor, "rows tokens"]) -> None:
    """Raises unless a layer keeps rows apart.

    A head may read some of the tokens; any other layer reads all of them, or one position a row.
    """
    shape = tuple(output.shape[:-1])
    is_head = name.split(".")[0] == "head" and len(shape) == 2 and shape[0] == mask.shape[0]
    if not is_head and shape not in {tuple(mask.shape), (mask.shape[0],)}:
        raise ModelError(
            f"network: layer {name} returned shape {tuple(output.shape)} for a batch of shape "
            f"{tuple(mask.shape)}, expected (rows, tokens, outputs) or (rows, outputs). Use a "
            "model that keeps rows apart (no unpadding, no mixture of experts)."
        )
