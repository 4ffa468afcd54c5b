"""LoRA adapters in a network: trained ones, and fresh ones as fine-tuning begins with them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.model.hub import adapter_folder, as_model_error, quiet
from stages.model.seeded import generator_of
from stages.model.spec import Lora, ModelSpec
from stages.stage import ConfigError, ModelError
from storage.extras import install_command


def adapted(model: ModelSpec, network: Any) -> Any:
    """The network with the trained adapter that `model` names, or with fresh ones, or unchanged.

    A of a fresh adapter depends on the seed and the layer's name alone.

    Raises:
        ModelError: peft is not installed, or the trained adapter does not fit.
        ConfigError: `targets` of fresh adapters name no linear layers.
    """
    if model.adapter is None and model.train.lora is None:
        return network
    peft = _package(model)
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


def saved_beside(model: ModelSpec) -> set[str]:
    """Names of the weights that the trained adapter of `model` holds whole, such as a head's.

    Raises:
        ModelError: peft is not installed, or the adapter cannot be read.
    """
    if model.adapter is None:
        return set()
    peft, folder = _package(model), adapter_folder(model.adapter)
    with quiet(), as_model_error(folder, "adapter"):
        weights = peft.load_peft_weights(str(folder), device="cpu")
    return {key.removeprefix("base_model.model.") for key in weights if ".lora_" not in key}


def _package(model: ModelSpec) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            f"{model.path}: found no package peft, expected it for LoRA adapters. "
            f"Run `{install_command('lora')}`."
        ) from error
    return peft


def _load_adapter(peft: Any, folder: Path, network: Any) -> None:
    """Loads a trained adapter into the network, and the head saved with it into the network's.

    The adapter's names of layers are relative to the model it was trained in: this network's trunk,
    or a whole model around the trunk. A saved head is left out where the network is a bare trunk,
    on which another head is put.

    Raises:
        ModelError: it is no LoRA adapter, its weights and the network's layers do not match, or it
            changed weights of the network that it does not hold.
    """
    with quiet(), as_model_error(folder, "adapter"):
        config = peft.PeftConfig.from_pretrained(str(folder))
        weights = peft.load_peft_weights(str(folder), device="cpu")
    if str(config.init_lora_weights).startswith("pissa_niter"):
        raise ModelError(
            f"{folder}: found init_lora_weights: {config.init_lora_weights}, which took a random "
            "part of the model's own weights that the adapter does not hold, expected an adapter "
            "beside the whole weights. Save it again by save_pretrained with "
            "path_initial_model_for_weight_conversion."
        )
    modules = {name for name, _ in network.named_modules()}
    base = network.base_model_prefix

    def place(path: str) -> str | None:
        """Name in the network of the layer that the adapter calls `path`; None if it has none."""
        tried = (path, path.removeprefix(f"{base}."), f"{base}.{path}")
        return next((name for name in tried if name in modules), None)

    adapters: dict[str, Tensor] = {}
    targets, unplaced = set(), []
    is_tied = getattr(config, "ensure_weight_tying", False)
    for key, weight in weights.items():
        key = key.removeprefix("base_model.model.")
        path, kind, leaf = key.partition(".lora_")
        if not kind:
            path, kind, leaf = key.rpartition(".")
        if leaf == "bias":  # with `bias: all` peft names them by the modules that it puts around
            if path.endswith(".original_module"):
                continue
            path = path.removesuffix(".base_layer").removesuffix(".modules_to_save")
        module = place(path)
        if module is None:
            is_head = kind == "." and network is network.base_model
            unplaced += [] if is_head else [key]
        elif kind == ".lora_":
            targets.add(module)
            adapters[f"{module}{kind}{leaf}"] = weight
        elif getattr(network.get_submodule(module), leaf, torch.empty(0)).shape == weight.shape:
            own = network.get_submodule(module).get_parameter(leaf)
            if is_tied:
                own.data.copy_(weight)
            else:
                # A module that is trained beside adapters no longer shares its weight.
                replaced = nn.Parameter(weight.to(own.dtype), requires_grad=False)
                setattr(network.get_submodule(module), leaf, replaced)
        else:
            unplaced.append(key)
    if config.peft_type != peft.PeftType.LORA or not targets or unplaced:
        raise ModelError(
            f"{folder}: found an adapter of type {config.peft_type.value} whose weights "
            f"{', '.join(unplaced[:3]) or 'are none'} have no place in the model, expected a LoRA "
            "adapter of this model. Correct model.adapter or model.path."
        )
    # Layers by full name: other fields of the config that choose layers suit the original model.
    config.target_modules = targets
    config.exclude_modules = config.modules_to_save = config.task_type = None
    config.layers_to_transform = config.layers_pattern = None
    config.rank_pattern = {place(path) or path: r for path, r in config.rank_pattern.items()}
    config.alpha_pattern = {place(path) or path: a for path, a in config.alpha_pattern.items()}
    # It would have peft import a module that the folder names, and look for saved modules again.
    config.megatron_config, config.ensure_weight_tying = None, False
    config.inference_mode = True
    # These begin by taking from the weight of a layer what the adapter has at the start; how others
    # began does not matter.
    if config.init_lora_weights not in ("pissa", "olora"):
        config.init_lora_weights = True
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
    """Fills a weight with peft's default, uniform within 1 / sqrt(inputs), drawn from `name`."""
    bound = weight.shape[1] ** -0.5
    drawn = torch.rand(weight.shape, generator=generator_of(name)) * (2 * bound) - bound
    with torch.no_grad():
        weight.copy_(drawn)
