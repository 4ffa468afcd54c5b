"""Trained adapters against the model that was trained, as peft has it."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pytest
import torch
import transformers
from adapters import save_moved
from safetensors.torch import load_file, save_file

from stages.model.measurement import Measurement, load_measurement
from stages.model.spec import ModelSpec
from stages.stage import ModelError

# peft asks transformers by an old name, and warns of weights that will be or are no longer shared.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing:FutureWarning",
    "ignore:Model has `tie_word_embeddings:UserWarning",
    "ignore:You have requested `ensure_weight_tying`, but no tied modules were found:UserWarning",
)


def trained(folder: Path, place: Path, **config: Any) -> Any:
    """A causal model with an adapter that a training has moved, and saved in `place`."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return moved(network, place, target_modules=["q_proj"], task_type="CAUSAL_LM", **config)


def moved(network: Any, place: Path, **config: Any) -> Any:
    """The model with an adapter of which no weight is zero, and which is saved in `place`."""
    wrapped = peft.get_peft_model(network, peft.LoraConfig(r=3, **config))
    return save_moved(wrapped, place).eval()


def log_likelihoods(network: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean of each row, by the whole model's logits."""
    targets = batch["targets"]
    logits = network(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    return -losses.sum(1) / (targets != -100).sum(1)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_an_adapted_model_is_the_one_that_was_trained(
    saved: Any, text: pa.Table, memory: Any, tmp_path: Path, config: Any, is_tied: bool
) -> None:
    folder = saved("llama", "CausalLM", tie_word_embeddings=is_tied)
    wrapped = trained(folder, tmp_path / "adapter", **config)
    spec = ModelSpec(str(folder), head="completion", adapter=str(tmp_path / "adapter"))
    measurement: Measurement = load_measurement(spec, memory({}))
    batch = measurement.batch(measurement.tokenise(text), np.arange(text.num_rows))
    with torch.no_grad():
        wanted = log_likelihoods(wrapped, batch)
        torch.testing.assert_close(measurement.outputs(batch)[:, 0], wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_beside_weights_that_nobody_has_is_refused(
    saved: Any, memory: Any, tmp_path: Path
) -> None:
    folder = saved("llama", "CausalLM")
    trained(folder, tmp_path / "adapter", init_lora_weights="pissa_niter_4")
    spec = ModelSpec(str(folder), head="completion", adapter=str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match="found init_lora_weights: pissa_niter_4"):
        load_measurement(spec, memory({}))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize(("kind", "target"), [("bert", "query"), ("gpt2", "c_attn")])
def test_biases_that_are_trained_with_an_adapter_are_the_models(
    saved: Any, text: pa.Table, memory: Any, tmp_path: Path, kind: str, target: str, bias: Any
) -> None:
    folder, place = saved(kind, "SequenceClassification"), tmp_path / "adapter"
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    config = {"target_modules": [target], "bias": bias, "fan_in_fan_out": kind == "gpt2"}
    wrapped = moved(network, place, task_type="SEQ_CLS", **config)
    spec = ModelSpec(str(folder), head="checkpoint", adapter=str(place))
    measurement: Measurement = load_measurement(spec, memory({}))
    batch = measurement.batch(measurement.tokenise(text), np.arange(text.num_rows))
    with torch.no_grad():
        found, wanted = measurement.outputs(batch), wrapped(**batch).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama"])
def test_a_head_that_is_saved_with_an_adapter_is_the_models(
    saved: Any, text: pa.Table, memory: Any, tmp_path: Path, kind: str
) -> None:
    # As after a fine-tuning of a model that had no head before.
    folder = saved(kind)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    target = {"llama": ["q_proj"], "distilbert": ["q_lin"]}.get(kind, ["query"])
    place = tmp_path / "adapter"
    wrapped = moved(network, place, target_modules=target, task_type="SEQ_CLS")
    spec = ModelSpec(str(folder), head="checkpoint", adapter=str(place))
    measurement: Measurement = load_measurement(spec, memory({}))
    batch = measurement.batch(measurement.tokenise(text), np.arange(text.num_rows))
    with torch.no_grad():
        found = measurement.outputs(batch)
        torch.testing.assert_close(found, wrapped(**batch).logits, rtol=1e-4, atol=1e-4)
    assert found.shape == (text.num_rows, 3)
    with pytest.raises(ModelError, match="found no weights for"):
        load_measurement(ModelSpec(str(folder), head="checkpoint"), memory({}))


def test_a_head_that_an_adapter_holds_a_part_of_is_refused(
    saved: Any, memory: Any, tmp_path: Path
) -> None:
    folder, place = saved("bert"), tmp_path / "adapter"
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    moved(network, place, target_modules=["query"], task_type="SEQ_CLS")
    weights = load_file(place / "adapter_model.safetensors")
    del weights["base_model.model.classifier.bias"]
    save_file(weights, place / "adapter_model.safetensors")
    spec = ModelSpec(str(folder), head="checkpoint", adapter=str(place))
    with pytest.raises(ModelError, match=r"found no weights for classifier.bias, expected"):
        load_measurement(spec, memory({}))
