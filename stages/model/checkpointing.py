"""Gradient checkpointing: blocks of a network that keep their inputs and are run again.

A backward pass needs the activations of the forward pass. Where blocks are checkpointed, only the
hidden states between them are kept; the backward pass runs each block a second time when it gets
there, and forgets what is inside behind it. Memory: the hidden states between blocks and the inside
of one block, in place of that of all. Cost: one more forward pass of the blocks. The second run
repeats the first, so that results are the same to the last bit.

Source: Chen et al. 2016, arXiv:1604.06174, section 4.1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers.cache_utils import Cache

from stages.model.heap import give_back
from stages.model.layers import blocks_of

TRIMMED = 4
"""Of so many blocks one gives the memory that was freed back to the system."""


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """While open, the blocks of the network's longest stack are checkpointed; others have none.

    To be open until the backward pass is over. The network must be in eval mode: nothing random is
    repeated.
    """
    has_stack = any(isinstance(module, nn.ModuleList) for module in network.modules())
    blocks = list(blocks_of(network, 0)[1]) if has_stack else []
    for at, block in enumerate(blocks):
        block.forward = _run_twice(block.forward, at % TRIMMED == 0)
    try:
        # Whole blocks, so that the hooks of all layers are called in the second run, too.
        with set_checkpoint_early_stop(False):
            yield
    finally:
        for block in blocks:
            del block.forward


def _run_twice(forward: Callable[..., Any], is_trimmed: bool) -> Callable[..., Any]:
    """`forward`, run again in the backward pass; `is_trimmed` gives freed memory back each time."""

    def run(*args: Any, **kwargs: Any) -> Any:
        # A cache remembers keys and values: a second run would add them twice.
        args = tuple(None if isinstance(a, Cache) else a for a in args)
        kwargs = {name: None if isinstance(a, Cache) else a for name, a in kwargs.items()}
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(once, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def once(*args: Any, **kwargs: Any) -> Any:
        given = forward(*args, **kwargs)
        if is_trimmed:
            give_back()
        return given

    return run
