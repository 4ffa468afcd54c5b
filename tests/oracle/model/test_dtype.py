"""A checkpoint in bfloat16: as it is, or in float32 with the same numbers."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from stages.features.embedding import Embedding
from stages.features.gradient import Gradient
from stages.features.hidden_states import HiddenStates
from stages.features.ntk import Ntk
from stages.gradients.projection import Projection
from stages.model.measurement import load_measurement
from stages.model.size import network_size
from stages.model.spec import Lora, ModelSpec, Prompt, Trained
from stages.predictions.answer_loss import AnswerLoss
from stages.predictions.continuation import Continuation
from stages.predictions.prediction import Prediction
from stages.predictions.spectral_entropy import SpectralEntropy
from stages.reading.vectors import matrix_of
from stages.tokens.attn_lrp import AttnLrp
from stages.tokens.ig import IntegratedGradients

PROMPT = Prompt("{text} It was", ("great", "terrible"))
MASKED = Prompt("{text} It was {mask}.", ("great", "bad"))
OF_TOKENS = ("IntegratedGradients", "AttnLrp")


@pytest.fixture(scope="module")
def halves(
    saved: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path]]:
    """`halves("llama", "CausalLM")`: a checkpoint in bfloat16, and the same numbers in float32."""

    @functools.cache
    def save(kind: str, task: str) -> tuple[Path, Path]:
        source = saved(kind, task)
        folders = [tmp_path_factory.mktemp(f"{kind}{task}{name}") for name in ("half", "whole")]
        loader = getattr(transformers, f"AutoModelFor{task}")
        network = loader.from_pretrained(source, dtype=torch.bfloat16)
        for folder, dtype in zip(folders, (torch.bfloat16, torch.float32), strict=True):
            shutil.copytree(source, folder, dirs_exist_ok=True)
            network.to(dtype).save_pretrained(folder)
        return folders[0], folders[1]

    return save


def error(found: Any, expected: Any) -> float:
    """Of the rows of two matrices, relative to the Euclidean norm of all."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def weights(folder: Path, dtype: Any, memory: Any) -> list[torch.Tensor]:
    spec = ModelSpec(str(folder), head="checkpoint", dtype=dtype)
    return list(load_measurement(spec, memory({})).network.parameters())


def test_weights_have_the_type_that_is_asked_for(halves: Any, memory: Any) -> None:
    half, whole = halves("bert", "SequenceClassification")
    expected = weights(whole, "float32", memory)
    for folder, dtype, found in (
        (half, "float32", torch.float32),
        (half, "auto", torch.bfloat16),
        (half, "bfloat16", torch.bfloat16),
        (whole, "auto", torch.float32),
        (whole, "bfloat16", torch.bfloat16),
    ):
        parameters = weights(folder, dtype, memory)
        assert {p.dtype for p in parameters} == {found}
        # Bfloat16 to float32 loses nothing, and these numbers began as bfloat16.
        assert all(torch.equal(p.float(), e) for p, e in zip(parameters, expected, strict=True))
        spec = ModelSpec(str(folder), head="checkpoint", dtype=dtype)
        assert network_size(spec, 3).weight_bytes == found.itemsize


def test_a_classifier_in_bfloat16_is_that_in_float32_to_its_rounding(
    halves: Any, memory: Any, text: pa.Table, label: pa.Table
) -> None:
    half, whole = halves("bert", "SequenceClassification")
    queries = text.set_column(1, "role", pa.array(["query"] * text.num_rows))

    def results(folder: Path, dtype: Any) -> dict[str, np.ndarray]:
        model = ModelSpec(str(folder), head="checkpoint", dtype=dtype)
        small = {"projection": Projection(inputs=8, outputs=8, principal=2, dim=200)}
        stages: list[Any] = [
            Embedding(model),
            HiddenStates(model),
            Prediction(model),
            Ntk(model, logit="all", **small),
            Gradient(model, **small),
        ]
        inputs = memory({"text": text, "label": label}, {"label": {"task": "classification"}})
        found = {}
        for stage in stages:
            table = inputs.run(stage).sort_by("id")
            column = "logits" if "logits" in table.column_names else "vector"
            found[type(stage).__name__] = matrix_of(table[column])
        for stage in (IntegratedGradients(model, steps=5, baseline="pad"), AttnLrp(model)):
            table = memory({"text": queries}).run(stage)
            found[type(stage).__name__] = table["score"].to_numpy()[None]
        return found

    exact, rounded = results(whole, "float32"), results(half, "auto")
    unasked = results(half, "float32")
    for name, expected in exact.items():
        assert unasked[name].tobytes() == expected.tobytes(), name
        if name in OF_TOKENS:
            assert rounded[name].tobytes() == expected.tobytes(), name
        else:
            # Two layers of numbers with eight bits.
            assert 0 < error(rounded[name], expected) < 0.1, name


@pytest.mark.parametrize("train", [Trained(), Trained(lora=Lora(rank=4))], ids=["all", "lora"])
def test_a_language_model_in_bfloat16_is_that_in_float32_to_its_rounding(
    halves: Any, memory: Any, train: Trained
) -> None:
    half, whole = halves("llama", "CausalLM")
    ids, role = pa.array([1, 2, 3]), ["example"] * 3
    prompts, completions = ["good film", "the plot is", "not"], [" bad", " very bright", " good"]
    text = pa.table({"id": ids, "role": role, "text": prompts, "text_b": completions})
    label = pa.table({"id": ids, "role": role})
    details = {"text": {"format": "prompt_completion"}, "label": {"task": "completion"}}

    def results(folder: Path, dtype: Any) -> list[np.ndarray]:
        model = ModelSpec(str(folder), head="completion", train=train, dtype=dtype)
        stage = Gradient(model, projection=Projection(inputs=8, outputs=8, principal=2, dim=200))
        inputs = memory({"text": text, "label": label}, details)
        losses = inputs.run(AnswerLoss(model)).sort_by("id")
        vectors = matrix_of(inputs.run(stage)["vector"])
        measured = inputs.written["diagnostics"]["measured"].to_numpy()
        return [vectors, measured, losses["loss"].to_numpy(), matrix_of(losses["vector"])]

    exact, rounded = results(whole, "float32"), results(half, "auto")
    assert all(
        a.tobytes() == b.tobytes() for a, b in zip(exact, results(half, "float32"), strict=True)
    )
    assert all(0 < error(a, b) < 0.1 for a, b in zip(rounded, exact, strict=True))


def test_tokens_are_explained_in_float32(halves: Any, memory: Any) -> None:
    half, whole = halves("llama", "CausalLM")
    text = pa.table(
        {
            "id": [1, 2, 3],
            "role": ["example", "example", "query"],
            "text": ["good film", "the plot is slow", "the film is"],
            "text_b": pa.nulls(3, pa.string()),
        }
    )
    tables = []
    for folder, dtype in ((whole, "float32"), (half, "auto")):
        model = ModelSpec(str(folder), head="completion", dtype=dtype)
        inputs = memory({"text": text}, {"text": {"format": "text"}})
        written = inputs.run(Continuation(model, new_tokens=0, positions=2, words=None))
        tables.append((written, inputs.run(SpectralEntropy(model))))
    assert all(table.num_rows for table in tables[0])
    assert tables[1] == tables[0]


@pytest.mark.parametrize(
    ("kind", "task", "prompt"), [("llama", "CausalLM", PROMPT), ("bert", "MaskedLM", MASKED)]
)
def test_label_words_in_bfloat16(
    kind: str, task: str, prompt: Prompt, halves: Any, memory: Any, text: pa.Table
) -> None:
    half, whole = halves(kind, task)
    text = text.set_column(3, "text_b", pa.nulls(text.num_rows, pa.string()))
    found = []
    for folder, dtype in ((whole, "float32"), (half, "auto")):
        model = ModelSpec(str(folder), head="label_words", prompt=prompt, dtype=dtype)
        table = memory({"text": text}).run(Prediction(model))
        found.append(matrix_of(table.sort_by("id")["logits"]))
    assert 0 < error(found[1], found[0]) < 0.1
