"""A causal language model whose completions are measured; its output layer keeps every word."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from stages.model.batches import Tokens
from stages.model.heads.head import Explains, Head
from stages.model.networks import CompletionNetwork, NextWordNetwork
from stages.model.pretrained import load_causal
from stages.model.templates import tokenise_completions
from stages.stage import Inputs


class Completion(Head):
    """The log-likelihood of each row's completion; its loss is the negative."""

    tasks: ClassVar[tuple[str, ...]] = ("completion",)
    has_class_outputs: ClassVar[bool] = False
    explains: ClassVar[Explains] = "next_tokens"
    takes: ClassVar[tuple[str, ...]] = ("truncation_mode",)

    def load(self, tokenizer: Any, inputs: Inputs) -> tuple[nn.Module, int]:
        """The language model, whose rows have one output."""
        trunk, head = load_causal(self.spec)
        return CompletionNetwork(trunk, head, self.spec.reduction), 1

    def encode(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        pairs: Sequence[str | None],
        form: str,
        with_offsets: bool = False,
    ) -> Tokens:
        """Each row as the model is trained on it; see `tokenise_completions`."""
        longest, keeps_end = self.spec.max_length, self.spec.truncation_mode == "keep_end"
        return tokenise_completions(tokenizer, texts, pairs, form, longest, keeps_end, with_offsets)

    def of_embeddings(self, network: nn.Module) -> nn.Module:
        """The logits of the token that follows."""
        whole: Any = network
        return NextWordNetwork(whole.trunk, whole.head)

    def output_width(self, config: Any, n_classes: int) -> int | None:
        """Every word of the vocabulary."""
        return int(config.vocab_size)


HEAD = Completion
