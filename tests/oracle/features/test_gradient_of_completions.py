"""Gradients of completions against autograd on the whole causal language model."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from stages.features.gradient import Gradient
from stages.gradients.projection import Projection
from stages.model.seeded import gaussian
from stages.model.spec import ModelSpec, Trained
from stages.reading.vectors import matrix_of
from stages.stage import ModelError, RefusedRow

EXACT: dict[str, Any] = {
    "projection": Projection(inputs=None, outputs=None, principal=0, dim=None),
    "dtype": "float32",
}
PROMPTS = ["good film", "the plot is", "a very dull and slow film", "", "not"]
COMPLETIONS = [" bad", " very bright and good", " bad plot", "the film was good", " dull not good"]
Written = dict[str, Any]


def rows_of(form: str) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Text, label and details of a corpus in this form."""
    pairs = zip(PROMPTS, COMPLETIONS, strict=True)
    first, second = list(PROMPTS), pa.array(COMPLETIONS)
    if form != "prompt_completion":
        second = pa.nulls(5, pa.string())
        first = [prompt + completion for prompt, completion in pairs]
    if form == "messages":
        first = [json.dumps(messages) for messages in conversations()]
    ids = pa.array([5, 3, 1, 2, 4])
    role = ["example"] * 5
    text = pa.table({"id": ids, "role": role, "text": first, "text_b": second})
    label = pa.table({"id": ids, "role": role})
    return text, label, {"text": {"format": form}, "label": {"task": "completion"}}


def conversations() -> list[list[dict[str, str]]]:
    ask = lambda text: {"role": "user", "content": text}  # noqa: E731
    say = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    pairs = list(zip(PROMPTS, COMPLETIONS, strict=True))
    single = [[ask(prompt), say(completion)] for prompt, completion in pairs]
    return [
        single[0],
        single[1] + single[2],
        [{"role": "system", "content": "a"}, *single[2]],
        [*single[3], ask("not"), say("good"), ask("bad")],
        single[4],
    ]


def predicted(tokenizer: Any, form: str, row: int) -> tuple[list[int], list[int]]:
    """Ids of a row, and the places of those that are predicted; from the meaning of the form."""

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    begin = [tokenizer.bos_token_id] if tokenizer("")["input_ids"] else []
    end = [tokenizer.eos_token_id]
    if form == "text":
        ids = begin + ids_of(PROMPTS[row] + COMPLETIONS[row]) + end
        return ids, list(range(1, len(ids)))
    if form == "prompt_completion":
        ask, answer = begin + ids_of(PROMPTS[row]), ids_of(COMPLETIONS[row]) + end
        places = range(max(1, len(ask)), len(ask + answer))
        return ask + answer, list(places)
    ids, places = [], []
    for message in conversations()[row]:
        ids += ids_of(f"<|{message['role']}|>")
        content = ids_of(message["content"])
        if message["role"] == "assistant":
            content = ids_of(message["content"] + "<|end|>")
            places += range(len(ids), len(ids) + len(content))
        ids += content
    return ids, places


def whole_model(folder: Path) -> tuple[nn.Module, list[nn.Parameter]]:
    """The model in float64 and its distinct weights, a tied one being that of its table."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    linear = [m.weight for m in network.modules() if isinstance(m, nn.Linear | Conv1D)]
    return network, list(dict.fromkeys(linear))


def gradients(
    folder: Path, form: str, reduction: str, row: int, only: int | None = None
) -> tuple[np.ndarray, float]:
    """Flattened gradient of one row's loss, or of its predicted token `only`, and the loss."""
    network, weights = whole_model(folder)
    transposed = {m.weight for m in network.modules() if isinstance(m, Conv1D)}
    ids, places = predicted(transformers.AutoTokenizer.from_pretrained(folder), form, row)
    logits = network(torch.tensor([ids]), use_cache=False).logits[0]
    losses = [-torch.log_softmax(logits[at - 1], 0)[ids[at]] for at in places]
    loss = sum(losses) if only is None else losses[places.index(only)]
    if reduction == "mean":
        loss = loss / len(losses)
    found = torch.autograd.grad(loss, weights)
    flat = [(g.T if w in transposed else g).flatten() for g, w in zip(found, weights, strict=True)]
    return torch.cat(flat).numpy(), float(loss.detach())


def assert_row_equals(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("form", ["prompt_completion", "messages", "text"])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma"])
def test_completions_are_the_whole_models(
    kind: str, is_tied: bool, form: str, saved: Any, memory: Any
) -> None:
    folder = saved(kind, "CausalLM", tie_word_embeddings=is_tied)
    text, label, details = rows_of(form)
    reduction: Any = "mean" if form == "text" else "sum"
    model = ModelSpec(str(folder), head="completion", reduction=reduction)
    inputs = memory({"text": text, "label": label}, details)
    vectors = matrix_of(inputs.run(Gradient(model, **EXACT))["vector"])
    written = inputs.written["diagnostics"].to_pylist()
    for at, (vector, told) in enumerate(zip(vectors, written, strict=True)):
        row = text["id"].to_pylist().index(at + 1)
        expected, loss = gradients(folder, form, reduction, row)
        assert_row_equals(vector, expected)
        assert told["measured"] == pytest.approx(loss, rel=1e-5)
        assert told["status"] == "ok"
    weight = inputs.opened.measurement.network.head.weight
    table = inputs.opened.measurement.network.trunk.get_input_embeddings().weight
    assert (weight is table) == is_tied


def test_a_tied_weight_counts_both_uses(saved: Any, memory: Any) -> None:
    # What the table adds is not small: without it the row would be another.
    folder = saved("llama", "CausalLM", tie_word_embeddings=True)
    network, _ = whole_model(folder)
    tied = network.lm_head.weight
    expected, _ = gradients(folder, "text", "sum", 1)
    ids, _ = predicted(transformers.AutoTokenizer.from_pretrained(folder), "text", 1)
    network.set_output_embeddings(nn.Linear(32, len(tied), bias=False).double())
    network.lm_head.weight = nn.Parameter(tied.detach().clone())
    logits = network(torch.tensor([ids]), use_cache=False).logits[0]
    losses = nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
    head, table = torch.autograd.grad(losses, [network.lm_head.weight, tied])
    both = expected[-head.numel() :]
    assert_row_equals(both, (head + table).flatten().numpy())
    assert table.norm() > 0.01 * head.norm()


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_torch_func_agrees(
    kind: str, is_tied: bool, saved: Any, memory: Any, func_gradients: Any
) -> None:
    folder = saved(kind, "CausalLM", tie_word_embeddings=is_tied)
    text, label, details = rows_of("prompt_completion")
    inputs = memory({"text": text, "label": label}, details)
    vectors = inputs.run(Gradient(ModelSpec(str(folder), head="completion"), **EXACT))["vector"]
    expected = func_gradients(inputs.opened.measurement, text, lambda outputs, _: -outputs[0])
    for vector, row in zip(matrix_of(vectors), np.argsort(text["id"].to_numpy()), strict=True):
        assert_row_equals(vector, expected[row])


@pytest.mark.parametrize("form", ["prompt_completion", "messages", "text"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tokens_add_up_to_their_row(kind: str, form: str, saved: Any, memory: Any) -> None:
    folder = saved(kind, "CausalLM", tie_word_embeddings=True)
    text, label, details = rows_of(form)
    text, label = text.slice(1, 3), label.slice(1, 3)
    model = ModelSpec(str(folder), head="completion", reduction="sum")
    inputs = memory({"text": text, "label": label}, details)
    rows = inputs.run(Gradient(model, **EXACT))
    tokens = inputs.run(Gradient(model, per="token", **EXACT))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = matrix_of(tokens["vector"])
    for row_id, total in zip(rows["id"].to_pylist(), matrix_of(rows["vector"]), strict=True):
        mine = [at for at, found in enumerate(tokens["id"].to_pylist()) if found == row_id]
        assert_row_equals(vectors[mine].astype(np.float64).sum(0), total)
        row = [5, 3, 1, 2, 4].index(row_id)
        _, places = predicted(tokenizer, form, row)
        assert [tokens["token_index"][at].as_py() for at in mine] == places
        for at, place in list(zip(mine, places, strict=True))[::3]:
            assert_row_equals(vectors[at], gradients(folder, form, "sum", row, only=place)[0])


def test_last_blocks_leave_a_tied_head_out(saved: Any, memory: Any, loop_gradients: Any) -> None:
    for is_tied in (True, False):
        folder = saved("llama", "CausalLM", tie_word_embeddings=is_tied)
        text, label, details = rows_of("text")
        trained = Trained(last_blocks=1)
        model = ModelSpec(str(folder), head="completion", train=trained)
        inputs = memory({"text": text, "label": label}, details)
        vectors = matrix_of(inputs.run(Gradient(model, **EXACT))["vector"])
        names = list(inputs.opened.projector.modules)
        assert ("head" in names) != is_tied
        assert all(name == "head" or name.startswith("trunk.layers.1.") for name in names)
        measured: Callable[..., Any] = lambda outputs, _: -outputs[0]  # noqa: E731
        expected = loop_gradients(inputs.opened.measurement, text, measured, trained)
        for vector, row in zip(vectors, np.argsort(text["id"].to_numpy()), strict=True):
            assert_row_equals(vector, expected[row])


@pytest.mark.parametrize("per", ["row", "token"])
def test_a_row_whose_completion_is_cut_away_has_no_target(
    per: Any, saved: Any, memory: Any
) -> None:
    folder = saved("llama", "CausalLM")
    text, label, details = rows_of("prompt_completion")
    long = ["a very dull and slow film " * 4, *PROMPTS[1:]]
    cut = text.set_column(2, "text", pa.array(long))
    model = ModelSpec(str(folder), head="completion", max_length=14, reduction="sum")
    every = memory({"text": text, "label": label}, details)
    whole = every.run(Gradient(model, per=per, **EXACT))
    inputs = memory({"text": cut, "label": label}, details)
    found = inputs.run(Gradient(model, per=per, **EXACT))
    assert sorted(set(found["id"].to_pylist())) == [1, 2, 3, 4]
    kept = np.flatnonzero(whole["id"].to_numpy() != 5)
    for vector, expected in zip(
        matrix_of(found["vector"]), matrix_of(whole["vector"])[kept], strict=True
    ):
        assert_row_equals(vector, expected)
    told = {row["id"]: row for row in inputs.written["diagnostics"].to_pylist()}
    assert told[5] == {
        "id": 5,
        "role": "example",
        "n_tokens": 14,
        "measured": None,
        "norm": None,
        "status": "no target",
    }
    assert [told[row]["status"] for row in (1, 2, 3, 4)] == ["ok"] * 4


def test_a_row_whose_start_is_cut_is_the_row_that_is_left(saved: Any, memory: Any) -> None:
    folder = saved("llama", "CausalLM")
    text, label, details = rows_of("prompt_completion")
    start = "the film is not good and a very dull and slow"
    long = text.set_column(2, "text", pa.array([f"{start} {p}" for p in PROMPTS]))
    model = ModelSpec(
        str(folder), head="completion", max_length=12, truncation_mode="keep_end", reduction="sum"
    )
    inputs = memory({"text": long, "label": label}, details)
    found = matrix_of(inputs.run(Gradient(model, **EXACT))["vector"])
    assert inputs.written["diagnostics"]["status"].to_pylist() == ["ok"] * 5
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Linear)]
    for vector, row in zip(found, np.argsort(text["id"].to_numpy()), strict=True):
        prompt = tokenizer(long["text"][row].as_py())["input_ids"]
        answer = tokenizer(COMPLETIONS[row], add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        ids = [*prompt, *answer][-12:]
        assert len(prompt) + len(answer) > 12 > len(answer)
        logits = network(torch.tensor([ids]), use_cache=False).logits[0, -len(answer) - 1 : -1]
        loss = nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        expected = torch.autograd.grad(loss, weights)
        assert_row_equals(vector, torch.cat([g.flatten() for g in expected]).numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_diagnostics_of_tokens_are_those_of_their_rows(
    reduction: Any, saved: Any, memory: Any
) -> None:
    folder = saved("llama", "CausalLM")
    text, label, details = rows_of("prompt_completion")
    model = ModelSpec(str(folder), head="completion", reduction=reduction)
    inputs = memory({"text": text, "label": label}, details)
    inputs.run(Gradient(model, **EXACT))
    expected = inputs.written["diagnostics"]
    inputs.run(Gradient(model, per="token", **EXACT))
    found = inputs.written["diagnostics"]
    for name in ("id", "role", "n_tokens", "status"):
        assert found[name].equals(expected[name])
    for name in ("measured", "norm"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=0)
    assert inputs.told.n_not_finite == 0


def test_a_row_of_tokens_is_as_bad_as_its_worst(
    saved: Any, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("llama", "CausalLM")
    text, label, details = rows_of("prompt_completion")
    inputs = memory({"text": text, "label": label}, details)
    stage = Gradient(ModelSpec(str(folder), head="completion"), per="token", **EXACT)
    whole = inputs.run(stage)
    passes = stage.open(inputs)
    made = passes.projector.features

    def broken(*arguments: Any) -> Any:
        """The first token of a batch has no number, the second one too large for float16."""
        vectors, numbers = made(*arguments)
        vectors[0, 0, 0], vectors[1, 0, 0] = math.nan, 1e6
        return vectors, numbers

    monkeypatch.setattr(passes.projector, "features", broken)
    monkeypatch.setattr(Gradient, "open", lambda *_: passes)
    found = inputs.run(dataclasses.replace(stage, dtype="float16", token_budget=10**6))
    assert found.num_rows == whole.num_rows - 2
    told = inputs.written["diagnostics"].to_pydict()
    bad = [i for i, status in zip(told["id"], told["status"], strict=True) if status != "ok"]
    lost = {i for i in bad if found["id"].to_pylist().count(i) < whole["id"].to_pylist().count(i)}
    assert set(bad) == lost
    assert "not finite" in told["status"]
    assert inputs.told.n_not_finite == len(bad)
    for norm, status in zip(told["norm"], told["status"], strict=True):
        assert (norm is None) == (status == "not finite")


@pytest.mark.parametrize("form", ["prompt_completion", "messages", "text"])
@pytest.mark.parametrize("max_length", [12, 30, 36, 60, 128])
def test_the_default_projection_works_at_any_length(
    form: str, max_length: int, saved: Any, memory: Any
) -> None:
    # Random text is cut too, down to no completion at all; its directions must stay finite.
    folder = saved("llama", "CausalLM")
    text, label, details = rows_of(form)
    model = ModelSpec(str(folder), head="completion", max_length=max_length)
    inputs = memory({"text": text, "label": label}, details)
    inputs.run(Gradient(model))
    told = inputs.written["diagnostics"].to_pylist()
    has_target = inputs.opened.measurement.has_target(inputs.opened.measurement.tokenise(text))
    status = {row["id"]: row["status"] for row in told}
    for row_id, has in zip(text["id"].to_pylist(), has_target, strict=True):
        assert status[row_id] == ("ok" if has else "no target")
    # The directions are kept, unless no row of this form can have a target.
    layers = inputs.opened.projector.sketch.layers.values()
    is_kept = [
        not layer.left.equal(gaussian(0, f"{layer.name}/left", *layer.left.shape))
        for layer in layers
        if layer.left is not None
    ]
    assert all(is_kept) == any(has_target)
    assert len(is_kept) > 10
    assert any(has_target) or (form, max_length) == ("messages", 12)
    assert all(math.isfinite(row["norm"]) for row in told if row["status"] == "ok")


def test_messages_need_a_chat_template(saved: Any, memory: Any, tmp_path: Path) -> None:
    folder = saved("llama", "CausalLM")
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    text, label, details = rows_of("messages")
    inputs = memory({"text": text, "label": label}, details)
    with pytest.raises(ModelError, match="found no chat template, expected one"):
        inputs.run(Gradient(ModelSpec(str(tmp_path), head="completion"), **EXACT))


def test_a_chat_template_must_only_append(saved: Any, memory: Any, tmp_path: Path) -> None:
    folder = saved("llama", "CausalLM")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    # As some do: only the last answer is laid out in full.
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    text, label, details = rows_of("messages")
    inputs = memory({"text": text, "label": label}, details)
    with pytest.raises(RefusedRow, match="lays out earlier messages in another way"):
        inputs.run(Gradient(ModelSpec(str(tmp_path), head="completion"), **EXACT))
