"""The head `span`: a question-answering model, for start and end of an answer in a text."""

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
    """A model with two logits for each token of the text: the answer starts, or ends, there.

    It has no loss.
    """

    corpora: ClassVar[tuple[str, ...]] = ("question_answering",)
    tasks: ClassVar[tuple[str, ...]] = ()
    has_class_outputs: ClassVar[bool] = False
    explains: ClassVar[Explains] = "answer"

    def load(self, tokenizer: Any, inputs: Inputs | None) -> tuple[nn.Module, int]:
        """The saved model, and the number of its distributions over tokens, 2."""
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
        """The tokens of each question, which is the second text, and then of the text."""
        return tokenise_questions(tokenizer, pairs, texts, self.spec.max_length)

    def reads_pairs(self, form: str) -> bool:
        """True: every text needs a question."""
        return True

    def output_width(self, config: Any, n_classes: int) -> int | None:
        """2, the logits of start and end of each token."""
        return 2


HEAD = Span
