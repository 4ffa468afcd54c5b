"""The head `label_words`: a language model that answers a prompt by one word per class.

Source: arXiv:2406.04606, section 2.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from stages.model.adapters import adapted
from stages.model.batches import Tokens
from stages.model.heads.head import Head
from stages.model.networks import MaskedWordNetwork, NextWordNetwork
from stages.model.pretrained import (
    linear,
    load_causal,
    load_config,
    load_whole,
    output_layer,
    refuse_other_logits,
)
from stages.model.spec import ModelSpec, Prompt
from stages.model.templates import label_word_ids, prompt_lengths, tokenise_prompts
from stages.stage import TASKS, ConfigError, Inputs, ModelError

# Parts of transformers that its own types leave out.
_auto: Any = transformers


class LabelWords(Head):
    """A masked or causal language model whose output layer is cut down to the label words."""

    corpora: ClassVar[tuple[str, ...]] = tuple(task for task in TASKS if task != "preference")
    takes: ClassVar[tuple[str, ...]] = ("prompt",)

    @classmethod
    def check(cls, spec: ModelSpec) -> None:
        """See `Head.check`; `prompt` is required."""
        if spec.prompt is None:
            raise ConfigError(
                f"model: found head: {spec.head} without prompt, expected a prompt for head: "
                "label_words and for no other. Set or remove prompt."
            )
        super().check(spec)

    @functools.cached_property
    def is_masked(self) -> bool:
        """Whether the prompt is answered at a mask; otherwise behind its last token.

        Raises:
            ModelError: the checkpoint is neither a masked nor a causal language model.
        """
        config = load_config(self.spec)
        named = " ".join(config.architectures or [])
        if type(config) in _auto.MODEL_FOR_MASKED_LM_MAPPING and "CausalLM" not in named:
            return True
        if type(config) in _auto.MODEL_FOR_CAUSAL_LM_MAPPING:
            return False
        raise ModelError(
            f"{self.spec.path}: found a {type(config).__name__}, expected a masked or causal "
            "language model. Set head: probe, or name a language model."
        )

    @property
    def _prompt(self) -> Prompt:
        if self.spec.prompt is None:
            raise ConfigError("model: found no prompt, expected one. Set prompt.")
        return self.spec.prompt

    def load(self, tokenizer: Any, inputs: Inputs | None) -> tuple[nn.Module, int]:
        """The language model, and the number of label words.

        The rows of the output layer are copied: a head of its own, not tied to the embedding
        tables.

        Raises:
            ModelError: the output layer is not linear, or more than that.
        """
        spec = self.spec
        ids = label_word_ids(tokenizer, self._prompt.label_words)
        if not self.is_masked:
            trunk, head = load_causal(spec)
            return NextWordNetwork(trunk, _rows(head, ids)), len(ids)
        network = load_whole(spec, _auto.AutoModelForMaskedLM, "a masked language model")
        network = adapted(spec, network)
        sample = torch.tensor([tokenizer("a b c")["input_ids"]])
        with torch.no_grad():
            wanted = network(input_ids=sample).logits[..., ids]
        head = output_layer(spec, network)
        name = next(name for name, module in network.named_modules() if module is head)
        network.config.tie_word_embeddings = False
        network.set_output_embeddings(_rows(head, ids).to(head.weight.dtype))
        try:
            with torch.no_grad():
                found = network(input_ids=sample).logits
        except RuntimeError as error:
            raise ModelError(
                f"{spec.path}: found an output layer that cannot be cut down to the label words "
                f"({error}), expected a linear layer alone. Set head: probe."
            ) from error
        refuse_other_logits(spec, found, wanted)
        return MaskedWordNetwork(network, name), len(ids)

    def encode(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        pairs: Sequence[str | None],
        form: str,
        with_offsets: bool = False,
    ) -> Tokens:
        """The tokens of each row inside the template; see `tokenise_prompts`."""
        longest = self.spec.max_length
        return tokenise_prompts(
            tokenizer, self._prompt, texts, pairs, longest, self.is_masked, with_offsets
        )

    def lengths(
        self, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> list[int]:
        """See `Head.lengths`."""
        return prompt_lengths(tokenizer, self._prompt, texts, pairs, self.is_masked)

    def refusals(
        self, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> list[str | None]:
        """None for every row: a prompt has tokens of its own.

        Raises:
            ConfigError: the rows are conversations, which have no place in a prompt.
        """
        if form == "messages":
            raise ConfigError(
                "model: found head: label_words with a corpus of conversations, expected texts for "
                "its prompt. Set head: completion, or name a column of texts in corpus."
            )
        return [None] * len(texts)

    def reads_pairs(self, form: str) -> bool:
        """Whether every row needs a second text: the template names it, or the form has it."""
        return super().reads_pairs(form) or "text_b" in self._prompt.template


def _rows(head: Any, ids: Sequence[int]) -> nn.Linear:
    """A linear layer of copies of the output layer's rows for these token ids."""
    weight: Tensor = head.weight[ids]
    bias = head.bias[ids] if getattr(head, "bias", None) is not None else torch.zeros(len(ids))
    return linear(weight.detach().clone(), bias.detach().clone())


HEAD = LabelWords
