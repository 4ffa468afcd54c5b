"""The configuration of a model: its weights, its head, and the weights that gradients are of.

Commands that only read a run import this module, so it does without torch.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from stages.catalogue import load_head
from stages.stage import ConfigError

Attention = Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]


@dataclass(frozen=True)
class Prompt:
    """A cloze question, which a language model answers by the word predicted at one position.

    Of a masked language model the logits at its mask token count, of a causal one those at the last
    token. Source: arXiv:2406.04606, section 2.
    """

    template: str
    """The text with `{text}`, for pairs `{text_b}`, and for a masked model `{mask}`, such as
    `{text} It was {mask}.`; `{text_b:uncapitalised}` lowers its first letter and `{text:trimmed}`
    drops its last character."""
    label_words: tuple[str, ...]
    """One word per class, in the order of the classes; each must be a single token."""

    def __post_init__(self) -> None:
        """Refuses a template without `{text}`, and repeated or fewer than two label words."""
        if "{text}" not in self.template and "{text:" not in self.template:
            raise ConfigError(
                f"prompt: found the template {self.template!r}, expected {{text}} in it. Write "
                "for example '{text} It was {mask}.'"
            )
        if len(set(self.label_words)) < max(2, len(self.label_words)):
            raise ConfigError(
                f"prompt: found label_words {list(self.label_words)}, expected a different word "
                "for each of at least two classes. List one per class."
            )


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters as fine-tuning would begin with them: B is zero, A is random.

    The gradient with respect to A is then exactly zero, and only B and the head count.
    """

    rank: int = 16
    """Columns of B, which are the rows of A."""
    alpha: int = 16
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the layers that get an adapter, by their last part, such as `q_proj`; empty for all
    linear layers of the trunk."""
    seed: int = 0
    """Seed of A."""

    def __post_init__(self) -> None:
        """Refuses a rank or alpha that is not positive."""
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(
                f"lora: found rank: {self.rank}, alpha: {self.alpha}, expected positive numbers. "
                "Raise them."
            )


@dataclass(frozen=True)
class Trained:
    """The weights that fine-tuning would change, and that gradients are taken of.

    Always: weights of linear layers (`nn.Linear` and the `Conv1D` of GPT-2). Never: biases, norms,
    and embedding tables, but for one that shares its weight with a trained output layer.
    """

    layers: tuple[str, ...] = ("*",)
    """Patterns over the names of layers, as in a shell; a layer is trained if one matches it."""
    last_blocks: int | None = None
    """Number of the trunk's last blocks that are trained, with all layers above; those below are
    not run backward. Null trains all blocks."""
    lora: Lora | None = None
    """Adapters, which are trained beside the head instead of the layers themselves."""

    def __post_init__(self) -> None:
        """Refuses a choice without any layer."""
        if not self.layers or (self.last_blocks is not None and self.last_blocks < 0):
            raise ConfigError(
                f"train: found layers: {list(self.layers)}, last_blocks: {self.last_blocks}, "
                "expected at least one pattern and a number of blocks. Leave them out to train all."
            )


@dataclass(frozen=True)
class ModelSpec:
    """The model that is measured."""

    path: str
    """Local folder, hub id, or `package:<module>/<folder>` for weights inside a Python package."""
    revision: str | None = None
    """Branch, tag or commit, for a hub id only."""
    head: str = "probe"
    """The kind of model, a file of `stages/model/heads/`: `probe`, which the run fits; `random`, a
    layer of random weights; `checkpoint`, its own classifier or regressor; `label_words` of
    `prompt`; `completion`, a causal language model; `span`, where an answer starts and ends."""
    num_labels: int | None = None
    """Outputs of a random head, 1 for a regression; the other heads know their own."""
    max_length: int = 128
    """Tokens kept per row, special tokens included. With `head: completion` a run chooses it from
    the corpus where the YAML leaves it out (`pipeline.max_length`)."""
    seed: int = 0
    """Seed of a random head."""
    prompt: Prompt | None = None
    """The question of `head: label_words`."""
    reduction: Literal["mean", "sum"] = "mean"
    """Loss of a completion: the mean or the sum over its tokens."""
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    """Which tokens are kept of a row of `head: completion` that is longer than `max_length`, by
    TRL's names: `keep_start`, the default of supervised fine-tuning there, cuts the completion's
    end, and with a long prompt all of it; `keep_end` cuts the prompt's start, and the completion's
    only when the prompt is gone. Choose the mode that the model is trained with."""
    train: Trained = field(default_factory=Trained)
    """Which weights gradients are taken of."""
    dtype: Literal["float32", "auto", "bfloat16"] = "float32"
    """Type of the weights in memory: float32 whatever the checkpoint's; `auto`, the checkpoint's
    own; `bfloat16`, with half the bytes and eight bits of each number. Heads that are put on the
    model, losses and results are float32 all the same; so is the model where it is fine-tuned, and
    where words are explained."""
    attn_implementation: Attention | None = None
    """How attention is computed, by transformers' names; null leaves the choice to the model.
    `flash_attention_2` needs its package, a GPU and `dtype: bfloat16`."""
    adapter: str | None = None
    """Folder of a trained LoRA adapter that peft saved for this model."""
    trust_remote_code: bool = False
    """Whether Python files in the model's folder may run, with all your rights. Without it a model
    that needs them is refused. They count for keys like weights do."""
    class_order: tuple[int, ...] | None = None
    """The number of the saved head's output for each class of the corpus, null where both have one
    order. `assay` fills this in by the names of the classes; what stands here is replaced."""

    def __post_init__(self) -> None:
        """Refuses fields that do not go together.

        Raises:
            ConfigError: there is no such head, or a field is out of range or belongs to another.
        """
        self.kind.check(self)
        if self.adapter is not None and self.train.lora is not None:
            raise ConfigError(
                "model: found both adapter and train.lora, expected one of them. Remove train.lora "
                "to take gradients of the trained adapter."
            )
        if self.max_length < 3:
            raise ConfigError(
                f"model: found max_length: {self.max_length}, expected at least 3 (two special "
                "tokens and one of text). Raise it."
            )

    @property
    def kind(self) -> type[Any]:
        """The class in `stages/model/heads/`, a `Head`, that `head` names."""
        return load_head(self.head)


class RunsModel:
    """The base of stages that run a network, the one of their field `model`."""

    model: ModelSpec | None

    @property
    def model_ref(self) -> ModelSpec | None:
        """The configuration of the model that the stage runs; None where it runs none."""
        return self.model
