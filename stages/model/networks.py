"""The networks that `forward` calls: a trunk that makes hidden states, and a head on top.

Each network takes the tensors of a batch by name and returns one row of outputs per row of text.
`trained_head` names the layers of the head that fine-tuning would train beside LoRA adapters.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stages.stage import ConfigError

IGNORED = -100
"""The target of a position without a token to predict, as everywhere in transformers."""


def mean_pool(
    hidden: Float[Tensor, "rows tokens dim"], mask: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows dim"]:
    """Average of each row's hidden states over its real tokens (mask 1), at least in float32."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1)


def weighted_pool(
    hidden: Float[Tensor, "rows tokens dim"], mask: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows dim"]:
    """The same, the t-th token of a row with weight t."""
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    weight = (mask.cumsum(1) * mask).to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1)


def widened(network: nn.Module) -> nn.Module:
    """The network, its half-precision weights turned to float32 in place: to explain words."""
    is_half = any(p.is_floating_point() and p.itemsize < 4 for p in network.parameters())
    return network.float() if is_half else network


class PooledNetwork(nn.Module):
    """A trunk, the mean over tokens of one of its hidden states, and a head on top.

    With `by_position` later tokens weigh more, see `weighted_pool`.

    `layer="all"` concatenates the means of all layers' hidden states, each of unit length, scaled
    so that an inner product of two outputs is the mean over layers of their cosines.
    """

    trained_head = ("head",)

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        layer: int | Literal["all"] = -1,
        by_position: bool = False,
    ) -> None:
        super().__init__()
        self.by_position = by_position
        self.trunk = trunk
        self.head = head
        self.layer = layer

    def forward(
        self, attention_mask: Int[Tensor, "rows tokens"], **batch: Tensor
    ) -> Float[Tensor, "rows outputs"]:
        """The head's output for each row."""
        every = self.layer != -1
        output = self.trunk(attention_mask=attention_mask, output_hidden_states=every, **batch)
        if self.layer == "all":
            means = [mean_pool(hidden, attention_mask) for hidden in output.hidden_states]
            unit = [nn.functional.normalize(mean, dim=1) for mean in means]
            vectors = torch.cat(unit, dim=1) / len(unit) ** 0.5
        else:
            hidden = output.hidden_states[self.layer] if every else output.last_hidden_state
            pool = weighted_pool if self.by_position else mean_pool
            vectors = pool(hidden, attention_mask)
        pooled: Tensor = self.head(vectors)
        return pooled


class CheckpointNetwork(nn.Module):
    """A sequence classifier or regressor as it was saved, returning its outputs alone.

    `order` holds the number of the output for each class of the corpus, None where they are in one
    order (`stages.model.class_names`).
    """

    def __init__(
        self, classifier: nn.Module, base: str, order: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.order = None if order is None else list(order)
        inner = [n for n, m in classifier.named_modules() if isinstance(m, nn.Linear)]
        outside = [name for name in inner if not name.startswith(f"{base}.")]
        self.trained_head = tuple(f"classifier.{name}" for name in outside)

    def forward(self, **batch: Tensor) -> Float[Tensor, "rows outputs"]:
        """The classifier's logits, in the order of the corpus's classes."""
        logits: Tensor = self.classifier(**batch).logits
        return logits if self.order is None else logits[:, self.order]


class MaskedWordNetwork(nn.Module):
    """A masked language model whose output layer has one row per label word."""

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.model = model
        self.trained_head = (f"model.{head}",)

    def forward(
        self, position: Int[Tensor, " rows"], **batch: Tensor
    ) -> Float[Tensor, "rows classes"]:
        """The label words' logits at each row's mask token."""
        logits = self.model(**batch).logits
        at_mask: Tensor = logits[torch.arange(len(position), device=logits.device), position]
        return at_mask


class NextWordNetwork(nn.Module):
    """The trunk of a causal language model, and an output layer with a row per word it can answer.

    The words are label words, or the whole vocabulary where next tokens are explained. The output
    layer reads the hidden state of one position of a row: the full vocabulary at every position
    would cost several times the trunk.
    """

    trained_head = ("head",)

    def __init__(self, trunk: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(
        self, position: Int[Tensor, " rows"], **batch: Tensor
    ) -> Float[Tensor, "rows classes"]:
        """The logits of the token that follows `position`, a row's last token."""
        hidden = self.trunk(**batch, use_cache=False).last_hidden_state
        read = hidden[torch.arange(len(position), device=hidden.device), position]
        logits: Tensor = self.head(read.to(self.head.weight.dtype))
        return logits


class LogLikelihood(torch.autograd.Function):
    """The log-likelihood in nats of one word at each position, from the logits of all words.

    As `logits.gather` less `logits.logsumexp`, to the last bit. With a large vocabulary the logits
    are the largest tensor of a batch; the backward pass makes one more of their size, where that of
    these two makes three.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Float[Tensor, "*positions words"], words: Int[Tensor, "*positions"]
    ) -> tuple[Float[Tensor, "*positions"], Float[Tensor, "*positions"]]:
        """The log-likelihood of `words`, and the logarithm of the sum that it is divided by."""
        log_total = logits.logsumexp(-1)
        return logits.gather(-1, words.unsqueeze(-1)).squeeze(-1) - log_total, log_total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps what the backward pass needs."""
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, slopes: Float[Tensor, "*positions"], _: Any
    ) -> tuple[Float[Tensor, "*positions words"], None]:
        """The slope times one at the word, less the probabilities of all."""
        logits, words, log_total = ctx.saved_tensors
        slopes = slopes.unsqueeze(-1)
        gradient = (logits - log_total.unsqueeze(-1)).exp_().mul_(-slopes)
        return gradient.scatter_add_(-1, words.unsqueeze(-1), slopes), None


class CompletionNetwork(nn.Module):
    """A causal language model; its output is the log-likelihood of each row's completion, in nats.

    `reduction="mean"` divides by the number of predicted tokens. Logits are computed at the
    positions of these alone.
    """

    trained_head = ()

    def __init__(
        self, trunk: nn.Module, head: nn.Linear, reduction: Literal["mean", "sum"]
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.reduction = reduction

    def forward(
        self, targets: Int[Tensor, "rows tokens"], **batch: Tensor
    ) -> Float[Tensor, "rows one"]:
        """The log-likelihood of each row; `targets` holds each position's next token, or -100."""
        is_predicted = targets != IGNORED
        counts = is_predicted.sum(1)
        # Each row's predicted positions first, in order, then others whose weight is zero.
        at = (~is_predicted).int().argsort(dim=1, stable=True)[:, : int(counts.max())]
        hidden = self.trunk(**batch, use_cache=False).last_hidden_state
        read = hidden.gather(1, at.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        words = targets.gather(1, at)
        weight = (words != IGNORED).float()
        logits = self.head(read).float()
        each, _ = LogLikelihood.apply(logits, words.clamp(min=0))  # type: ignore[no-untyped-call]
        total = (each * weight).sum(1)
        log_likelihood: Tensor = total / counts if self.reduction == "mean" else total
        return log_likelihood.unsqueeze(1)


class SpanNetwork(nn.Module):
    """A question-answering model: for each token the logits that the answer starts (0), ends (1).

    An answer is a piece of the text that the question is about: all other tokens have the least
    logit of the number type.
    """

    trained_head = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, is_context: Int[Tensor, "rows tokens"], **batch: Tensor
    ) -> Float[Tensor, "rows two tokens"]:
        """The start and end logits of each row; `is_context` marks the tokens of the text."""
        output = self.model(**batch)
        logits = torch.stack([output.start_logits, output.end_logits], dim=1)
        least = torch.finfo(logits.dtype).min
        return logits.masked_fill(is_context[:, None] == 0, least)


class TokenNetwork(nn.Module):
    """The trunk of a language model, whose output is the last hidden state of every token.

    Its attribute `head` is the output layer, which turns a hidden state to the next token's logits.

    Raises:
        ConfigError: the model was not loaded with its head for completions.
    """

    trained_head = ()

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        if not isinstance(whole, CompletionNetwork):
            raise ConfigError(
                f"model: found a {type(whole).__name__}, expected one with head: completion, whose "
                "tokens are read. Set it in model."
            )
        self.trunk, self.head = whole.trunk, whole.head

    def forward(self, **batch: Tensor) -> Float[Tensor, "rows tokens dim"]:
        """The last hidden state of each token."""
        hidden: Tensor = self.trunk(**batch, use_cache=False).last_hidden_state
        return hidden


class UpperNetwork(nn.Module):
    """A network without its lower blocks, whose hidden states are given in the batch.

    Each lower block is replaced by a function that returns these hidden states, so that the network
    around them makes masks and positions as it always does.
    """

    def __init__(self, network: nn.Module, lower: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self._states: Tensor | None = None
        for block in lower:
            block.forward = self._given_states

    def forward(
        self, hidden_states: Float[Tensor, "rows tokens dim"], **batch: Tensor
    ) -> Float[Tensor, "rows outputs"]:
        """The network's output for each row, from the hidden states behind the last lower block."""
        self._states = hidden_states
        output: Tensor = self.network(**batch)
        return output

    def _given_states(self, *_: Any, **__: Any) -> Tensor | None:
        return self._states


def attention_of(
    network: nn.Module, batch: Mapping[str, Tensor]
) -> Float[Tensor, "rows tokens tokens"]:
    """Weights of the last attention layer, the mean of its heads; a row's weights add up to 1.

    Raises:
        ConfigError: the network returns no attention weights.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        weights = [p for p in parts[1:] if isinstance(p, Tensor) and p.dim() == 4]
        kept[:] = weights or kept

    inner: Any = next((m for m in network.modules() if hasattr(m, "set_attn_implementation")), None)
    if inner is not None:
        # The fast kernels return no weights.
        inner.set_attn_implementation("eager")
    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        network(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not kept:
        raise ConfigError(
            f"attention: found a {type(network).__name__} that shows no attention weights, "
            "expected one that does. Leave attention out."
        )
    return kept[0].mean(1)
