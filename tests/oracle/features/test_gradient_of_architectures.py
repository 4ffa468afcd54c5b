"""Loss gradients of every kind of head and architecture, against autograd and `torch.func`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from torch import nn

from stages.features.gradient import Gradient
from stages.features.ntk import Ntk
from stages.gradients.projection import Projection
from stages.model.layers import trained_layers
from stages.model.measurement import Measurement
from stages.model.spec import ModelSpec, Trained
from stages.reading.vectors import matrix_of

EXACT: dict[str, Any] = {
    "projection": Projection(inputs=None, outputs=None, principal=0, dim=None),
    "dtype": "float32",
}
LABELS = [0, 1, 2, 1, 0, 2, 1]
TARGETS = [0.5, -1.0, 2.0, 0.0, 1.5, -0.25, 3.0]
KINDS = ["bert", "roberta", "distilbert", "gpt2", "llama", "deberta-v2", "opt"]
Oracle = Callable[..., np.ndarray]


def loss(outputs: torch.Tensor, row: int) -> torch.Tensor:
    return -torch.log_softmax(outputs, 0)[LABELS[row]]


def squared_error(outputs: torch.Tensor, row: int) -> torch.Tensor:
    return (outputs[0] - TARGETS[row]) ** 2


def probe_table(n_classes: int = 3) -> pa.Table:
    weight = torch.randn(n_classes, 32, generator=torch.Generator().manual_seed(1))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(weight.flatten().numpy()), 32)
    bias = pa.array([0.1, -0.2, 0.3][:n_classes], pa.float32())
    return pa.table({"class": range(n_classes), "weight": lists, "bias": bias})


def regression(text: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    columns = {"id": text["id"], "role": text["role"], "target": pa.array(TARGETS)}
    return pa.table(columns), {"label": {"task": "regression"}}


def assert_rows_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-5 of each row's norm: float32 against float64 through two blocks and back."""
    size = np.linalg.norm(expected, axis=1)
    assert (size > 1e-6).all()
    assert (np.linalg.norm(found - expected, axis=1) / size).max() <= 1e-5


def assert_exact(
    stage: Gradient,
    inputs: Any,
    text: pa.Table,
    oracles: list[Oracle],
    measured: Any = loss,
) -> Measurement:
    """The stage's rows are the gradients that the oracles find; the measurement, for more."""
    table = inputs.run(stage)
    order = np.argsort(text["id"].to_numpy())
    assert table["id"].to_pylist() == sorted(text["id"].to_pylist())
    assert set(inputs.written["diagnostics"]["status"].to_pylist()) == {"ok"}
    measurement: Measurement = inputs.opened.measurement
    for oracle in oracles:
        expected = oracle(measurement, text, measured, stage.model.train)[order]
        assert_rows_equal(matrix_of(table["vector"]), expected)
    norms = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(inputs.written["diagnostics"]["norm"], norms, rtol=1e-5)
    return measurement


@pytest.fixture
def oracles(loop_gradients: Oracle, func_gradients: Oracle) -> list[Oracle]:
    return [loop_gradients, func_gradients]


def outputs_of(measurement: Measurement, text: pa.Table) -> np.ndarray:
    """Of all rows in one padded batch."""
    tokens = measurement.tokenise(text)
    batch = measurement.batch(tokens, np.arange(text.num_rows))
    with torch.no_grad():
        return measurement.outputs(batch).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_heads(
    kind: str, saved: Any, text: pa.Table, label: pa.Table, memory: Any, oracles: list[Oracle]
) -> None:
    folder = saved(kind, "SequenceClassification")
    stage = Gradient(ModelSpec(str(folder), head="checkpoint"), **EXACT)
    measurement = assert_exact(stage, memory({"text": text, "label": label}), text, oracles)
    # The logits are those of the model as transformers loads and runs it, one row at a time.
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [
            network(**tokenizer(row["text"], row["text_b"], return_tensors="pt")).logits[0].numpy()
            for row in text.to_pylist()
        ]
    np.testing.assert_allclose(outputs_of(measurement, text), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_random_heads(
    kind: str, saved: Any, text: pa.Table, label: pa.Table, memory: Any, oracles: list[Oracle]
) -> None:
    folder = saved(kind)
    model = ModelSpec(str(folder), head="random", num_labels=3)
    inputs = memory({"text": text, "label": label})
    measurement = assert_exact(Gradient(model, **EXACT), inputs, text, oracles)
    # The head reads the mean of the last hidden states.
    network = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        means = [
            network(**tokenizer(row["text"], row["text_b"], return_tensors="pt"))
            .last_hidden_state[0]
            .mean(0)
            for row in text.to_pylist()
        ]
        logits = measurement.network.head(torch.stack(means))
    np.testing.assert_allclose(outputs_of(measurement, text), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_probe_heads(
    kind: str, saved: Any, text: pa.Table, label: pa.Table, memory: Any, oracles: list[Oracle]
) -> None:
    inputs = memory({"text": text, "label": label, "probe": probe_table()})
    assert_exact(Gradient(ModelSpec(str(saved(kind))), **EXACT), inputs, text, oracles)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("head", ["random", "checkpoint", "probe"])
def test_regression_is_the_squared_error(
    kind: str, head: Any, saved: Any, text: pa.Table, memory: Any, oracles: list[Oracle]
) -> None:
    task = "SequenceClassification" if head == "checkpoint" else ""
    folder = saved(kind, task, num_labels=1)
    model = ModelSpec(str(folder), head=head, num_labels=1 if head == "random" else None)
    target, details = regression(text)
    inputs = memory({"text": text, "label": target, "probe": probe_table(1)}, details)
    assert_exact(Gradient(model, **EXACT), inputs, text, oracles, squared_error)
    numbers = dict(zip(text["id"].to_pylist(), TARGETS, strict=True))
    written = inputs.written["diagnostics"].to_pylist()
    outputs = outputs_of(inputs.opened.measurement, text.sort_by("id"))[:, 0]
    for row, output in zip(written, outputs, strict=True):
        assert row["measured"] == pytest.approx((output - numbers[row["id"]]) ** 2, rel=1e-4)


def test_torch_func_maps_over_rows_of_one_length(
    saved: Any, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    # vmap over a batch of rows without padding, with attention written out.
    rows = text.take([0, 3]).set_column(3, "text_b", pa.nulls(2, pa.string()))
    folder = saved("bert", "SequenceClassification")
    stage = Gradient(ModelSpec(str(folder), head="checkpoint"), **EXACT)
    found = memory({"text": rows, "label": label}).run(stage)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(rows["text"].to_pylist(), return_tensors="pt")["input_ids"].unsqueeze(1)
    weights = {
        f"{name}.weight": module.weight.detach()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }

    def row_loss(chosen: Any, row: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(network, chosen, (row,)).logits[0]
        return -torch.log_softmax(logits, 0).gather(0, answer[None])[0]

    answers = torch.tensor([LABELS[0], LABELS[3]])
    gradients = torch.func.vmap(torch.func.grad(row_loss), (None, 0, 0))(weights, ids, answers)
    expected = torch.cat([g.flatten(1) for g in gradients.values()], dim=1).detach().numpy()
    order = np.argsort(rows["id"].to_numpy())
    assert_rows_equal(matrix_of(found["vector"]), expected[order])


@pytest.mark.parametrize(
    ("kind", "n_blocks", "expected"),
    [
        ("bert", 1, ["encoder.layer.1.*", "pooler.dense", "classifier"]),
        ("bert", 0, ["pooler.dense", "classifier"]),
        ("distilbert", 1, ["layer.1.*", "pre_classifier", "classifier"]),
        ("roberta", 1, ["layer.1.*", "r.dense", "r.out_proj"]),
        ("gpt2", 1, ["h.1.*", "score"]),
        ("llama", 1, ["layers.1.*", "score"]),
        ("llama", 2, ["layers.*", "score"]),
    ],
)
def test_last_blocks_and_what_lies_above(
    kind: str,
    n_blocks: int,
    expected: list[str],
    saved: Any,
    text: pa.Table,
    label: pa.Table,
    memory: Any,
    oracles: list[Oracle],
) -> None:
    folder = saved(kind, "SequenceClassification")
    model = ModelSpec(str(folder), head="checkpoint", train=Trained(last_blocks=n_blocks))
    inputs = memory({"text": text, "label": label})
    measurement = assert_exact(Gradient(model, **EXACT), inputs, text, oracles)
    names = list(inputs.opened.projector.modules)
    patterns = Trained(layers=tuple(f"classifier.*{pattern}" for pattern in expected))
    assert names == list(trained_layers(measurement.network, patterns))
    assert [name for name in names if ".0." in name] == [] or n_blocks == 2


@pytest.mark.parametrize(
    ("patterns", "n_layers"),
    [(("*query",), 2), (("*.0.*", "*classifier"), 7), (("classifier.classifier",), 1)],
)
def test_patterns_choose_layers(
    patterns: tuple[str, ...],
    n_layers: int,
    saved: Any,
    text: pa.Table,
    label: pa.Table,
    memory: Any,
    oracles: list[Oracle],
) -> None:
    folder = saved("bert", "SequenceClassification")
    model = ModelSpec(str(folder), head="checkpoint", train=Trained(layers=patterns))
    inputs = memory({"text": text, "label": label})
    assert_exact(Gradient(model, **EXACT), inputs, text, oracles)
    assert len(inputs.opened.projector.modules) == n_layers


@pytest.mark.parametrize("output", ["logit", "margin"])
@pytest.mark.parametrize("logit", [0, 2, "all"])
def test_kernel_is_that_of_full_jacobians(
    logit: Any, output: Any, saved: Any, text: pa.Table, memory: Any, loop_gradients: Oracle
) -> None:
    model = ModelSpec(str(saved("gpt2")), head="random", num_labels=3)
    inputs = memory({"text": text})
    table = inputs.run(Ntk(model, logit=logit, output=output, **EXACT))
    order = np.argsort(text["id"].to_numpy())
    chosen = [0, 1, 2] if logit == "all" else [logit]

    def number(outputs: torch.Tensor, c: int) -> torch.Tensor:
        p = torch.softmax(outputs, 0)[c]
        return outputs[c] if output == "logit" else torch.log(p / (1 - p))

    jacobian = [
        loop_gradients(inputs.opened.measurement, text, lambda outputs, _, c=c: number(outputs, c))
        for c in chosen
    ]
    vectors = matrix_of(table["vector"])
    assert_rows_equal(vectors, np.concatenate(jacobian, axis=1)[order])
    kernel = sum(j[order] @ j[order].T for j in jacobian)
    np.testing.assert_allclose(vectors @ vectors.T, kernel, rtol=1e-5, atol=1e-5 * kernel.max())
    assert inputs.told.n_not_finite == 0


def test_a_folder_of_its_own_for_each_kind(saved: Callable[..., Path]) -> None:
    assert saved("bert") != saved("bert", "SequenceClassification")
