"""A question-answering model: where in a text the answer to a question starts and ends."""

from collections.abc import Sequence
from typing import Any, ClassVar

import transformers
from torch import nn

from stages.model.adapters import adapted
from stages.model.batches import Tokens, tokenise_questions
from stages.model.heads.head import Explains, Head
from stages.model.networks import SpanNetwork
from stages.model.pretrained import load_whole
from stages.stage import Inputs

# Parts of transformers that its own types leave out.
_auto: Any = transformers


class Span(Head):
    """Two logits for each token of the text: the answer starts, or ends, there; no loss."""

    corpora: ClassVar[tuple[str, ...]] = ("question_answering",)
    tasks: ClassVar[tuple[str, ...]] = ()
    has_class_outputs: ClassVar[bool] = False
    explains: ClassVar[Explains] = "answer"

    def load(self, tokenizer: Any, inputs: Inputs) -> tuple[nn.Module, int]:
        """The model as it was saved, whose rows have two distributions."""
        loader = _auto.AutoModelForQuestionAnswering
        network = load_whole(self.spec, loader, "a question-answering model")
        return SpanNetwork(adapted(self.spec, network)), 2

    def encode(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        pairs: Sequence[str | None],
        form: str,
        with_offsets: bool = False,
    ) -> Tokens:
        """Each question, which is the second text, and then the text it asks about."""
        return tokenise_questions(tokenizer, pairs, texts, self.spec.max_length)

    def reads_pairs(self, form: str) -> bool:
        """Every text needs its question."""
        return True

    def output_width(self, config: Any, n_classes: int) -> int | None:
        """Start and end."""
        return 2


HEAD = Span
