"""Gradients with checkpointed blocks, and with attention computed in another way."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.features.gradient import Gradient
from stages.features.ntk import Ntk
from stages.gradients.projection import Projection
from stages.model.measurement import load_measurement
from stages.model.spec import Lora, ModelSpec, Trained
from stages.reading.vectors import matrix_of
from stages.stage import ModelError, Work

SMALL = Projection(inputs=8, outputs=8, principal=2, dim=200)
TRAINED = {"all": Trained(), "last": Trained(last_blocks=1), "lora": Trained(lora=Lora(rank=4))}
WORK = Work(n_examples=1000, n_queries=0, n_tokens=100_000, n_classes=3, dim=200)


def rows(memory: Any, text: pa.Table, label: pa.Table, stage: Any) -> np.ndarray:
    inputs = memory({"text": text, "label": label}, {"label": {"task": "classification"}})
    return matrix_of(inputs.run(stage).sort_by("id")["vector"])


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("stage", [Gradient, Ntk])
def test_checkpointing_changes_no_bit(
    stage: Any, trained: str, saved: Any, memory: Any, text: pa.Table, label: pa.Table
) -> None:
    folder = str(saved("llama", "SequenceClassification"))
    model = ModelSpec(folder, head="checkpoint", train=TRAINED[trained])
    found = [
        rows(memory, text, label, stage(model, projection=SMALL, checkpointing=wanted))
        for wanted in (False, True)
    ]
    assert found[0].any()
    assert found[1].tobytes() == found[0].tobytes()


def test_checkpointing_is_told_to_save_memory_and_cost_a_pass(saved: Any) -> None:
    folder = str(saved("llama", "SequenceClassification", num_hidden_layers=8))
    model = ModelSpec(folder, head="checkpoint")
    kept, again = (Ntk(model, checkpointing=wanted).cost(WORK) for wanted in (False, True))
    assert again.memory_bytes < kept.memory_bytes
    assert kept.flops < again.flops < 1.5 * kept.flops


@pytest.mark.parametrize(("kind", "task"), [("bert", ""), ("llama", "SequenceClassification")])
def test_attention_is_computed_as_it_is_asked_for(
    kind: str, task: str, saved: Any, memory: Any, text: pa.Table, label: pa.Table
) -> None:
    folder = str(saved(kind, task))
    head: dict[str, Any] = {"head": "checkpoint"} if task else {"head": "random", "num_labels": 3}
    found = {}
    for name in ("eager", "sdpa"):
        model = ModelSpec(folder, attn_implementation=name, **head)
        network: Any = load_measurement(model, memory({})).network
        inner = network.classifier if task else network.trunk
        assert inner.config._attn_implementation == name
        found[name] = rows(memory, text, label, Gradient(model, projection=SMALL))
    error = np.linalg.norm(found["eager"] - found["sdpa"]) / np.linalg.norm(found["eager"])
    assert error < 1e-4


def test_attention_that_the_machine_lacks_is_refused(saved: Any, memory: Any) -> None:
    folder = str(saved("bert", ""))
    model = ModelSpec(folder, head="random", num_labels=3, attn_implementation="flash_attention_2")
    with pytest.raises(ModelError, match=r"found attn_implementation: flash_attention_2.*Set ano"):
        load_measurement(model, memory({}))
