"""Per-example gradients of linear layers, projected while they are made.

For a linear layer with input a_t and output gradient delta_t at token t, the gradient of its weight
is `G = sum_t delta_t a_t'`. With a matrix L for the outputs and R for the inputs
(`stages.gradients.sketch`), `L G R' = sum_t (L delta_t) (R a_t)'` needs two small products per
token and never forms G: the price is a backward pass without weight gradients.

`stages.model.layers` says which weights count. A weight used several times counts once, with the
sum of its gradients.

Source: Choe et al. 2023, arXiv:2405.13954, section 3 (projection inside the backward pass).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stages.gradients.adam import Moments
from stages.gradients.projection import Projection
from stages.gradients.sketch import Sketch
from stages.model.checkpointing import checkpointed
from stages.model.heap import give_back
from stages.model.layers import Shape, scale_of, shape_of, tied_tables
from stages.model.precision import Precision, mixed
from stages.stage import ModelError

NUMBERS = 2**24
"""Numbers of a layer's whole gradients that are held at a time, or those of one row."""


class RowsTogether(ModelError):
    """A layer takes rows of a batch together, so that each needs a pass of its own."""


class _LayerActivity(NamedTuple):
    """Inputs a_t and output gradients delta_t of a layer in one use, (rows, tokens, numbers)."""

    inputs: Tensor
    deltas: Tensor


class _Kept(torch.autograd.Function):
    """A tensor kept in the graph as activations are: with a checkpointed block made once more."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tensor: Tensor) -> Tensor:
        """A number that is never used, whose node has `tensor` among its `saved_tensors`."""
        ctx.save_for_backward(tensor)
        return anchor.clone()


@dataclass
class _Passing:
    """Whether layers are called for a second time, by blocks that are checkpointed."""

    is_second: bool = False


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
        self._network = network
        self.modules = dict(layers)
        self._tables = tied_tables(network, self.modules)
        self._scales = {id(table): scale_of(table) for table, _ in self._tables.values()}
        weights: dict[int, tuple[str, Shape]] = {}
        for name, module in self.modules.items():
            weights.setdefault(id(module.weight), (name, shape_of(module)))
        self.sketch = Sketch(weights, projection, device)

    def calibrate(
        self, measure: Callable[[], Float[Tensor, " rows"]], mask: Bool[Tensor, "rows tokens"]
    ) -> None:
        """Makes later projections exact along the principal directions of one batch.

        `measure` runs the batch and returns one number per row, `mask` is true at its real tokens.
        The network's blocks are checkpointed and each layer is done with where the backward pass
        gets to it. Memory: the hidden states between blocks and the inside of one block.
        """

        def keep(key: int, seen: Sequence[_LayerActivity]) -> None:
            inputs, deltas = zip(*seen, strict=True)
            self.sketch.keep(
                key,
                _joined([part.flatten(0, -2) for part in inputs]),
                _joined([part.flatten(0, -2) for part in deltas]),
            )

        with checkpointed(self._network):
            self._activities(measure, mask, keep, are_apart=False)
        give_back()

    def steps(
        self,
        measure: Callable[[], Float[Tensor, " rows"]],
        mask: Bool[Tensor, "rows tokens"],
        moments: Mapping[int, Moments],
        precision: Precision = "float32",
    ) -> tuple[Float[Tensor, "rows one dim"], Float[Tensor, "rows one"]]:
        """The projected step of Adam on each row's measured number alone, and the numbers.

        As `features`, with Gamma (`stages.gradients.adam`) of the gradient in its place. That works
        number by number, so a layer's gradient has to be formed before it is projected: of a few
        rows at a time, with `NUMBERS` numbers. Memory beside: the inputs and output gradients of a
        layer, and without checkpointed blocks the inputs of all trained layers. A weight that a
        number does not depend on moves, too, by what Adam remembers.

        Raises:
            ModelError: a trained weight is that of an embedding table, too.
        """
        if self._tables:
            raise ModelError(
                f"network: found that {', '.join(self._tables)} shares its weight with a trained "
                "layer, expected layers of their own, whose gradient Adam can be taken of row by "
                "row. Leave that layer out by train.layers, or train adapters."
            )
        blocks: dict[int, Tensor] = {}

        def step(key: int, seen: Sequence[_LayerActivity]) -> None:
            layer, parts = self.sketch.layers[key], []
            shape = (layer.shape.outputs, layer.shape.inputs)
            per_block = max(1, NUMBERS // (shape[0] * shape[1]))
            for start in range(0, len(mask), per_block):
                rows = slice(start, start + per_block)
                formed = mask.new_zeros((len(mask[rows]), *shape), dtype=torch.float32)
                for inputs, deltas in seen:
                    formed += outer_sum(deltas[rows].float(), inputs[rows].float())
                formed = moments[key].step(formed)
                formed = formed if layer.right is None else formed @ layer.right
                parts.append(formed if layer.left is None else layer.left.T @ formed)
            blocks[key] = _joined(parts)

        numbers = self._activities(measure, mask, step, precision)
        for key in self.sketch.layers.keys() - blocks.keys():
            step(key, ())
        return self.sketch.join(blocks, len(mask)).unsqueeze(1), numbers.unsqueeze(1)

    def _activities(
        self,
        measure: Callable[[], Float[Tensor, " rows"]],
        mask: Bool[Tensor, "rows tokens"],
        take: Callable[[int, Sequence[_LayerActivity]], None],
        precision: Precision = "float32",
        are_apart: bool = True,
    ) -> Float[Tensor, " rows"]:
        """Runs a batch both ways; `take` is given what each weight did once it is known.

        That is the activity of each of its uses, rows apart unless nothing asks for it, padding
        without a gradient. Returns the measured numbers.
        """
        seen: dict[int, list[_LayerActivity]] = {}
        # How often the backward pass has still to get to a weight.
        to_come: Counter[int] = Counter()

        def after_layer(module: nn.Module, args: tuple[Tensor], output: Any) -> None:
            key = id(module.weight)
            kept = _of_row(args[0].detach(), mask)
            inputs = _Kept.apply(anchor, kept).grad_fn  # type: ignore[no-untyped-call]
            if passing.is_second:
                return
            to_come[key] += 1

            def after_backward(delta: Tensor) -> None:
                delta = _without(padding, _of_row(delta.detach(), mask))
                seen.setdefault(key, []).append(_LayerActivity(inputs.saved_tensors[0], delta))
                to_come[key] -= 1
                if to_come[key] == 0:
                    take(key, seen.pop(key))

            output.register_hook(after_backward)

        padding, anchor = _padding(mask), torch.zeros((), requires_grad=True)
        hooks = self._hooks(mask, after_layer, are_apart=are_apart)
        with torch.enable_grad(), hooks as passing:
            with mixed(mask.device, precision):
                numbers = measure()
            passing.is_second = True
            torch.autograd.backward(numbers.sum())
        for key in list(seen):
            take(key, seen.pop(key))
        return numbers.detach()

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
        padding = _padding(mask)
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        sides = {
            key: tuple(
                None if side is None else side.to(dtype) for side in (layer.left, layer.right)
            )
            for key, layer in self.sketch.layers.items()
        }

        def record(key: int, inputs: Tensor, delta: Tensor) -> None:
            block = outer_sum(_without(padding, delta).float(), inputs.float())
            sums[key] = sums[key] + block if key in sums else block

        def after_layer(module: nn.Module, args: tuple[Tensor], output: Any) -> None:
            if passing.is_second:
                return
            key = id(module.weight)
            left, right = sides[key]
            inputs = _of_row(args[0].detach(), mask)
            inputs = inputs if right is None else inputs.to(dtype) @ right

            def after_backward(delta: Tensor) -> None:
                delta = _of_row(delta.detach(), mask)
                record(key, inputs, delta if left is None else delta.to(dtype) @ left)

            output.register_hook(after_backward)

        def after_table(module: nn.Embedding, args: tuple[Tensor], output: Tensor) -> None:
            # The table's gradient at token t is e_token delta_t', times what it scales its rows by:
            # in the layer's words the output gradient is e_token, whose projection is a row of
            # `left`, and the input is delta_t.
            key, scale = id(module.weight), self._scales[id(module)]
            left, right = sides[key]
            n_words = self.sketch.layers[key].shape.outputs
            ids = args[0]
            counts = mask if module.padding_idx is None else mask & (ids != module.padding_idx)
            _begin(output)

            def after_backward(delta: Tensor) -> None:
                delta = scale * delta.detach() * counts.unsqueeze(-1)
                words = (
                    nn.functional.one_hot(ids, n_words).to(delta.dtype)
                    if left is None
                    else left[ids]
                )
                record(key, delta if right is None else delta.to(dtype) @ right, words)

            output.register_hook(after_backward)  # type: ignore[no-untyped-call]

        with torch.enable_grad(), self._hooks(mask, after_layer, after_table) as passing:
            with mixed(mask.device, precision):
                numbers = measure()
            passing.is_second = True
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
        after_layer: Callable[[Any, Any, Any], None],
        after_table: Callable[[Any, Any, Any], None] | None = None,
        are_apart: bool = True,
    ) -> Iterator["_Passing"]:
        """While open, the functions are called after the layers, and the tables they share."""

        def checked(module: nn.Module, args: tuple[Tensor], output: Any) -> None:
            if are_apart:
                _check_shape(self.sketch.layers[id(module.weight)].name, output, mask)
            _begin(output)
            after_layer(module, args, output)

        handles = [m.register_forward_hook(checked) for m in self.modules.values()]
        if after_table is not None:
            handles += [m.register_forward_hook(after_table) for m, _ in self._tables.values()]
        try:
            yield _Passing()
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


def _padding(mask: Bool[Tensor, "rows tokens"]) -> Bool[Tensor, "rows tokens"] | None:
    """True at padding; None where there is none."""
    return None if bool(mask.all()) else ~mask


def _without(padding: Bool[Tensor, "rows tokens"] | None, delta: Tensor) -> Tensor:
    """Output gradients of a layer, zero at padding."""
    if padding is None or delta.dim() < 3 or delta.shape[:2] != padding.shape:
        return delta
    return delta.masked_fill(padding.unsqueeze(-1), 0.0)


def _of_row(tensor: Tensor, mask: Bool[Tensor, "rows tokens"]) -> Tensor:
    """Of a lone row whatever a layer is given or returns, as (1, tokens, numbers)."""
    if len(mask) > 1 or (len(tensor) == 1 and tensor.dim() in (2, 3)):
        return tensor
    return tensor.reshape(1, -1, tensor.shape[-1])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _begin(output: Tensor) -> None:
    """Makes the lowest trained layers' outputs the leaves: nothing below needs a gradient."""
    if not output.requires_grad:
        output.requires_grad_()


def _check_shape(name: str, output: Tensor, mask: Bool[Tensor, "rows tokens"]) -> None:
    """Raises unless a layer keeps rows apart, as it does where there is one.

    A head may read some of the tokens; any other layer reads all of them, or one position a row.

    Raises:
        RowsTogether: it does not: positions that all rows share, tokens of all rows in one list.
    """
    shape = tuple(output.shape[:-1])
    is_head = name.split(".")[0] == "head" and len(shape) == 2 and shape[0] == mask.shape[0]
    if len(mask) > 1 and not is_head and shape not in {tuple(mask.shape), (mask.shape[0],)}:
        raise RowsTogether(
            f"network: layer {name} returned shape {tuple(output.shape)} for a batch of shape "
            f"{tuple(mask.shape)}, expected (rows, tokens, outputs) or (rows, outputs). Use a "
            "model whose layers keep rows apart."
        )
