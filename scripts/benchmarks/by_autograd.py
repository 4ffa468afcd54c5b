"""Forward and backward passes as a user of torch and transformers writes them.

Also the network of every contestant that is not assay: the same trunk, mean and head.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from benchmarks.contestant import Contestant, Rows
from torch import Tensor, nn

BATCH_ROWS = 32


class Network(nn.Module):
    """BERT without a pooler, the mean over real tokens, and a linear head.

    `for_hooks` gives the head an axis of one token, for hooks that ask one of every layer.
    `for_vmap` spreads the mask over heads and tokens before the trunk sees it: the trunk otherwise
    looks whether any token is masked, which vmap cannot answer. Neither changes a logit.
    """

    def __init__(
        self, trunk: nn.Module, head: nn.Linear, for_hooks: bool = False, for_vmap: bool = False
    ) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.for_hooks, self.for_vmap = for_hooks, for_vmap

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits (rows, classes)."""
        seen = attention_mask[:, None, None, :].bool() if self.for_vmap else attention_mask
        hidden = self.trunk(
            input_ids=input_ids, attention_mask=seen, token_type_ids=token_type_ids
        ).last_hidden_state
        weight = attention_mask.to(hidden.dtype).unsqueeze(-1)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.head(mean[:, None])[:, 0] if self.for_hooks else self.head(mean)
        return logits


def load(settings: dict[str, Any], for_hooks: bool = False, for_vmap: bool = False) -> Network:
    """The network in eval mode, float32, where only the weights of linear layers are trained."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    trunk = transformers.AutoModel.from_pretrained(
        settings["model"],
        local_files_only=True,
        dtype=torch.float32,
        attn_implementation="sdpa",
        add_pooling_layer=False,
    )
    with np.load(settings["head"]) as saved:
        head = nn.Linear(saved["weight"].shape[1], saved["weight"].shape[0])
        head.weight = nn.Parameter(torch.from_numpy(saved["weight"]))
        head.bias = nn.Parameter(torch.from_numpy(saved["bias"]))
    network = Network(trunk, head, for_hooks, for_vmap).eval().requires_grad_(False)
    for weight in linear_weights(network).values():
        weight.requires_grad_(True)
    return network


def linear_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all linear layers by parameter name, in the order of the modules."""
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }


def batches(rows: Rows, n_rows: int = BATCH_ROWS) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids and mask, padded to the longest row, and labels; rows in the order given."""
    for start in range(0, len(rows.ids), n_rows):
        part = rows.part(start, start + n_rows)
        longest = max(len(ids) for ids in part.ids)
        ids = torch.zeros(len(part.ids), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, real in enumerate(part.ids):
            ids[row, : len(real)] = torch.tensor(real)
            mask[row, : len(real)] = 1
        yield ids, mask, torch.from_numpy(part.labels)


def by_length(rows: Rows) -> Rows:
    """The rows, shortest first."""
    order = sorted(range(len(rows.ids)), key=lambda row: len(rows.ids[row]))
    return Rows([rows.ids[row] for row in order], rows.labels[order])


def gradients(rows: Rows, settings: dict[str, Any]) -> list[np.ndarray]:
    """Each row's gradient of the loss by every linear weight: one pass per row, no padding."""
    network = load(settings)
    weights = list(linear_weights(network).values())
    per_row = []
    for ids, mask, labels in batches(rows, 1):
        loss = nn.functional.cross_entropy(network(ids, mask), labels)
        per_row.append([g.flatten().numpy() for g in torch.autograd.grad(loss, weights)])
    return [np.stack(arrays) for arrays in zip(*per_row, strict=True)]


def contestant(name: str, settings: dict[str, Any]) -> Contestant:
    """One pass forward and back for the summed loss of 32 rows, all linear weights trained."""
    network = load(settings)

    def features(rows: Rows) -> int:
        for ids, mask, labels in batches(by_length(rows) if name == "plain_sorted" else rows):
            loss = nn.functional.cross_entropy(network(ids, mask), labels, reduction="sum")
            loss.backward()
            network.zero_grad()
        return 0

    return Contestant(features, None, ("transformers",))
