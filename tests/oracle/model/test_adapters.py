"""Trained adapters against the model that was trained, as peft has it."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pytest
import torch
import transformers

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
    lora = peft.LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM", **config)
    wrapped = peft.get_peft_model(network, lora)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(place)
    return wrapped.eval()


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
