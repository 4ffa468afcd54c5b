"""The contract of a kind of model: how it is loaded, tokenises rows, and what it can explain.

`head:` of a model names a file of this folder, which ends with `HEAD = <Class>`. That class holds
all that depends on the kind of model: a new kind is one file.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from stages.catalogue import load_head
from stages.model.batches import Tokens
from stages.model.refusals import WITHOUT, TextCheck
from stages.model.spec import ModelSpec
from stages.model.templates import plain_texts, tokenise_plain
from stages.model.windows import row_length
from stages.stage import TASKS, ConfigError, Inputs

Explains = Literal["output", "answer", "next_tokens"]


class Head(ABC):
    """A kind of model: it loads the network with its output layer, and tokenises rows for it.

    Attributes:
        spec: The model's configuration.
    """

    corpora: ClassVar[tuple[str, ...]] = TASKS
    """Tasks of the corpora whose rows it can read."""
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")
    """Tasks of the corpora that it has a loss for."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Tables that it is loaded from, beside the text."""
    has_class_outputs: ClassVar[bool] = True
    """Whether an output row has one logit per class, or one number for a regression."""
    is_fitted: ClassVar[bool] = False
    """Whether the run fits it on embeddings, which are then enough for its predictions."""
    is_on_trunk: ClassVar[bool] = False
    """Whether it is a layer on the trunk's hidden states, those of an encoder where there is one,
    and otherwise part of the checkpoint's whole model."""
    explains: ClassVar[Explains] = "output"
    """The outputs that token attribution explains: the predicted one, start and end of the answer,
    or next tokens."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Fields of `ModelSpec` that this kind uses and not every kind does."""
    architecture: ClassVar[str] = "AutoModel"
    """The class of transformers with all layers but the one whose size is `output_width`."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @classmethod
    def check(cls, spec: ModelSpec) -> None:
        """Refuses fields of the configuration that belong to another kind of model.

        Raises:
            ConfigError: such a field is set, or one that this kind needs is missing.
        """
        if spec.num_labels is not None and "num_labels" not in cls.takes:
            raise ConfigError(
                f"model: found head: {spec.head} with num_labels: {spec.num_labels}, expected "
                "num_labels for head: random and for no other. Set or remove num_labels."
            )
        if spec.prompt is not None and "prompt" not in cls.takes:
            raise ConfigError(
                f"model: found head: {spec.head} with prompt, expected a prompt for head: "
                "label_words and for no other. Set or remove prompt."
            )
        if spec.truncation_mode == "keep_end" and "truncation_mode" not in cls.takes:
            raise ConfigError(
                f"model: found truncation_mode: keep_end with head: {spec.head}, expected "
                "head: completion; other heads lose the end of the text. Remove truncation_mode."
            )

    @abstractmethod
    def load(self, tokenizer: Any, inputs: Inputs | None) -> tuple[nn.Module, int]:
        """The network, and the length of its output rows.

        `inputs` holds the tables in `reads`, and may be None where there are none.

        Raises:
            ModelError: something cannot be loaded, or the head does not fit the trunk.
        """

    def encode(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        pairs: Sequence[str | None],
        form: str,
        with_offsets: bool = False,
    ) -> Tokens:
        """The tokens of rows; `with_offsets` adds the span of characters of each token.

        `form` is the content of the text columns: "text", "prompt_completion" or "messages".
        """
        return tokenise_plain(tokenizer, texts, pairs, form, self.spec.max_length, with_offsets)

    def lengths(
        self, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> list[int]:
        """The tokens of each row before `max_length` cuts it. Arguments are those of `encode`.

        Memory is that of a window of the longest text (`stages.model.windows`).
        """
        rows = zip(*plain_texts(texts, pairs, form), strict=True)
        return [row_length(tokenizer, text, pair) for text, pair in rows]

    def refusals(
        self, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> list[str | None]:
        """Why each row cannot be read; None where it can. Arguments are those of `encode`.

        Here those are refused on which the tokenizer fails, and those without a token where it adds
        none of its own.
        """
        check = TextCheck(tokenizer)
        if check.adds_tokens and not check.may_fail:
            return [None] * len(texts)
        refused: list[str | None] = []
        for row in zip(*plain_texts(texts, pairs, form), strict=True):
            reasons = [check.refusal(part) for part in row if part is not None]
            wrong = [reason for reason in reasons if reason not in (None, WITHOUT)]
            is_empty = not check.adds_tokens and set(reasons) == {WITHOUT}
            reason = wrong[0] if wrong else WITHOUT if is_empty else None
            refused.append(reason and f"text {reason}")
        return refused

    def reads_pairs(self, form: str) -> bool:
        """Whether every row needs a second text, `text_b`."""
        return form == "prompt_completion"

    def of_embeddings(self, network: nn.Module) -> nn.Module:
        """The network whose output logits token attribution explains."""
        return network

    def output_width(self, config: Any, n_classes: int) -> int | None:
        """Outputs of the layer on the trunk; None where `architecture` has that layer already."""
        return n_classes


def head_of(spec: ModelSpec) -> Head:
    """The kind of the model, made from its configuration."""
    head: Head = load_head(spec.head)(spec)
    return head
