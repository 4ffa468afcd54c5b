"""The neural tangent kernel of one class logit, exactly: nothing is projected.

k(x, x') is the inner product of the gradients of logit 0 with respect to the weights of all linear
layers. It is a sum over layers, and within a layer over its outputs, so one block of outputs of one
layer is formed for all rows at a time and never more. torch alone, none of assay's stages.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from benchmarks.by_autograd import Network, batches
from benchmarks.contestant import Rows
from torch import Tensor, nn

BLOCK_BYTES = 2**29
"""Of one block of gradients."""


class Kernel(NamedTuple):
    """Inner products of all rows with the first n, float64; examples come before queries."""

    products: Tensor
    """Shape (rows, n)."""
    lengths: Tensor
    """Norm of each row's gradient, shape (rows,)."""

    def cosines(self) -> Tensor:
        """The kernel of gradients of unit length; a zero gradient stays zero."""
        unit = torch.where(self.lengths > 0, self.lengths, 1.0)
        return self.products / unit[:, None] / unit[: self.products.shape[1]]


def kernel_of(blocks: Iterator[Tensor], n: int) -> Kernel:
    """The kernel of gradients that come in blocks of columns, each (rows, columns) float32."""
    products = squares = torch.zeros(0)
    for block in blocks:
        if not len(products):
            products = torch.zeros(len(block), n, dtype=torch.float64)
            squares = torch.zeros(len(block), dtype=torch.float64)
        products += (block @ block[:n].T).double()
        squares += block.square().sum(1).double()
    return Kernel(products, squares.sqrt())


def exact_kernel(network: Network, rows: Rows, n: int) -> Kernel:
    """The exact kernel of all rows with the first n.

    One pass forward and back per layer of the trunk; 2 rows n parameters operations, which is
    minutes for 2,000 rows; memory 4 tokens (inputs + outputs) bytes for the layers of one pass.
    """
    return kernel_of(_blocks(network, rows), n)


def _blocks(network: Network, rows: Rows) -> Iterator[Tensor]:
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    # Six layers, which are one layer of BERT, are recorded per pass.
    for start in range(0, len(linear), 6):
        recorded = _record(network, rows, linear[start : start + 6])
        for name in linear[start : start + 6]:
            inputs, deltas = recorded.pop(name)
            yield from _outer_products(inputs, deltas)


def _record(
    network: Network, rows: Rows, names: Sequence[str]
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Per layer, each row's inputs (tokens, in) and output gradients (tokens, out), no padding."""
    network.requires_grad_(False)
    kept: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in names}
    batch: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def after_forward(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(lambda delta: batch.update({name: (args[0].detach(), delta)}))

        return after_forward

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    for ids, mask, _ in batches(rows):
        network(ids, mask)[:, 0].sum().backward()
        lengths = mask.sum(1).tolist()
        for name, pair in batch.items():
            for tensor, list_of_rows in zip(pair, kept[name], strict=True):
                by_token = tensor if tensor.dim() == 3 else tensor[:, None]
                list_of_rows.extend(
                    row[:length].clone() for row, length in zip(by_token, lengths, strict=True)
                )
    for handle in handles:
        handle.remove()
    return kept


def _outer_products(inputs: list[Tensor], deltas: list[Tensor]) -> Iterator[Tensor]:
    """Each row's sum over tokens of delta_t a_t', some outputs at a time."""
    n_out, n_in = deltas[0].shape[1], inputs[0].shape[1]
    step = max(1, BLOCK_BYTES // (4 * len(inputs) * n_in))
    for start in range(0, n_out, step):
        stop = min(n_out, start + step)
        block = torch.empty(len(inputs), stop - start, n_in)
        for row, (a, delta) in enumerate(zip(inputs, deltas, strict=True)):
            torch.mm(delta[:, start:stop].T, a, out=block[row])
        yield block.flatten(1)
