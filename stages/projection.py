"""Per-example gradients of linear layers, projected while they are made.

For a linear layer with input a_t and output gradient delta_t at token t, the gradient of its weight
is `G = sum_t delta_t a_t'`. With a matrix L for the outputs and R for the inputs, `L G R' = sum_t
(L delta_t) (R a_t)'` needs two small products per token and never forms G: the price is a backward
pass without weight gradients. The blocks of all layers are joined, and then hashed to `dim` numbers
with random signs (or multiplied by a Gaussian matrix).

Each side keeps a few **principal directions** exactly and projects the rest at random, so that the
expected inner product of two projected gradients is that of the gradients. Activations share large
components that would otherwise drown in the noise of the projection what tells rows apart. The
directions are those of random tokens sent through the network: they depend on the model, the
measured output and the seed, on no row of the corpus. On 256 rows of SST-2 with MiniLM they raise
the correlation of off-diagonal kernel entries from 0.960 to 0.972 (`scripts/bench.py projection`).

A side that is no longer than its projection is kept as it is, and so are the joined blocks where
they are no longer than `dim`: projecting upward would add noise for nothing. Matrices are drawn on
the CPU from the seed and the layer's name alone, so that neither the device, nor the other layers,
nor their order change a layer's projection.

`stages.trained` says which weights count. A weight used several times counts once, with the sum of
its gradients.

Sources: Choe et al. 2023, arXiv:2405.13954, section 3 (projection inside the backward pass);
Weinberger et al. 2009, arXiv:0902.2206 (hashing with signs). The principal directions are ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stages.drawing import gaussian, generator_of
from stages.stage import ConfigError, ModelError
from stages.trained import Shape, shape_of, tied_tables

Precision = Literal["float32", "bfloat16"]
LONGEST_SIDE = 16384
"""A longer side, such as a vocabulary, gets no principal directions."""
ITERATIONS = 6
"""Of subspace iteration: the directions need not be exact, only the same each time."""


@dataclass(frozen=True)
class Projection:
    """How gradients are made short; all null keeps every number, for oracles and small models."""

    inputs: int | None = 48
    """Numbers that the inputs of a layer are projected to; null keeps all."""
    outputs: int | None = 24
    """Numbers that its output gradients are projected to; null keeps all."""
    principal: int = 4
    """Directions of each side that are kept exactly; at most half of the side's numbers are, so
    that enough of them are left for the rest."""
    dim: int | None = 8192
    """Length of a feature vector; null joins the layers' blocks, inputs x outputs numbers each."""
    final: Literal["sparse", "dense"] = "sparse"
    """How the joined blocks are brought to `dim`: hashed with random signs at no cost, or by a
    Gaussian matrix that must be held and multiplied, with the same error."""
    seed: int = 0
    """Seed of all projections; with one seed, features of `gradient` and `ntk` share a space."""

    def __post_init__(self) -> None:
        """Refuses lengths that are not positive."""
        for name in ("inputs", "outputs", "dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"projection: found {name}: {value}, expected a positive number, or null for "
                    "no projection. Raise it."
                )
        if self.principal < 0:
            raise ConfigError(
                f"projection: found principal: {self.principal}, expected 0 or more. Raise it."
            )

    def block(self, shape: Shape) -> tuple[int, int]:
        """Numbers that the outputs and the inputs of a layer are kept in."""
        return (
            min(shape.outputs, self.outputs or shape.outputs),
            min(shape.inputs, self.inputs or shape.inputs),
        )

    def length(self, shapes: Sequence[Shape]) -> int:
        """Length of a feature vector for layers of these shapes."""
        joined = sum(left * right for left, right in map(self.block, shapes))
        return min(joined, self.dim or joined)


class Layer(NamedTuple):
    """How one weight is projected: `left` (outputs, k), `right` (inputs, k), None to keep all."""

    name: str
    shape: Shape
    left: Tensor | None
    right: Tensor | None


class _Seen(NamedTuple):
    """Inputs and output gradients of a layer, one row per token."""

    inputs: Tensor
    deltas: Tensor


def with_principal(
    drawn: Float[Tensor, "n k"], principal: Float[Tensor, "n r"]
) -> Float[Tensor, "n k"]:
    """A projection that keeps orthonormal `principal` exactly and draws the rest of its columns.

    With P = U U' + (I - U U') S, the expected P P' is the identity: inner products stay unbiased.
    That needs k > r: with no column left to draw, what is not along `principal` would be lost.
    """
    r, k = principal.shape[1], drawn.shape[1]
    rest = drawn[:, r:] * (k / (k - r)) ** 0.5
    return torch.cat([principal, rest - principal @ (principal.T @ rest)], dim=1)


def principal_directions(
    rows: Float[Tensor, "rows n"], count: int, start: Float[Tensor, "n count"]
) -> Float[Tensor, "n count"]:
    """Orthonormal columns near the `count` leading right singular vectors of `rows`."""
    basis: Tensor = torch.linalg.qr(start)[0]
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis))[0]
    return basis


class Projector:
    """Projected gradients of scalar outputs, one per row, with respect to the layers' weights.

    Attributes:
        dim: Length of a feature vector.
        blocks: Name, start and size of each layer's part of a vector; one part named "all" where
            the layers are mixed.
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
        self._projection, self._device = projection, device
        self._layers: dict[int, Layer] = {}
        for name, module in self.modules.items():
            if id(module.weight) in self._layers:
                continue
            shape = shape_of(module)
            left, right = projection.block(shape)
            self._layers[id(module.weight)] = Layer(
                name,
                shape,
                left=self._draw(f"{name}/left", shape.outputs, left),
                right=self._draw(f"{name}/right", shape.inputs, right),
            )
        self._sizes = {key: _size(layer) for key, layer in self._layers.items()}
        joined = sum(self._sizes.values())
        self.dim = min(joined, projection.dim or joined)
        self._is_mixed = self.dim < joined
        self._hash = self._dense = None
        if self._is_mixed and projection.final == "sparse":
            self._hash = self._draw_hash()
        elif self._is_mixed:
            names = {layer.name: self._sizes[key] for key, layer in self._layers.items()}
            drawn = [gaussian(projection.seed, f"{n}/dense", s, self.dim) for n, s in names.items()]
            self._dense = torch.cat(drawn).to(device)

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """Which part of a vector belongs to which layer."""
        if self._is_mixed:
            return [{"name": "all", "start": 0, "size": self.dim}]
        parts, start = [], 0
        for key, layer in self._layers.items():
            parts.append({"name": layer.name, "start": start, "size": self._sizes[key]})
            start += self._sizes[key]
        return parts

    def calibrate(
        self, measure: Callable[[], Float[Tensor, " rows"]], mask: Bool[Tensor, "rows tokens"]
    ) -> None:
        """Keeps from now on the principal directions of the batch that `measure` runs."""
        count = self._projection.principal
        seen: dict[int, list[_Seen]] = {key: [] for key in self._layers}
        with torch.enable_grad(), self._hooks(mask, torch.float32, seen=seen):
            torch.autograd.backward(measure().sum())
        for key, layer in self._layers.items():
            if not seen[key]:
                continue
            inputs = torch.cat([s.inputs for s in seen[key]])
            deltas = torch.cat([s.deltas for s in seen[key]])
            self._layers[key] = layer._replace(
                left=self._keep(layer.left, deltas, f"{layer.name}/left", count),
                right=self._keep(layer.right, inputs, f"{layer.name}/right", count),
            )

    def features(
        self,
        measure: Callable[[], Tensor],
        mask: Bool[Tensor, "rows tokens"],
        precision: Precision = "float32",
    ) -> tuple[Float[Tensor, "rows measured dim"], Float[Tensor, "rows measured"]]:
        """Projected gradient of each row's numbers, and the numbers.

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
            found = []
            for column in range(last + 1):
                sums.clear()
                torch.autograd.backward(numbers[:, column].sum(), retain_graph=column < last)
                found.append(self._join(sums, len(mask)))
        return torch.stack(found, dim=1), numbers.detach()

    def _join(self, sums: Mapping[int, Tensor], n_rows: int) -> Float[Tensor, "rows dim"]:
        parts = [
            sums[key].flatten(1)
            if key in sums
            else torch.zeros(n_rows, self._sizes[key], device=self._device)
            for key in self._layers
        ]
        if self._hash is not None:
            order, starts, signs = self._hash
            columns = torch.cat([part.T for part in parts])
            hashed = nn.functional.embedding_bag(
                order, columns, starts, mode="sum", per_sample_weights=signs
            )
            return hashed.T
        joined = torch.cat(parts, dim=1)
        return joined if self._dense is None else joined @ self._dense

    def _draw(self, name: str, length: int, k: int) -> Tensor | None:
        if k >= length:
            return None
        return gaussian(self._projection.seed, name, length, k).to(self._device)

    def _draw_hash(self) -> tuple[Tensor, Tensor, Tensor]:
        """Joined numbers in the order of the place they are hashed to, its bounds, their signs."""
        places, signs = [], []
        for key, layer in self._layers.items():
            generator = generator_of(f"{self._projection.seed}/{layer.name}/hash")
            size = (self._sizes[key],)
            places.append(torch.randint(self.dim, size, generator=generator))
            signs.append(torch.randint(2, size, generator=generator) * 2.0 - 1.0)
        place = torch.cat(places)
        order = place.argsort(stable=True)
        starts = torch.searchsorted(place[order], torch.arange(self.dim))
        drawn = torch.cat(signs)[order]
        return order.to(self._device), starts.to(self._device), drawn.to(self._device)

    def _keep(self, drawn: Tensor | None, rows: Tensor, name: str, count: int) -> Tensor | None:
        if drawn is None:
            return None
        # Without a random column, what is not along a direction would be lost: a biased kernel.
        count = min(count, drawn.shape[1] // 2)
        if count == 0 or len(drawn) > LONGEST_SIDE or not rows.any():
            return drawn
        start = gaussian(self._projection.seed, f"{name}/start", len(drawn), count)
        return with_principal(
            drawn, principal_directions(rows.float(), count, start.to(rows.device))
        )

    @contextmanager
    def _hooks(
        self,
        mask: Bool[Tensor, "rows tokens"],
        dtype: torch.dtype,
        sums: dict[int, Tensor] | None = None,
        seen: dict[int, list[_Seen]] | None = None,
    ) -> Iterator[None]:
        """While open, every pass adds its blocks to `sums`, or what layers saw to `seen`."""
        has_padding = not bool(mask.all())
        sides = {
            key: tuple(None if side is None else side.to(dtype) for side in layer[2:])
            for key, layer in self._layers.items()
        }

        def record(key: int, layer: Layer, inputs: Tensor, delta: Tensor) -> None:
            if has_padding and delta.dim() == 3 and delta.shape[:2] == mask.shape:
                delta = delta.masked_fill(~mask.unsqueeze(-1), 0.0)
            if seen is not None:
                seen[key].append(_Seen(inputs.flatten(0, -2), delta.flatten(0, -2)))
            elif sums is not None:
                block = outer_sum(delta.float(), inputs.float())
                sums[key] = sums[key] + block if key in sums else block

        def after_layer(module: nn.Module, args: tuple[Tensor], output: Any) -> None:
            key = id(module.weight)
            layer = self._layers[key]
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
            layer = self._layers[key]
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
    """The sum over each row's tokens of the outer products of its two vectors."""
    if delta.dim() == 3:
        return torch.bmm(delta.transpose(1, 2), inputs)
    return delta.unsqueeze(2) * inputs.unsqueeze(1)


def _begin(output: Tensor) -> None:
    """Makes the lowest trained layers' outputs the leaves: nothing below needs a gradient."""
    if not output.requires_grad:
        output.requires_grad_()


def _size(layer: Layer) -> int:
    left = layer.shape.outputs if layer.left is None else layer.left.shape[1]
    right = layer.shape.inputs if layer.right is None else layer.right.shape[1]
    return int(left * right)


def _check_shape(name: str, output: Tensor, mask: Bool[Tensor, "rows tokens"]) -> None:
    """A head may read some of the tokens; any other layer sees all of them, or one place a row."""
    shape = tuple(output.shape[:-1])
    is_head = name.split(".")[0] == "head" and len(shape) == 2 and shape[0] == mask.shape[0]
    if not is_head and shape not in {tuple(mask.shape), (mask.shape[0],)}:
        raise ModelError(
            f"network: layer {name} returned shape {tuple(output.shape)} for a batch of shape "
            f"{tuple(mask.shape)}, expected (rows, tokens, outputs) or (rows, outputs). Use a "
            "model that keeps rows apart (no unpadding, no mixture of experts)."
        )
