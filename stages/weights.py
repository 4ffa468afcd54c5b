"""Loading: trunks, tokenizers, adapters and the heads that come with a checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.checkpoint import quiet, without_pooler
from stages.drawing import generator_of
from stages.model import Lora, ModelSpec, adapter_folder, resolve
from stages.networks import (
    CheckpointNetwork,
    CompletionNetwork,
    MaskedWordNetwork,
    NextWordNetwork,
    SpanNetwork,
)
from stages.prompt import label_word_ids
from stages.stage import ConfigError, ModelError

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
    return _adapted(model, trunk)


def load_checkpoint(model: ModelSpec) -> tuple[CheckpointNetwork, int]:
    """The classifier or regressor as it was saved, and the number of its outputs."""
    network = _load(model, _auto.AutoModelForSequenceClassification, "a classifier")
    base = network.base_model_prefix
    network = _adapted(model, network)
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
    network = _adapted(model, _load(model, _auto.AutoModelForMaskedLM, "a masked language model"))
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
    return SpanNetwork(_adapted(model, _load(model, loader, "a question-answering model")))


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


@contextmanager
def as_model_error(folder: Path, what: str) -> Iterator[None]:
    """Whatever a loader raises, as a ModelError that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{folder}: found no {what} that can be loaded ({error}), expected {what} of a Hugging "
            "Face model. Save the model and its tokenizer there with save_pretrained."
        ) from error


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
    network = _adapted(model, _load(model, _auto.AutoModelForCausalLM, "a causal language model"))
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


def _adapted(model: ModelSpec, network: Any) -> Any:
    """The network with its trained adapter, or with fresh ones whose A depends on seed and name."""
    if model.adapter is None and model.train.lora is None:
        return network
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            f"{model.path}: found no package peft, expected it for LoRA adapters. "
            "Run `pip install -e '.[lora]'`."
        ) from error
    network.requires_grad_(False)
    if model.adapter is not None:
        _load_adapter(peft, adapter_folder(model.adapter), network)
        return network
    lora = model.train.lora or Lora()
    trunk = network.base_model
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.targets) or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in trunk.modules()),
    )
    try:
        peft.inject_adapter_in_model(config, trunk)
    except ValueError as error:
        raise ConfigError(
            f"lora: found targets: {list(lora.targets)} ({error}), expected names of linear layers "
            "of the trunk. Leave targets out for all of them."
        ) from error
    for name, module in trunk.named_modules():
        if isinstance(module, nn.Linear) and ".lora_A." in name:
            _draw_uniform(module.weight, f"{lora.seed}/{name}")
    return network


def _load_adapter(peft: Any, folder: Path, network: Any) -> None:
    """Puts a trained adapter into the network, and the head it was trained with into its head.

    The names in it begin at the model it was trained in, which may be this one's trunk, or a whole
    model around it; a head has no place in a bare trunk, whose head is another.
    """
    with quiet(), as_model_error(folder, "adapter"):
        config = peft.PeftConfig.from_pretrained(str(folder))
        weights = peft.load_peft_weights(str(folder), device="cpu")
    modules = {name for name, _ in network.named_modules()}
    base = network.base_model_prefix

    def place(path: str) -> str | None:
        tried = (path, path.removeprefix(f"{base}."), f"{base}.{path}")
        return next((name for name in tried if name in modules), None)

    adapters: dict[str, Tensor] = {}
    targets, lost = set(), []
    for key, weight in weights.items():
        key = key.removeprefix("base_model.model.")
        path, kind, leaf = key.partition(".lora_")
        if not kind:
            path, kind, leaf = key.rpartition(".")
        module = place(path)
        if module is None:
            is_head = kind == "." and network is network.base_model
            lost += [] if is_head else [key]
        elif kind == ".lora_":
            targets.add(module)
            adapters[f"{module}{kind}{leaf}"] = weight
        elif getattr(network.get_submodule(module), leaf, torch.empty(0)).shape == weight.shape:
            with torch.no_grad():
                network.get_submodule(module).get_parameter(leaf).copy_(weight)
        else:
            lost.append(key)
    if config.peft_type != peft.PeftType.LORA or not targets or lost:
        raise ModelError(
            f"{folder}: found an adapter of type {config.peft_type.value} whose weights "
            f"{', '.join(lost[:3]) or 'are none'} have no place in the model, expected a LoRA "
            "adapter of this model. Correct model.adapter or model.path."
        )
    # The layers by name: whatever else chose them was written for the model it was trained in.
    config.target_modules = targets
    config.exclude_modules = config.modules_to_save = config.task_type = None
    config.layers_to_transform = config.layers_pattern = None
    config.rank_pattern = {place(path) or path: r for path, r in config.rank_pattern.items()}
    config.alpha_pattern = {place(path) or path: a for path, a in config.alpha_pattern.items()}
    config.inference_mode, config.init_lora_weights = True, True
    peft.inject_adapter_in_model(config, network)
    result = peft.set_peft_model_state_dict(network, adapters)
    missing = [key for key in result.missing_keys if ".lora_" in key]
    if missing or result.unexpected_keys:
        raise ModelError(
            f"{folder}: found no weights for {', '.join(missing[:3]) or 'all layers'}, and "
            f"{len(result.unexpected_keys)} that fit none, expected both of each adapted layer. "
            "Save the adapter again with save_pretrained."
        )


def _draw_uniform(weight: Tensor, name: str) -> None:
    """What peft draws by default, uniform within 1 / sqrt(inputs), from the name alone."""
    bound = weight.shape[1] ** -0.5
    drawn = torch.rand(weight.shape, generator=generator_of(name)) * (2 * bound) - bound
    with torch.no_grad():
        weight.copy_(drawn)


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
