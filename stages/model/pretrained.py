"""Loading: trunks, tokenizers, adapters and the heads that come with a checkpoint."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from stages.model.adapters import adapted
from stages.model.hub import as_model_error, quiet, resolve
from stages.model.networks import (
    CheckpointNetwork,
    CompletionNetwork,
    MaskedWordNetwork,
    NextWordNetwork,
    SpanNetwork,
)
from stages.model.spec import ModelSpec
from stages.model.templates import label_word_ids
from stages.stage import ModelError

# Parts of transformers that its own types leave out.
_auto: Any = transformers


def load_tokenizer(model: ModelSpec) -> Any:
    """The tokenizer beside the weights.

    Raises:
        ModelError: there is none, or it has no vocabulary.
    """
    folder = resolve(model)
    with quiet(), as_model_error(folder, "a tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Without its files, some tokenizers are made with special tokens alone, and nothing is said.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(
            f"{folder}: found a tokenizer without words, expected its vocabulary beside the "
            "weights. Save the tokenizer there with save_pretrained."
        )
    return tokenizer


def load_trunk(model: ModelSpec) -> Any:
    """The model without any head, with its adapter where it has one."""
    folder = resolve(model)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with quiet(), as_model_error(folder, "weights"):
        trunk, info = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            **without_pooler(config),
        )
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    _refuse_missing(model, missing, "Use the checkpoint's own architecture")
    return adapted(model, trunk)


def load_checkpoint(model: ModelSpec) -> tuple[CheckpointNetwork, int]:
    """The classifier or regressor as it was saved, and the number of its outputs."""
    network = _load(model, _auto.AutoModelForSequenceClassification, "a classifier")
    base = network.base_model_prefix
    network = adapted(model, network)
    return CheckpointNetwork(network, base), int(network.config.num_labels)


def load_label_words(model: ModelSpec, tokenizer: Any) -> tuple[nn.Module, int]:
    """A language model whose output layer is cut down to the label words, and their number.

    The rows are copied: a head of its own, not tied to the embedding tables (methods.md 1.2).
    """
    words = model.prompt.label_words if model.prompt else ()
    ids = label_word_ids(tokenizer, words)
    if not is_masked(model):
        trunk, head = _causal(model)
        return NextWordNetwork(trunk, _rows(head, ids)), len(ids)
    network = adapted(model, _load(model, _auto.AutoModelForMaskedLM, "a masked language model"))
    probe = _sample(tokenizer)
    with torch.no_grad():
        wanted = network(input_ids=probe).logits[..., ids]
    head = _output_layer(model, network)
    name = next(name for name, module in network.named_modules() if module is head)
    network.config.tie_word_embeddings = False
    network.set_output_embeddings(_rows(head, ids))
    with torch.no_grad():
        _refuse_other_logits(model, network(input_ids=probe).logits, wanted)
    return MaskedWordNetwork(network, name), len(ids)


def load_span(model: ModelSpec) -> nn.Module:
    """A question-answering model as it was saved."""
    loader = _auto.AutoModelForQuestionAnswering
    return SpanNetwork(adapted(model, _load(model, loader, "a question-answering model")))


def load_completion(model: ModelSpec) -> nn.Module:
    """A causal language model that measures completions; its head keeps every word."""
    trunk, head = _causal(model)
    return CompletionNetwork(trunk, head, model.reduction)


def is_masked(model: ModelSpec) -> bool:
    """Whether the checkpoint is a masked language model; otherwise it is taken for a causal one.

    Raises:
        ModelError: it is neither.
    """
    config = transformers.AutoConfig.from_pretrained(resolve(model), local_files_only=True)
    named = " ".join(config.architectures or [])
    if type(config) in _auto.MODEL_FOR_MASKED_LM_MAPPING and "CausalLM" not in named:
        return True
    if type(config) in _auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    raise ModelError(
        f"{model.path}: found a {type(config).__name__}, expected a masked or causal language "
        "model. Set head: probe, or name a language model."
    )


def linear(weight: Float[Tensor, "outputs dim"], bias: Float[Tensor, " outputs"]) -> nn.Linear:
    """A linear layer with these weights."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight = nn.Parameter(weight.float())
    head.bias = nn.Parameter(bias.float())
    return head


def _load(model: ModelSpec, loader: Any, what: str) -> Any:
    folder = resolve(model)
    with quiet(), as_model_error(folder, what):
        network, info = loader.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    _refuse_missing(
        model, info["missing_keys"], "Set head: probe, or use a checkpoint with a trained head"
    )
    return network


def _causal(model: ModelSpec) -> tuple[Any, nn.Linear]:
    """Trunk and output layer of a causal language model, proven to make its logits."""
    network = adapted(model, _load(model, _auto.AutoModelForCausalLM, "a causal language model"))
    trunk, head = network.base_model, _output_layer(model, network)
    tokens = torch.arange(8).unsqueeze(0) % network.config.vocab_size
    network.eval()
    with torch.no_grad():
        hidden = trunk(input_ids=tokens, use_cache=False).last_hidden_state
        _refuse_other_logits(model, head(hidden), network(input_ids=tokens).logits)
    return trunk, head


def _output_layer(model: ModelSpec, network: Any) -> nn.Linear:
    head = network.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{model.path}: found an output layer of type {type(head).__name__}, expected an "
            "nn.Linear. Set head: probe, or use an adapter that leaves the output layer alone."
        )
    return head


def _rows(head: Any, ids: Sequence[int]) -> nn.Linear:
    bias = head.bias[ids] if getattr(head, "bias", None) is not None else torch.zeros(len(ids))
    return linear(head.weight[ids].detach().clone(), bias.detach().clone())


def _sample(tokenizer: Any) -> Tensor:
    return torch.tensor([tokenizer("a b c")["input_ids"]])


def _refuse_other_logits(model: ModelSpec, found: Tensor, wanted: Tensor) -> None:
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
    if error > 1e-4:
        raise ModelError(
            f"{model.path}: found logits that differ by {error:.1e} from its output layer's own, "
            "expected a model that does nothing to them afterwards. Set head: probe."
        )


def _refuse_missing(model: ModelSpec, missing: Any, advice: str) -> None:
    if missing:
        raise ModelError(
            f"{model.path}: found no weights for {', '.join(sorted(missing)[:4])}"
            f"{' and others' if len(missing) > 4 else ''}, expected them in the checkpoint: they "
            f"would be drawn at random. {advice}."
        )


def without_pooler(config: Any) -> dict[str, bool]:
    """The argument that leaves an unused pooler out, for architectures that know it."""
    network_class: Any = MODEL_MAPPING[type(config)]
    accepted = inspect.signature(network_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}
