"""Loading of tokenizers, trunks, and whole models with the heads that a checkpoint holds."""

import inspect
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from stages.model.adapters import adapted
from stages.model.hub import as_model_error, quiet, resolve
from stages.model.spec import ModelSpec
from stages.stage import ModelError

# Parts of transformers that its own types leave out.
_auto: Any = transformers


def load_tokenizer(model: ModelSpec) -> Any:
    """The tokenizer in the folder of the weights.

    Raises:
        ModelError: there is no tokenizer, or it has no vocabulary.
    """
    folder = resolve(model)
    with quiet(), as_model_error(folder, "a tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Without their files some tokenizers load with special tokens alone, without any error.
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


def linear(weight: Float[Tensor, "outputs dim"], bias: Float[Tensor, " outputs"]) -> nn.Linear:
    """A linear layer with this weight and bias."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight = nn.Parameter(weight.float())
    head.bias = nn.Parameter(bias.float())
    return head


def load_whole(model: ModelSpec, loader: Any, what: str) -> Any:
    """The checkpoint's model with its head, by `loader`, an `AutoModelFor...` class.

    `what` is the word for such a model in messages.

    Raises:
        ModelError: the checkpoint is no such model, or lacks weights of its head.
    """
    folder = resolve(model)
    with quiet(), as_model_error(folder, what):
        network, info = loader.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    _refuse_missing(
        model, info["missing_keys"], "Set head: probe, or use a checkpoint with a trained head"
    )
    return network


def load_causal(model: ModelSpec) -> tuple[Any, nn.Linear]:
    """Trunk and output layer of a causal language model, checked to make its logits on a sample."""
    network = adapted(
        model, load_whole(model, _auto.AutoModelForCausalLM, "a causal language model")
    )
    trunk, head = network.base_model, output_layer(model, network)
    tokens = torch.arange(8).unsqueeze(0) % network.config.vocab_size
    network.eval()
    with torch.no_grad():
        hidden = trunk(input_ids=tokens, use_cache=False).last_hidden_state
        refuse_other_logits(model, head(hidden), network(input_ids=tokens).logits)
    return trunk, head


def output_layer(model: ModelSpec, network: Any) -> nn.Linear:
    """The layer that makes a language model's logits.

    Raises:
        ModelError: the layer is not linear.
    """
    head = network.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{model.path}: found an output layer of type {type(head).__name__}, expected an "
            "nn.Linear. Set head: probe, or use an adapter that leaves the output layer alone."
        )
    return head


def refuse_other_logits(model: ModelSpec, found: Tensor, wanted: Tensor) -> None:
    """Refuses a model whose logits, `wanted`, are not those of its output layer alone, `found`.

    Raises:
        ModelError: they differ by more than 1e-4 of the largest.
    """
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
    """The keyword argument that leaves out an unused pooler, for architectures that have it."""
    network_class: Any = MODEL_MAPPING[type(config)]
    accepted = inspect.signature(network_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}
