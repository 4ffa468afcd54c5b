"""Loading of tokenizers, trunks, and whole models with the heads that a checkpoint holds."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from stages.model.adapters import adapted, saved_beside
from stages.model.hub import as_model_error, quiet, refuse_large, resolve
from stages.model.refusals import UNKNOWN
from stages.model.spec import ModelSpec
from stages.stage import ModelError

# Parts of transformers that its own types leave out.
_auto: Any = transformers


DTYPES: dict[str, Any] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    # The type in config.json, or where that names none, of the first weight.
    "auto": "auto",
}


def loading(model: ModelSpec) -> dict[str, Any]:
    """What every loader of transformers is told: what it may read, and whether it may run code.

    Without `trust_remote_code` transformers asks on stdin, and runs the folder's code after a `y`.
    """
    return {"local_files_only": True, "trust_remote_code": model.trust_remote_code}


def load_config(model: ModelSpec) -> Any:
    """The configuration of the model in its folder.

    Raises:
        ModelError: there is none that can be loaded.
    """
    folder = resolve(model)
    refuse_large(folder)
    with quiet(), as_model_error(folder, "a configuration"):
        return transformers.AutoConfig.from_pretrained(folder, **loading(model))


def load_tokenizer(model: ModelSpec) -> Any:
    """The tokenizer in the folder of the weights, which cuts and pads at the end of a text.

    Raises:
        ModelError: there is no tokenizer, or it has no vocabulary.
    """
    folder = resolve(model)
    with quiet(), as_model_error(folder, "a tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **loading(model))
    # Without their files some tokenizers load with special tokens alone, without any error.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(
            f"{folder}: found a tokenizer without words, expected its vocabulary beside the "
            "weights. Save the tokenizer there with save_pretrained."
        )
    # Whatever the folder says: a row loses its end, and padding never moves a token.
    tokenizer.truncation_side = tokenizer.padding_side = "right"
    return tokenizer


def load_trunk(model: ModelSpec) -> Any:
    """The model without any head, with its adapter where it has one.

    Of an encoder-decoder the encoder alone, whose hidden states are those of the text.

    Raises:
        ModelError: the weights cannot be loaded, or do not fit config.json.
    """
    folder = resolve(model)
    config = load_config(model)
    with quiet(), as_model_error(folder, "weights"), _attention(model):
        trunk, info = transformers.AutoModel.from_pretrained(
            folder,
            **loading(model),
            output_loading_info=True,
            dtype=DTYPES[model.dtype],
            attn_implementation=model.attn_implementation,
            ignore_mismatched_sizes=True,
            **without_pooler(config),
        )
    unused = ("pooler.", "decoder.") if config.is_encoder_decoder else ("pooler.",)
    missing = [key for key in info["missing_keys"] if not key.startswith(unused)]
    _refuse_mismatched(model, info["mismatched_keys"])
    _refuse_missing(model, missing, "Use the checkpoint's own architecture")
    return encoder_of(adapted(model, trunk))


@contextmanager
def _attention(model: ModelSpec) -> Iterator[None]:
    """Turns what a loader says of `attn_implementation` into a ModelError."""
    try:
        yield
    except (ValueError, ImportError) as error:
        words = ("attention", "attn")
        if model.attn_implementation is None or not any(w in str(error).lower() for w in words):
            raise
        raise ModelError(
            f"{model.path}: found attn_implementation: {model.attn_implementation}, which cannot "
            f"be used ({error}), expected one that the model and this machine have. Set another "
            "one, or leave it out."
        ) from error


def encoder_of(trunk: Any) -> Any:
    """The encoder of an encoder-decoder, and any other trunk as it is."""
    return trunk.get_encoder() if trunk.config.is_encoder_decoder else trunk


def linear(weight: Float[Tensor, "outputs dim"], bias: Float[Tensor, " outputs"]) -> nn.Linear:
    """A linear layer with this weight and bias."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight = nn.Parameter(weight.float())
    head.bias = nn.Parameter(bias.float())
    return head


def load_whole(model: ModelSpec, loader: Any, what: str) -> Any:
    """The checkpoint's model with its head, by `loader`, an `AutoModelFor...` class.

    `what` is the word for such a model in messages. A head that an adapter holds is put in with it
    (`stages.model.adapters`).

    Raises:
        ModelError: the checkpoint is no such model, lacks weights of its head, or has weights of
            other shapes than its config.json says.
    """
    folder = resolve(model)
    refuse_large(folder)
    with quiet(), as_model_error(folder, what), _attention(model):
        network, info = loader.from_pretrained(
            folder,
            **loading(model),
            output_loading_info=True,
            dtype=DTYPES[model.dtype],
            attn_implementation=model.attn_implementation,
            ignore_mismatched_sizes=True,
        )
    _refuse_mismatched(model, info["mismatched_keys"])
    missing = set(info["missing_keys"])
    if missing:
        missing -= saved_beside(model)
    _refuse_missing(model, missing, "Set head: probe, or use a checkpoint with a trained head")
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
        ModelError: they differ by more than 1e-4 of the largest, or than rounding in their type.
    """
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
    if error > max(1e-4, torch.finfo(found.dtype).eps):
        raise ModelError(
            f"{model.path}: found logits that differ by {error:.1e} from its output layer's own, "
            "expected a model that does nothing to them afterwards. Set head: probe."
        )


def pad_with(tokenizer: Any, network: Any) -> None:
    """Makes a network that looks for the last token that is no padding know what rows end with.

    The id of its padding is that of the tokenizer, whatever config.json says. A tokenizer without
    one, as of GPT-2, gets a special token that no text contains and none ends with.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    if tokenizer.pad_token_id is None:
        taken = tokenizer("a")["input_ids"][-1:]
        if _writes_unknown(tokenizer):
            taken.append(tokenizer.unk_token_id)
        free = [i for i in tokenizer.all_special_ids if i not in taken]
        if not free:
            raise ModelError(
                f"{tokenizer.name_or_path}: found no padding token, expected one because the head "
                "looks for the last real token. Set pad_token in tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[0])
    for config in (network.config, network.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def _writes_unknown(tokenizer: Any) -> bool:
    """Whether the token for unknown words may stand in a text; those of bytes know all of them.

    So GPT-2 has one token for unknown words and for the end of a text.
    """
    try:
        found = tokenizer(UNKNOWN, add_special_tokens=False)["input_ids"]
    except Exception:  # Tokenizers raise bare exceptions.
        return True
    return not found or tokenizer.unk_token_id in found


def longest_row(network: Any, tokenizer: Any) -> int:
    """The most tokens that a row may have, special tokens included.

    The tokenizer's limit, and that of a table of positions. In the tables of RoBERTa and its
    relatives positions begin behind that of the padding, so fewer rows are of use than there are.
    """
    config = network.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 0
    if positions < 1:  # as of XLNet
        positions = tokenizer.model_max_length
    for name, module in network.named_modules():
        is_table = isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
        if is_table and module.padding_idx is not None:
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)
    return int(min(positions, tokenizer.model_max_length))


def refuse_unknown_tokens(model: ModelSpec, tokenizer: Any, n_words: int) -> None:
    """Refuses a tokenizer with tokens that a model of `n_words` words has no embedding of.

    Raises:
        ModelError: there is such a token.
    """
    unknown = {i: token for token, i in tokenizer.get_vocab().items() if i >= n_words}
    if unknown:
        tokens = ", ".join(f"{unknown[i]!r} ({i})" for i in sorted(unknown)[:3])
        raise ModelError(
            f"{model.path}: found {len(unknown)} tokens of the tokenizer that the model does not "
            f"know, {tokens}{' and more' if len(unknown) > 3 else ''}: the tokenizer's ids reach "
            f"{max(unknown)}, the model has {n_words} embeddings, expected one for each token. "
            "Save the model after resize_token_embeddings, or the tokenizer it was trained with."
        )


def _refuse_mismatched(model: ModelSpec, mismatched: Any) -> None:
    """Raises where weights have other shapes than those that config.json asks for."""
    if mismatched:
        name, found, wanted = sorted(mismatched, key=lambda item: item[0])[0]
        more = len(mismatched) - 1
        raise ModelError(
            f"{model.path}: found the weight {name} of shape {tuple(found)}"
            f"{f' and {more} more that do not fit' if more else ''}, expected "
            f"{tuple(wanted)} by config.json (num_labels or id2label, vocab_size, or a size of "
            "layers). Correct config.json, or save weights and config together."
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
    # Imported here: it takes a while, which stages that run no model are spared.
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    # None of a model whose own code makes its network.
    network_class: Any = MODEL_MAPPING.get(type(config), None)
    accepted = inspect.signature(network_class).parameters if network_class else ()
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}
