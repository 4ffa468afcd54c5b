"""The model, its loss, and its measured output f(theta), which all methods explain.

A `Measurement` is a frozen network with its tokenizer and head, in eval mode. Its output, float32,
and loss depend on `head` and on the task of the corpus:

| head | output of a row | loss of a row |
|---|---|---|
| probe, random, checkpoint, label_words | one logit per class | cross-entropy of the class, nats |
| probe, random or checkpoint with one output | the predicted number | (output - target)^2 |
| completion | log-likelihood of the completion, nats | its negative, or of pairs that of DPO |
| span | two logits for each token: the answer starts, or ends, there | none |

A smaller loss is a better model, so a score made of loss gradients carries a minus sign of its own
to make positive mean "helps". A **query** is measured by the logit of one class, or by its only
output.

Every pass over rows goes through the function `forward` of this module, and through nothing else.

The probe and the random head read the trunk's last hidden state, averaged over real tokens: the
embedding that `stages.features.embedding` writes, so that a probe's prediction needs no pass of its
own.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stages.corpus.preferences import SIDE_FORMS
from stages.model.batches import Tokens, pad
from stages.model.chats import lay_out
from stages.model.devices import device as chosen
from stages.model.heads.head import Head, head_of
from stages.model.networks import IGNORED, PooledNetwork
from stages.model.pretrained import (
    load_tokenizer,
    load_trunk,
    longest_row,
    refuse_unknown_tokens,
)
from stages.model.spec import ModelSpec
from stages.stage import ConfigError, Inputs, ModelError, StageError

UNLABELLED = -1
"""The label of a row without one."""


def forward(network: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows ..."]:
    """The outputs for one batch, at least in float32; the only place where a model is called."""
    output: Tensor = network(**batch)
    return output.to(torch.promote_types(output.dtype, torch.float32))


def cross_entropy(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """The cross-entropy of each row in nats, not averaged.

    In float64: `p - 1` of a confident row would lose half its digits to cancellation in float32.
    """
    return nn.functional.cross_entropy(logits.double(), labels, reduction="none")


def row_loss(
    outputs: Float[Tensor, "rows outputs"], answers: Tensor | None
) -> Float[Tensor, " rows"]:
    """The loss of each row, for class indices, float targets or, with None, completions.

    `answers` are cross-entropy's labels, squared error's targets, or None: the outputs are
    log-likelihoods, and the loss is their negative. The label -1 stands for the class that the
    outputs predict.
    """
    if answers is None:
        return -outputs[:, 0]
    if answers.is_floating_point():
        return (outputs[:, 0].double() - answers).square()
    predicted = outputs.detach().argmax(1)
    return cross_entropy(outputs, torch.where(answers == UNLABELLED, predicted, answers))


class Measurement:
    """A frozen network with its tokenizer.

    Attributes:
        network: What `forward` is called with; eval mode, no parameter requires gradients; weights
            of the type that `spec.dtype` names, mapped from their file until the device has them.
        n_outputs: Length of an output row: classes, 1, or the hidden size of an embedder.
        spec: The configuration of the model.
        form: Content of the text columns: "text", "prompt_completion" or "messages".
        head: The kind of model, which decides how rows are tokenised.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        n_outputs: int,
        spec: ModelSpec,
        device: str,
        form: str = "text",
        head: Head | None = None,
    ) -> None:
        dtype = torch.float32 if spec.dtype == "float32" else None
        self.network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.n_outputs = n_outputs
        self.spec = spec
        self.device = device
        self.form = form
        self.head = head or head_of(spec)

    def tokenise(self, text: pa.Table, with_offsets: bool = False) -> Tokens:
        """The tokens of the rows of a table `text`; a row's `text_b`, where not null, is its pair.

        `with_offsets` adds the span of characters of each token.

        Raises:
            ModelError: offsets are requested of a tokenizer that has none.
        """
        if with_offsets and not self.tokenizer.is_fast:
            raise ModelError(
                f"{self.spec.path}: found a tokenizer without character offsets "
                f"({type(self.tokenizer).__name__}), expected a fast one. Save tokenizer.json "
                "beside the weights."
            )
        texts, pairs = text["text"].to_pylist(), text["text_b"].to_pylist()
        return self.head.encode(self.tokenizer, texts, pairs, self.form, with_offsets)

    def batch(self, tokens: Tokens, rows: Int[Any, " rows"]) -> dict[str, Tensor]:
        """The rows with these numbers, padded to the longest, as arguments of the network."""
        # A tokenizer without a padding token may use any id: the mask hides it.
        pad_id = self.tokenizer.pad_token_id or 0
        return pad(tokens, rows, pad_id, self.device)

    def outputs(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows ..."]:
        """Logits of a classifier, log-likelihoods of completions, embeddings of an embedder.

        One row each; for head: span a matrix each, (2, tokens).
        """
        return forward(self.network, batch)

    def has_target(self, tokens: Tokens) -> list[bool]:
        """Whether each row has an output to measure; `max_length` may cut off a completion."""
        if "targets" not in tokens.columns:
            return [True] * len(tokens.columns["input_ids"])
        return [any(t != IGNORED for t in row) for row in tokens.columns["targets"]]

    def random_text(self, n_rows: int, n_words: int, seed: int) -> pa.Table:
        """A table of random texts of `n_words` tokens each, in the form that the corpus has."""
        generator = torch.Generator().manual_seed(seed)
        special = set(self.tokenizer.all_special_ids)
        plain = [i for i in range(len(self.tokenizer)) if i not in special]

        def draw() -> list[str]:
            ids = torch.randint(len(plain), (n_rows, n_words), generator=generator)
            return [self.tokenizer.decode([plain[i] for i in row]) for row in ids.tolist()]

        first, second = draw(), pa.nulls(n_rows, pa.string())
        if self.head.reads_pairs(self.form):
            second = pa.array(draw())
        if self.form == "messages":
            opening = self._opening()
            first = [json.dumps([*opening, {"role": "assistant", "content": t}]) for t in first]
        return pa.table({"text": first, "text_b": second})

    def _opening(self) -> list[dict[str, str]]:
        """What stands before an answer in random conversations: all that the chat template asks.

        The shortest, where the head knows no template.
        """
        shortest = [{"role": "user", "content": "?"}]
        for opening in (shortest, [{"role": "system", "content": "?"}, *shortest]):
            with contextlib.suppress(StageError):
                lay_out(self.tokenizer, [*opening, {"role": "assistant", "content": "?"}])
                return opening
        return shortest


def load_measurement(
    model: ModelSpec, inputs: Inputs, device: str | None = None, by_sides: bool = False
) -> Measurement:
    """The classifier, regressor or language model that `model` describes.

    A probe head is read from the table `probe`. With `by_sides` it reads the sides of pairs, where
    the corpus has pairs, and not the rows as they are stored.

    Raises:
        ModelError: something cannot be loaded, or the head does not fit the trunk.
        ConfigError: the probe was fitted on another layer than the last.
    """
    form = str(inputs.details("text").get("format", "text"))
    form = SIDE_FORMS.get(form, form) if by_sides else form
    tokenizer, head = load_tokenizer(model), head_of(model)
    network, n_outputs = head.load(tokenizer, inputs)
    return measurement_of(model, network, tokenizer, n_outputs, device, form, head)


def load_embedder(
    model: ModelSpec,
    layer: int | Literal["all"],
    device: str | None = None,
    form: str = "text",
    by_position: bool = False,
) -> Measurement:
    """The trunk alone; its output is the mean over tokens of one hidden state, or of all.

    `layer` numbers the hidden states; `all` concatenates their means. With `by_position` the t-th
    token of a row has weight t in it.

    Raises:
        ConfigError: the trunk has no such layer.
    """
    trunk = load_trunk(model)
    n_states = int(trunk.config.num_hidden_layers) + 1
    if layer != "all" and not -n_states <= layer < n_states:
        raise ConfigError(
            f"embedding: found layer: {layer}, expected {-n_states} to {n_states - 1} for "
            f"{model.path}. Name one of its {n_states} hidden states; -1 is the last."
        )
    network = PooledNetwork(trunk, nn.Identity(), layer, by_position)
    dim = int(trunk.config.hidden_size) * (n_states if layer == "all" else 1)
    # Embeddings are of the plain text, whichever head the model has in other stages.
    plain = head_of(
        ModelSpec(
            model.path, max_length=model.max_length, trust_remote_code=model.trust_remote_code
        )
    )
    return measurement_of(model, network, load_tokenizer(model), dim, device, form, plain)


def measurement_of(
    model: ModelSpec,
    network: nn.Module,
    tokenizer: Any,
    n_outputs: int,
    device: str | None,
    form: str,
    head: Head,
) -> Measurement:
    """The measurement of a loaded network, whose tokenizer and `max_length` are checked.

    Raises:
        ModelError: the tokenizer has tokens that the network does not know.
        ConfigError: `max_length` is above the positions of the network.
    """
    # Imported here: it takes seconds, which stages that run no model are spared.
    from transformers import PreTrainedModel

    whole: Any = next(part for part in network.modules() if isinstance(part, PreTrainedModel))
    refuse_unknown_tokens(model, tokenizer, whole.get_input_embeddings().num_embeddings)
    longest = longest_row(whole, tokenizer)
    if model.max_length > longest:
        raise ConfigError(
            f"model: found max_length: {model.max_length}, expected at most {longest}, the "
            f"tokens that a row of {model.path} may have. Lower it."
        )
    return Measurement(network, tokenizer, n_outputs, model, device or chosen(), form, head)
