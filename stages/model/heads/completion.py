"""The head `completion`: a causal language model whose completions are measured."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from stages.corpus.preferences import SIDE_FORMS
from stages.model.batches import Tokens
from stages.model.heads.head import Explains, Head
from stages.model.networks import CompletionNetwork, NextWordNetwork
from stages.model.pretrained import load_causal
from stages.model.refusals import WITHOUT, TextCheck, chat_refusal
from stages.model.templates import row_pieces, tokenise_completions
from stages.stage import DataError, Inputs


class Completion(Head):
    """A model whose output is a completion's log-likelihood; its loss is the negative.

    Of a preference the completions are both of its sides (`stages.corpus.preferences`).
    """

    tasks: ClassVar[tuple[str, ...]] = ("completion", "preference")
    has_class_outputs: ClassVar[bool] = False
    explains: ClassVar[Explains] = "next_tokens"
    takes: ClassVar[tuple[str, ...]] = ("truncation_mode",)

    def load(self, tokenizer: Any, inputs: Inputs | None) -> tuple[nn.Module, int]:
        """The language model, and the number of its outputs, 1."""
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
        """The tokens of each row as the model is trained on them; see `tokenise_completions`.

        Raises:
            DataError: rows are pairs, which the model reads side by side.
        """
        if form in SIDE_FORMS:
            raise DataError(
                "text: found pairs of answers, expected rows with one answer each. Use a stage "
                "that works on task: preference."
            )
        longest, keeps_end = self.spec.max_length, self.spec.truncation_mode == "keep_end"
        return tokenise_completions(tokenizer, texts, pairs, form, longest, keeps_end, with_offsets)

    def lengths(
        self, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> list[int]:
        """See `Head.lengths`."""
        rows = zip(texts, pairs, strict=True)
        return [sum(len(p.ids) for p in row_pieces(tokenizer, *row, form)) for row in rows]

    def refusals(
        self, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> list[str | None]:
        """See `Head.refusals`; of a conversation the reason that the chat template gives."""
        if form == "messages":
            rows = zip(texts, pairs, strict=True)
            return [chat_refusal(tokenizer, text, tools) for text, tools in rows]
        check = TextCheck(tokenizer)
        parts = [("text", texts)]
        if form == "prompt_completion":
            parts = [("completion", [pair or "" for pair in pairs]), ("prompt", texts)]
        refused: list[str | None] = [None] * len(texts)
        for what, column in parts:
            for row, part in enumerate(column):
                reason = check.refusal(part)
                # A prompt may be empty.
                if (
                    reason is not None
                    and refused[row] is None
                    and (what, reason) != ("prompt", WITHOUT)
                ):
                    refused[row] = f"{what} {reason}"
        return refused

    def of_embeddings(self, network: nn.Module) -> nn.Module:
        """The network whose outputs are the logits of the token that follows a row."""
        whole: Any = network
        return NextWordNetwork(whole.trunk, whole.head)

    def output_width(self, config: Any, n_classes: int) -> int | None:
        """The size of the vocabulary."""
        return int(config.vocab_size)


HEAD = Completion
