"""The model, its loss, and the measured output f(theta) that everything else explains.

A `Measurement` is a frozen network with its tokenizer and head, in eval mode, float32. What it
measures depends on `head` and on what the corpus asks for:

| head | output of a row | loss of a row |
|---|---|---|
| probe, random, checkpoint, label_words | one logit per class | cross-entropy of the class, nats |
| probe, random or checkpoint with one output | the predicted number | (output - target)^2 |
| completion | log-likelihood of the completion, nats | its negative |
| span | two logits for each token: the answer starts, or ends, there | none |

A smaller loss is a better model, so a score made of loss gradients carries a minus sign of its own
to make positive mean "helps". A **query** is measured by the logit of one class, or by its only
output.

Every pass over rows goes through the function `forward` of this module, and through nothing else.

The probe and the random head read the trunk's last hidden state, averaged over real tokens: the
embedding that `stages.features.embedding` writes, so that a probe's prediction needs no pass of its
own.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn

from stages.model.batches import Tokens, pad, tokenise, tokenise_questions
from stages.model.hub import fingerprint, resolve
from stages.model.networks import IGNORED, CompletionNetwork, PooledNetwork, SpanNetwork, mean_pool
from stages.model.pretrained import (
    is_masked,
    linear,
    load_checkpoint,
    load_completion,
    load_label_words,
    load_span,
    load_tokenizer,
    load_trunk,
)
from stages.model.size import NetworkSize, network_size
from stages.model.spec import ModelSpec
from stages.model.templates import plain_texts, tokenise_completions, tokenise_prompts
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, DataError, Inputs, ModelError

__all__ = [
    "Measurement",
    "ModelSpec",
    "NetworkSize",
    "cross_entropy",
    "fingerprint",
    "forward",
    "load_embedder",
    "load_measurement",
    "mean_pool",
    "network_size",
    "read_probe",
    "row_loss",
]

UNLABELLED = -1


def forward(network: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows ..."]:
    """What the network returns for one batch; the only place where a model is called."""
    output: Tensor = network(**batch)
    return output


def cross_entropy(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Loss per row in nats, not averaged.

    In float64: `p - 1` of a confident row would lose half its digits to cancellation in float32.
    """
    return nn.functional.cross_entropy(logits.double(), labels, reduction="none")


def row_loss(
    outputs: Float[Tensor, "rows outputs"], answers: Tensor | None
) -> Float[Tensor, " rows"]:
    """The loss of each row: of its class (integers), its target (floats), its completion (None).

    The label -1 stands for the class that the outputs predict.
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
        network: What `forward` is called with; eval mode, float32, no parameter asks for gradients.
        n_outputs: Length of an output row: classes, 1, or the hidden size of an embedder.
        spec: The configuration it was made from.
        form: What the text columns hold: "text", "prompt_completion" or "messages".
        is_masked: Whether a prompt is answered at a mask.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        n_outputs: int,
        spec: ModelSpec,
        device: str,
        form: str = "text",
    ) -> None:
        self.network = network.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.n_outputs = n_outputs
        self.spec = spec
        self.device = device
        self.form = form
        self.is_masked = spec.head == "label_words" and is_masked(spec)

    def tokenise(self, text: pa.Table) -> Tokens:
        """The rows of a text table as tokens; a row's `text_b`, where not null, is its pair."""
        texts, pairs = text["text"].to_pylist(), text["text_b"].to_pylist()
        longest = self.spec.max_length
        if self.reads_prompt and self.spec.prompt is not None:
            return tokenise_prompts(
                self.tokenizer, self.spec.prompt, texts, pairs, longest, self.is_masked
            )
        if self.reads_completion:
            keeps_end = self.spec.truncation_mode == "keep_end"
            return tokenise_completions(self.tokenizer, texts, pairs, self.form, longest, keeps_end)
        if self.reads_question:
            return tokenise_questions(self.tokenizer, pairs, texts, longest)
        return tokenise(self.tokenizer, *plain_texts(texts, pairs, self.form), longest)

    @property
    def reads_question(self) -> bool:
        """Whether rows are a question and the text that it asks about."""
        return isinstance(self.network, SpanNetwork)

    @property
    def reads_prompt(self) -> bool:
        """Whether rows are read inside the template of a prompt."""
        return self.spec.prompt is not None and not isinstance(self.network, PooledNetwork)

    @property
    def reads_completion(self) -> bool:
        """Whether rows are read as a causal language model is trained on them."""
        return isinstance(self.network, CompletionNetwork)

    def batch(self, tokens: Tokens, rows: Int[Any, " rows"]) -> dict[str, Tensor]:
        """The named rows, padded to the longest, as arguments of the network."""
        # A tokenizer without a padding token may use any id: the mask hides it.
        pad_id = self.tokenizer.pad_token_id or 0
        return pad(tokens, rows, pad_id, self.device)

    def outputs(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows ..."]:
        """Logits of a classifier, log-likelihoods of completions, embeddings of an embedder.

        One row each; for head: span a matrix each, (2, tokens).
        """
        return forward(self.network, batch)

    def has_target(self, tokens: Tokens) -> list[bool]:
        """Which rows have anything to measure; a completion can be cut away by `max_length`."""
        if "targets" not in tokens.columns:
            return [True] * len(tokens.columns["input_ids"])
        return [any(t != IGNORED for t in row) for row in tokens.columns["targets"]]

    def random_text(self, n_rows: int, n_words: int, seed: int) -> pa.Table:
        """Rows of random tokens of the vocabulary, as text in the form that the corpus has."""
        generator = torch.Generator().manual_seed(seed)
        special = set(self.tokenizer.all_special_ids)
        plain = [i for i in range(len(self.tokenizer)) if i not in special]

        def draw() -> list[str]:
            ids = torch.randint(len(plain), (n_rows, n_words), generator=generator)
            return [self.tokenizer.decode([plain[i] for i in row]) for row in ids.tolist()]

        first, second = draw(), pa.nulls(n_rows, pa.string())
        prompt = self.spec.prompt
        is_prompted = prompt and "text_b" in prompt.template
        if self.form == "prompt_completion" or is_prompted or self.reads_question:
            second = pa.array(draw())
        if self.form == "messages":
            first = [
                json.dumps([{"role": "user", "content": "?"}, {"role": "assistant", "content": t}])
                for t in first
            ]
        return pa.table({"text": first, "text_b": second})


def load_measurement(model: ModelSpec, inputs: Inputs, device: str | None = None) -> Measurement:
    """The classifier, regressor or language model that `model` describes.

    A probe head is read from the table `probe`.

    Raises:
        ModelError: something cannot be loaded, or the head does not fit the trunk.
        ConfigError: the probe was fitted on another layer than the last.
    """
    form = str(inputs.details("text").get("format", "text"))
    tokenizer = load_tokenizer(model)
    network: nn.Module
    if model.head == "completion":
        network, n_outputs = load_completion(model), 1
    elif model.head == "span":
        network, n_outputs = load_span(model), 2
    elif model.head == "label_words":
        network, n_outputs = load_label_words(model, tokenizer)
    elif model.head == "checkpoint":
        network, n_outputs = load_checkpoint(model)
        if tokenizer.pad_token_id is None:
            raise ModelError(
                f"{model.path}: found no padding token, expected one because the head looks for "
                "the last real token. Set pad_token in tokenizer_config.json and config.json."
            )
    else:
        trunk = load_trunk(model)
        dim = int(trunk.config.hidden_size)
        is_random = model.head == "random"
        head = _random_head(dim, model) if is_random else _probe_head(dim, inputs)
        network, n_outputs = PooledNetwork(trunk, head), head.out_features
    return _measurement(model, network, tokenizer, n_outputs, device, form)


def load_embedder(
    model: ModelSpec,
    layer: int | Literal["all"],
    device: str | None = None,
    form: str = "text",
) -> Measurement:
    """The trunk alone: its output is the mean over tokens of one hidden state, or of all.

    Raises:
        ConfigError: the trunk has no such layer.
    """
    trunk = load_trunk(model)
    n_states = int(trunk.config.num_hidden_layers) + 1
    if layer != "all" and not -n_states <= layer < n_states:
        raise ConfigError(
            f"embedding: found layer: {layer}, expected all, or {-n_states} to {n_states - 1} for "
            f"{model.path}. Name one of its {n_states} hidden states; -1 is the last."
        )
    network = PooledNetwork(trunk, nn.Identity(), layer)
    dim = int(trunk.config.hidden_size) * (n_states if layer == "all" else 1)
    return _measurement(model, network, load_tokenizer(model), dim, device, form)


def read_probe(
    probe: pa.Table,
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Weight and bias of the table `probe`, in class order; a regression's has one row.

    Raises:
        DataError: the classes are not 0, 1, 2, and so on.
    """
    probe = probe.sort_by("class")
    classes = probe["class"].to_pylist()
    if classes != list(range(len(classes))) or not classes:
        raise DataError(
            f"probe: found classes {classes}, expected 0 to n - 1. Fit the probe again."
        )
    bias = probe["bias"].to_numpy().copy()
    return torch.from_numpy(matrix_of(probe["weight"]).copy()), torch.from_numpy(bias)


def _measurement(
    model: ModelSpec,
    network: nn.Module,
    tokenizer: Any,
    n_outputs: int,
    device: str | None,
    form: str,
) -> Measurement:
    config = transformers.AutoConfig.from_pretrained(resolve(model), local_files_only=True)
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    longest = min(positions, tokenizer.model_max_length)
    if model.max_length > longest:
        raise ConfigError(
            f"model: found max_length: {model.max_length}, expected at most {longest}, the "
            f"positions of {model.path}. Lower it."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Measurement(network, tokenizer, n_outputs, model, device, form)


def _probe_head(dim: int, inputs: Inputs) -> nn.Linear:
    details = inputs.details("probe")
    layer = details.get("layer", -1)
    if layer != -1:
        raise ConfigError(
            f"probe: found one fitted on the {details.get('embedding', 'embedding')} of layer "
            f"{layer}, expected layer -1, which the head reads. Set layer: -1 in the "
            "embedding stage."
        )
    weight, bias = read_probe(inputs.table("probe"))
    if weight.shape[1] != dim:
        raise ModelError(
            f"probe: found {weight.shape[1]} weights per class, expected {dim}, the model's hidden "
            "size. Fit the probe on this model's embeddings."
        )
    return linear(weight, bias)


def _random_head(dim: int, model: ModelSpec) -> nn.Linear:
    n_outputs = model.num_labels or 0
    generator = torch.Generator().manual_seed(model.seed)
    weight = torch.randn(n_outputs, dim, generator=generator) / dim**0.5
    return linear(weight, torch.zeros(n_outputs))
