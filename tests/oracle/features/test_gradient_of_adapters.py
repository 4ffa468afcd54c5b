"""Gradients of LoRA adapters, fresh and trained, against autograd and peft's own loading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pytest
import torch
import transformers
from adapters import save_moved
from torch import nn
from transformers.pytorch_utils import Conv1D

from stages.features.gradient import Gradient
from stages.gradients.projection import Projection
from stages.model.hub import fingerprint
from stages.model.measurement import load_measurement
from stages.model.spec import Lora, ModelSpec, Trained
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, ModelError

EXACT: dict[str, Any] = {
    "projection": Projection(inputs=None, outputs=None, principal=0, dim=None),
    "dtype": "float32",
}
LABELS = [0, 1, 2, 1, 0, 2, 1]
# peft asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")
LORA = Lora(rank=3, alpha=6)


def loss(outputs: torch.Tensor, row: int) -> torch.Tensor:
    return -torch.log_softmax(outputs, 0)[LABELS[row]]


def assert_rows_equal(found: np.ndarray, expected: np.ndarray) -> None:
    size = np.linalg.norm(expected, axis=1)
    assert (size > 1e-6).all()
    assert (np.linalg.norm(found - expected, axis=1) / size).max() <= 1e-5


def parts_of(inputs: Any, table: pa.Table) -> dict[str, np.ndarray]:
    """The part of each layer in the vectors."""
    vectors = matrix_of(table["vector"])
    return {
        block["name"]: vectors[:, block["start"] : block["start"] + block["size"]]
        for block in inputs.opened.projector.sketch.blocks
    }


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize("head", ["checkpoint", "random"])
def test_a_fresh_adapter_projects_the_full_gradient(
    kind: str,
    head: Any,
    saved: Any,
    text: pa.Table,
    label: pa.Table,
    memory: Any,
    loop_gradients: Any,
    func_gradients: Any,
) -> None:
    folder = saved(kind, "SequenceClassification" if head == "checkpoint" else "")
    n_labels = 3 if head == "random" else None
    plain = ModelSpec(str(folder), head=head, num_labels=n_labels)
    adapted = ModelSpec(str(folder), head=head, num_labels=n_labels, train=Trained(lora=LORA))
    inputs = memory({"text": text, "label": label})
    full = parts_of(inputs, inputs.run(Gradient(plain, **EXACT)))
    table = inputs.run(Gradient(adapted, **EXACT))
    order = np.argsort(text["id"].to_numpy())
    measurement = inputs.opened.measurement
    for oracle in (loop_gradients, func_gradients):
        expected = oracle(measurement, text, loss, adapted.train)[order]
        assert_rows_equal(matrix_of(table["vector"]), expected)
    # B is zero: A, whose gradient is zero, is left out. That of B is alpha / rank G A', with G the
    # gradient of the layer itself.
    parts = parts_of(inputs, table)
    modules = dict(measurement.network.named_modules())
    bases = [name.removesuffix(".lora_B.default") for name in parts if ".lora_B." in name]
    for base in bases:
        a_name, b_name = f"{base}.lora_A.default", f"{base}.lora_B.default"
        assert a_name not in parts
        a = modules[a_name].weight.numpy()
        gradient = full[base].reshape(len(LABELS), -1, a.shape[1])
        wanted = LORA.alpha / LORA.rank * gradient @ a.T
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(
            parts[b_name], wanted.reshape(len(LABELS), -1), rtol=0, atol=1e-5 * scale
        )
    # Adapters on every layer of the trunk; the head's layers are trained themselves.
    heads = {name for name in full if name.split(".")[0] == "head"}
    if head == "checkpoint":
        heads = {n for n in full if n.split(".")[1] in {"classifier", "score", "pre_classifier"}}
    assert set(parts) - {f"{base}.lora_B.default" for base in bases} == heads
    assert set(bases) == set(full) - heads
    for name in heads:
        np.testing.assert_allclose(
            parts[name], full[name], rtol=0, atol=1e-5 * np.abs(full[name]).max()
        )


def test_targets_choose_the_layers_with_an_adapter(
    saved: Any, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    trained = Trained(lora=Lora(rank=2, targets=("q_proj", "v_proj")))
    model = ModelSpec(str(saved("llama")), head="random", num_labels=3, train=trained)
    inputs = memory({"text": text, "label": label})
    inputs.run(Gradient(model, **EXACT))
    names = list(inputs.opened.projector.modules)
    assert len(names) == 2 * 2 + 1
    assert all(name == "head" or "q_proj.lora" in name or "v_proj.lora" in name for name in names)


def test_adapters_of_the_last_blocks(
    saved: Any, text: pa.Table, label: pa.Table, memory: Any, loop_gradients: Any
) -> None:
    trained = Trained(lora=LORA, last_blocks=1)
    model = ModelSpec(str(saved("bert")), head="random", num_labels=3, train=trained)
    inputs = memory({"text": text, "label": label})
    vectors = matrix_of(inputs.run(Gradient(model, **EXACT))["vector"])
    names = list(inputs.opened.projector.modules)
    assert all(name == "head" or ".layer.1." in name for name in names)
    expected = loop_gradients(inputs.opened.measurement, text, loss, trained)
    assert_rows_equal(vectors, expected[np.argsort(text["id"].to_numpy())])


def test_a_is_drawn_from_the_seed_and_the_name(saved: Any, memory: Any) -> None:
    def weights(**lora: Any) -> dict[str, torch.Tensor]:
        trained = Trained(lora=Lora(rank=2, **lora))
        model = ModelSpec(str(saved("bert")), head="random", num_labels=3, train=trained)
        network = load_measurement(model, memory({})).network
        return {n: p for n, p in network.named_parameters() if ".lora_A." in n}

    every, some, other = weights(), weights(targets=("query",)), weights(seed=1)
    assert len(every) == 12
    assert len(some) == 2
    assert all(weight.equal(every[name]) for name, weight in some.items())
    assert not any(weight.equal(other[name]) for name, weight in every.items())
    shaped = [weight for weight in every.values() if weight.shape == (2, 32)]
    assert not shaped[0].equal(shaped[1])
    assert all(weight.abs().max() <= 32**-0.5 for weight in shaped)


def test_targets_must_name_linear_layers(saved: Any, memory: Any) -> None:
    trained = Trained(lora=Lora(targets=("nothing",)))
    model = ModelSpec(str(saved("bert")), head="random", num_labels=3, train=trained)
    with pytest.raises(ConfigError, match=r"lora: found targets: \['nothing'\]"):
        load_measurement(model, memory({}))


def save_adapter(folder: Path, network: Any, place: Path, **config: Any) -> Path:
    """A trained adapter of the network as peft saves it: no weight of it is zero."""
    is_transposed = any(isinstance(m, Conv1D) for m in network.modules())
    lora = peft.LoraConfig(r=3, lora_alpha=6, fan_in_fan_out=is_transposed, **config)
    save_moved(peft.get_peft_model(network, lora), place)
    return place


def peft_gradients(wrapped: Any, measure: Callable[[Any, int], Any], n_rows: int) -> np.ndarray:
    """Of the model as peft loads it, by all weights it trains that are those of linear layers."""
    wrapped = wrapped.double().eval()
    modules = dict(wrapped.named_modules())
    kept = [
        module.weight.requires_grad_()
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and ("lora_" in name or "modules_to_save" in name)
    ]
    rows = [torch.autograd.grad(measure(wrapped, row), kept) for row in range(n_rows)]
    return np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in rows])


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_a_trained_adapter_of_a_classifier(
    kind: str, saved: Any, text: pa.Table, label: pa.Table, memory: Any, tmp_path: Path
) -> None:
    folder = saved(kind, "SequenceClassification")
    load: Any = transformers.AutoModelForSequenceClassification.from_pretrained
    place = save_adapter(folder, load(folder), tmp_path / "adapter", task_type="SEQ_CLS")
    model = ModelSpec(str(folder), head="checkpoint", adapter=str(place))
    inputs = memory({"text": text, "label": label})
    vectors = matrix_of(inputs.run(Gradient(model, **EXACT))["vector"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = text.to_pylist()

    def measure(network: Any, row: int) -> torch.Tensor:
        encoded = tokenizer(rows[row]["text"], rows[row]["text_b"], return_tensors="pt")
        return loss(network(**encoded).logits[0], row)

    wrapped = peft.PeftModel.from_pretrained(load(folder), str(place))
    expected = peft_gradients(wrapped, measure, len(rows))
    assert_rows_equal(vectors, expected[np.argsort(text["id"].to_numpy())])
    assert fingerprint(model) != fingerprint(ModelSpec(str(folder), head="checkpoint"))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_trained_adapter_of_a_causal_model(
    kind: str, saved: Any, text: pa.Table, memory: Any, tmp_path: Path
) -> None:
    folder = saved(kind, "CausalLM")
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    place = save_adapter(folder, load(folder), tmp_path / "adapter", task_type="CAUSAL_LM")
    model = ModelSpec(str(folder), head="completion", adapter=str(place))
    label = text.select(["id", "role"])
    inputs = memory({"text": text, "label": label}, {"label": {"task": "completion"}})
    vectors = matrix_of(inputs.run(Gradient(model, **EXACT))["vector"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def measure(network: Any, row: int) -> torch.Tensor:
        ids = tokenizer(text["text"][row].as_py())["input_ids"] + [tokenizer.eos_token_id]
        encoded = torch.tensor([ids])
        return network(input_ids=encoded, labels=encoded).loss

    wrapped = peft.PeftModel.from_pretrained(load(folder), str(place))
    expected = peft_gradients(wrapped, measure, text.num_rows)
    assert_rows_equal(vectors, expected[np.argsort(text["id"].to_numpy())])


@pytest.mark.parametrize("task", ["", "CausalLM"])
def test_a_trained_adapter_under_a_random_head(
    task: str,
    saved: Any,
    text: pa.Table,
    label: pa.Table,
    memory: Any,
    tmp_path: Path,
) -> None:
    # The trunk is the same whatever it was saved with, and so is its adapter.
    folder = saved("llama", task)
    load: Any = getattr(transformers, f"AutoModel{f'For{task}' if task else ''}").from_pretrained
    place = save_adapter(folder, load(folder), tmp_path / "adapter", target_modules="all-linear")
    model = ModelSpec(str(folder), head="random", num_labels=3, adapter=str(place))
    inputs = memory({"text": text, "label": label})
    inputs.run(Gradient(model, **EXACT))
    measurement = inputs.opened.measurement
    wrapped = peft.PeftModel.from_pretrained(load(folder), str(place))
    trunk = wrapped.base_model.model if task == "" else wrapped.base_model.model.model
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = measurement.tokenise(text)
    with torch.no_grad():
        found = measurement.outputs(measurement.batch(tokens, np.arange(text.num_rows)))
        for row, output in zip(text.to_pylist(), found, strict=True):
            encoded = tokenizer(row["text"], row["text_b"], return_tensors="pt")
            mean = trunk(**encoded).last_hidden_state[0].mean(0)
            torch.testing.assert_close(output, measurement.network.head(mean), rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_model_is_refused(saved: Any, memory: Any, tmp_path: Path) -> None:
    other = saved("gpt2")
    load: Any = transformers.AutoModel.from_pretrained
    place = save_adapter(other, load(other), tmp_path / "adapter", target_modules="all-linear")
    model = ModelSpec(str(saved("bert")), head="random", num_labels=3, adapter=str(place))
    with pytest.raises(ModelError, match="adapter"):
        load_measurement(model, memory({}))


def test_an_adapter_folder_needs_its_config(saved: Any, memory: Any, tmp_path: Path) -> None:
    model = ModelSpec(str(saved("bert")), head="random", num_labels=3, adapter=str(tmp_path))
    with pytest.raises(ModelError, match=r"found no adapter_config.json"):
        load_measurement(model, memory({}))
