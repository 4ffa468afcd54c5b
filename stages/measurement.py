"""The model, its loss, and the measured output f(theta) that everything else explains.

A `Measurement` is a frozen classifier: tokenizer, network and head, in eval mode, float32. Its
**output** is the logits, shape (rows, classes). Its **loss** is the cross-entropy of the given
class, in nats, per row; a smaller loss is a better model, so a score made of loss gradients carries
a minus sign of its own to make positive mean "helps". A **query** is measured by the logit of one
class.

Every pass of a model goes through the function `forward` of this module, and through nothing else.

The head is fitted on embeddings (`probe`), drawn at random (`random`), or the checkpoint's own
(`checkpoint`). The first two read the trunk's last hidden state, averaged over real tokens: the
embedding that `stages.embedding` writes, so that a probe's prediction needs no pass of its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn

from stages.batching import Tokens, matrix_of, pad, tokenise
from stages.checkpoint import NetworkSize, network_size, quiet, without_pooler
from stages.model import ModelSpec, fingerprint, resolve
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
]


def forward(network: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows outputs"]:
    """What the network returns for one batch; the only place where a model is called."""
    output: Tensor = network(**batch)
    return output


def mean_pool(
    hidden: Float[Tensor, "rows tokens dim"], mask: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows dim"]:
    """Average of each row's hidden states over its real tokens (mask 1)."""
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1)


def cross_entropy(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Loss per row in nats, not averaged.

    In float64: `p - 1` of a confident row would lose half its digits to cancellation in float32.
    """
    return nn.functional.cross_entropy(logits.double(), labels, reduction="none")


class PooledNetwork(nn.Module):
    """A trunk, the mean over tokens of one of its hidden states, and a head on top.

    `layer="all"` joins the means of all hidden states, each of unit length, scaled so that an inner
    product of two outputs is the mean over layers of their cosines.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, layer: int | Literal["all"] = -1) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.layer = layer

    def forward(
        self, attention_mask: Int[Tensor, "rows tokens"], **batch: Tensor
    ) -> Float[Tensor, "rows outputs"]:
        """The head's output for each row."""
        every = self.layer != -1
        output = self.trunk(attention_mask=attention_mask, output_hidden_states=every, **batch)
        if self.layer == "all":
            means = [mean_pool(hidden, attention_mask) for hidden in output.hidden_states]
            unit = [nn.functional.normalize(mean, dim=1) for mean in means]
            vectors = torch.cat(unit, dim=1) / len(unit) ** 0.5
        else:
            hidden = output.hidden_states[self.layer] if every else output.last_hidden_state
            vectors = mean_pool(hidden, attention_mask)
        pooled: Tensor = self.head(vectors)
        return pooled


class CheckpointNetwork(nn.Module):
    """A sequence classifier as it was saved, returning its logits alone."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, **batch: Tensor) -> Float[Tensor, "rows classes"]:
        """The classifier's logits."""
        logits: Tensor = self.classifier(**batch).logits
        return logits


class Measurement:
    """A frozen network with its tokenizer.

    Attributes:
        network: What `forward` is called with; eval mode, float32, no parameter asks for gradients.
        n_outputs: Length of an output row: classes, or the hidden size of an embedder.
    """

    def __init__(
        self, network: nn.Module, tokenizer: Any, n_outputs: int, max_length: int, device: str
    ) -> None:
        self.network = network.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.n_outputs = n_outputs
        self.max_length = max_length
        self.device = device

    def tokenise(self, text: pa.Table) -> Tokens:
        """The rows of a text table as tokens; a row's `text_b`, where not null, is its pair."""
        return tokenise(
            self.tokenizer, text["text"].to_pylist(), text["text_b"].to_pylist(), self.max_length
        )

    def batch(self, tokens: Tokens, rows: Int[Any, " rows"]) -> dict[str, Tensor]:
        """The named rows, padded to the longest, as arguments of the network."""
        # A tokenizer without a padding token may use any id: the mask hides it.
        pad_id = self.tokenizer.pad_token_id or 0
        return pad(tokens, rows, pad_id, self.device)

    def outputs(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "rows outputs"]:
        """Logits of a classifier, embeddings of an embedder."""
        return forward(self.network, batch)


def load_measurement(model: ModelSpec, inputs: Inputs, device: str | None = None) -> Measurement:
    """The classifier that `model` describes; a probe head is read from the table `probe`.

    Raises:
        ModelError: something cannot be loaded, or the head does not fit the trunk.
        ConfigError: the probe was fitted on another layer than the last.
    """
    if model.head == "checkpoint":
        return _load_checkpoint(model, device)
    trunk = _load_trunk(model)
    dim = int(trunk.config.hidden_size)
    if model.head == "random":
        head = _random_head(dim, model.num_labels or 0, model.seed)
    else:
        head = _probe_head(dim, inputs)
    return _measurement(model, PooledNetwork(trunk, head), head.out_features, device)


def load_embedder(
    model: ModelSpec, layer: int | Literal["all"], device: str | None = None
) -> Measurement:
    """The trunk alone: its output is the mean over tokens of one hidden state, or of all.

    Raises:
        ConfigError: the trunk has no such layer.
    """
    trunk = _load_trunk(model)
    n_states = int(trunk.config.num_hidden_layers) + 1
    if layer != "all" and not -n_states <= layer < n_states:
        raise ConfigError(
            f"embedding: found layer: {layer}, expected all, or {-n_states} to {n_states - 1} for "
            f"{model.path}. Name one of its {n_states} hidden states; -1 is the last."
        )
    network = PooledNetwork(trunk, nn.Identity(), layer)
    dim = int(trunk.config.hidden_size) * (n_states if layer == "all" else 1)
    return _measurement(model, network, dim, device)


def read_probe(
    probe: pa.Table,
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Weight and bias of the table `probe`, in class order.

    Raises:
        DataError: the classes are not 0, 1, 2, and so on.
    """
    probe = probe.sort_by("class")
    classes = probe["class"].to_pylist()
    if classes != list(range(len(classes))) or len(classes) < 2:
        raise DataError(
            f"probe: found classes {classes}, expected 0 to n - 1 with n at least 2. "
            "Fit the probe again."
        )
    bias = probe["bias"].to_numpy().copy()
    return torch.from_numpy(matrix_of(probe["weight"]).copy()), torch.from_numpy(bias)


def _measurement(
    model: ModelSpec, network: nn.Module, n_outputs: int, device: str | None
) -> Measurement:
    folder = resolve(model)
    with quiet(), _as_model_error(folder, "a tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Without its files, some tokenizers are made with special tokens alone, and nothing is said.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(
            f"{folder}: found a tokenizer without words, expected its vocabulary beside the "
            "weights. Save the tokenizer there with save_pretrained."
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    longest = min(positions, tokenizer.model_max_length)
    if model.max_length > longest:
        raise ConfigError(
            f"model: found max_length: {model.max_length}, expected at most {longest}, the "
            f"positions of {model.path}. Lower it."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Measurement(network, tokenizer, n_outputs, model.max_length, device)


def _load_trunk(model: ModelSpec) -> Any:
    folder = resolve(model)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with quiet(), _as_model_error(folder, "weights"):
        trunk, info = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            **without_pooler(config),
        )
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    _refuse_missing(model, missing, "Use the checkpoint's own architecture")
    return trunk


def _load_checkpoint(model: ModelSpec, device: str | None) -> Measurement:
    folder = resolve(model)
    with quiet(), _as_model_error(folder, "weights"):
        network, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    _refuse_missing(
        model, info["missing_keys"], "Set head: probe, or use a checkpoint with a trained head"
    )
    n_classes = int(network.config.num_labels)
    if n_classes < 2:
        raise ModelError(
            f"{model.path}: found a head with {n_classes} output, expected at least 2 classes. "
            "Regression is not measured yet; set head: probe."
        )
    measurement = _measurement(model, CheckpointNetwork(network), n_classes, device)
    if measurement.tokenizer.pad_token_id is None:
        raise ModelError(
            f"{model.path}: found no padding token, expected one because the head looks for the "
            "last real token. Set pad_token in tokenizer_config.json and config.json."
        )
    return measurement


def _probe_head(dim: int, inputs: Inputs) -> nn.Linear:
    layer = inputs.details("probe").get("layer", -1)
    if layer != -1:
        raise ConfigError(
            f"probe: found one fitted on the embeddings of layer {layer}, expected layer -1, which "
            "the head reads. Set layer: -1 in the embedding stage."
        )
    weight, bias = read_probe(inputs.table("probe"))
    if weight.shape[1] != dim:
        raise ModelError(
            f"probe: found {weight.shape[1]} weights per class, expected {dim}, the model's hidden "
            "size. Fit the probe on this model's embeddings."
        )
    return _linear(weight, bias)


def _random_head(dim: int, n_classes: int, seed: int) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_classes, dim, generator=generator) / dim**0.5
    return _linear(weight, torch.zeros(n_classes))


def _linear(weight: Float[Tensor, "classes dim"], bias: Float[Tensor, " classes"]) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight = nn.Parameter(weight.float())
    head.bias = nn.Parameter(bias.float())
    return head


def _refuse_missing(model: ModelSpec, missing: Any, advice: str) -> None:
    if missing:
        raise ModelError(
            f"{model.path}: found no weights for {', '.join(sorted(missing)[:4])}"
            f"{' and others' if len(missing) > 4 else ''}, expected them in the checkpoint: they "
            f"would be drawn at random. {advice}."
        )


@contextmanager
def _as_model_error(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{folder}: found no {what} that can be loaded ({error}), expected {what} of a Hugging "
            "Face model. Save the model and its tokenizer there with save_pretrained."
        ) from error
