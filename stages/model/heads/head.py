"""The contract of a kind of model: how it is loaded, how it reads rows, and what it can be asked.

`head:` of a model names a file of this folder, which ends with `HEAD = <Class>`. All else that
depends on the kind of a model is asked of that class: a new kind is one file.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from stages.catalogue import load_head
from stages.model.batches import Tokens
from stages.model.spec import ModelSpec
from stages.model.templates import tokenise_plain
from stages.stage import TASKS, ConfigError, Inputs

Explains = Literal["output", "answer", "next_tokens"]


class Head(ABC):
    """What turns hidden states into the outputs of a model, and rows into what it reads.

    Attributes:
        spec: The model's configuration.
    """

    corpora: ClassVar[tuple[str, ...]] = TASKS
    """Kinds of corpora whose rows it can read."""
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")
    """Kinds of corpora that it has a loss for."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Tables beside the text."""
    has_class_outputs: ClassVar[bool] = True
    """Whether an output row has one logit per class, or one number for a regression."""
    is_fitted: ClassVar[bool] = False
    """Whether the run fits it on embeddings, so that they are enough to predict."""
    explains: ClassVar[Explains] = "output"
    """What is explained of a query by its words: the predicted output, start and end of the answer,
    or tokens that follow."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Fields of the configuration that are for it and not for every kind of model."""
    architecture: ClassVar[str] = "AutoModel"
    """The class of transformers that holds all weights but those of `output_width`."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @classmethod
    def check(cls, spec: ModelSpec) -> None:
        """Refuses fields of the configuration that belong to another kind of model.

        Raises:
            ConfigError: there is one.
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
    def load(self, tokenizer: Any, inputs: Inputs) -> tuple[nn.Module, int]:
        """The network, and the length of its output rows.

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
        """Rows as tokens, on request with the characters that each token stands for.

        `form` is what the text columns hold: "text", "prompt_completion" or "messages".
        """
        return tokenise_plain(tokenizer, texts, pairs, form, self.spec.max_length, with_offsets)

    def reads_pairs(self, form: str) -> bool:
        """Whether every row needs a second text."""
        return form == "prompt_completion"

    def of_embeddings(self, network: nn.Module) -> nn.Module:
        """The network whose outputs are explained: its logits among which a target is."""
        return network

    def output_width(self, config: Any, n_classes: int) -> int | None:
        """Outputs of the layer on the trunk; None where `architecture` has it already."""
        return n_classes


def head_of(spec: ModelSpec) -> Head:
    """The kind of a model."""
    found: Head = load_head(spec.head)(spec)
    return found
