"""Gradients of the DPO loss, and its margins, against autograd on two whole language models."""

import dataclasses
import functools
import json
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
from tiny_models import word_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from stages.features.gradient import Gradient
from stages.gradients.projection import Projection
from stages.model.layers import trained_layers
from stages.model.spec import Lora, ModelSpec, Trained
from stages.predictions.answer_margin import AnswerMargin
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, ModelError, Size

EXACT: dict[str, Any] = {
    "projection": Projection(inputs=None, outputs=None, principal=0, dim=None),
    "dtype": "float32",
}
BETA = 0.7
PROMPTS = ["good film", "the plot is", "a very dull and slow film", "not"]
CHOSEN = [" bad", " very bright and good", " bad plot", " dull not good film and plot"]
REJECTED = [" very good and bright film", " bad", " slow", " not bad"]
# peft asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")


def rows_of(form: str) -> dict[str, pa.Table]:
    """Text and label of a corpus of pairs in this form."""
    prompts, pairs = list(PROMPTS), []
    for chosen, rejected in zip(CHOSEN, REJECTED, strict=True):
        answers = {"chosen": chosen, "rejected": rejected}
        if form == "preference_messages":
            said = {k: [{"role": "assistant", "content": v}] for k, v in answers.items()}
            pairs.append(json.dumps(said))
        else:
            pairs.append(json.dumps(answers))
    if form == "preference_messages":
        prompts = [json.dumps([{"role": "user", "content": text}]) for text in PROMPTS]
    ids, role = pa.array([5, 3, 1, 2]), ["example"] * 4
    text = pa.table({"id": ids, "role": role, "text": prompts, "text_b": pairs})
    return {"text": text, "label": pa.table({"id": ids, "role": role})}


def side(tokenizer: Any, form: str, prompt: str, answer: str) -> tuple[list[int], int]:
    """Ids of a side, and where its answer begins; from the meaning of the form."""

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if form == "preference_messages":
        before = ids_of(f"<|user|>{prompt}<|assistant|>")
        return before + ids_of(f"{answer}<|end|>"), len(before)
    begin = [tokenizer.bos_token_id] if tokenizer("")["input_ids"] else []
    before = begin + ids_of(prompt)
    return [*before, *ids_of(answer), tokenizer.eos_token_id], len(before)


def likelihoods(network: nn.Module, tokenizer: Any, form: str, row: int) -> list[torch.Tensor]:
    """Log-likelihoods of both answers of a row, in float64."""
    found = []
    for answer in (CHOSEN[row], REJECTED[row]):
        ids, begin = side(tokenizer, form, PROMPTS[row], answer)
        logs = torch.log_softmax(network(torch.tensor([ids]), use_cache=False).logits[0], 1)
        found.append(sum(logs[at - 1, ids[at]] for at in range(begin, len(ids))))
    return found


def whole(folder: Path) -> nn.Module:
    network: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return network.double().eval()


def details(form: str, beta: float = BETA) -> dict[str, Any]:
    facts = {"text": {"format": form}, "label": {"task": "preference"}}
    return {**facts, "answer_margin": {"beta": beta}}


@pytest.fixture(scope="module")
def policy_and_reference(
    saved: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """A model, and one with other weights and the same tokenizer."""

    @functools.cache
    def make(kind: str) -> tuple[Path, Path]:
        policy, reference = saved(kind, "CausalLM"), tmp_path_factory.mktemp("reference")
        network = transformers.AutoModelForCausalLM.from_pretrained(policy)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        network.save_pretrained(reference)
        transformers.AutoTokenizer.from_pretrained(policy).save_pretrained(reference)
        return policy, reference

    return make


@pytest.mark.parametrize(
    ("form", "has_reference"), [("preference", True), ("preference_messages", False)]
)
def test_margins_are_those_of_the_whole_models(
    form: str, has_reference: bool, policy_and_reference: Any, memory: Any
) -> None:
    policy, reference = policy_and_reference("gpt2")
    inputs = memory(rows_of(form), details(form))
    other = ModelSpec(str(reference)) if has_reference else None
    stage = AnswerMargin(
        ModelSpec(str(policy), head="completion"), other, beta=BETA, token_budget=40
    )
    rows = {row["id"]: row for row in inputs.run(stage).to_pylist()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    of_policy, of_reference = whole(policy), whole(reference if has_reference else policy)
    for at, key in enumerate(inputs.tables["text"]["id"].to_pylist()):
        with torch.no_grad():
            own = [float(x) for x in likelihoods(of_policy, tokenizer, form, at)]
            base = [float(x) for x in likelihoods(of_reference, tokenizer, form, at)]
        margin = BETA * ((own[0] - base[0]) - (own[1] - base[1]))
        assert has_reference == (abs(margin) > 1e-3)
        wanted = {
            "chosen_logp": own[0],
            "rejected_logp": own[1],
            "reference_chosen_logp": base[0],
            "reference_rejected_logp": base[1],
            "reward_margin": margin,
            "loss": -float(torch.nn.functional.logsigmoid(torch.tensor(margin).double())),
        }
        for name, number in wanted.items():
            assert rows[key][name] == pytest.approx(number, rel=1e-5, abs=1e-5), name
    assert inputs.said_by(stage)["beta"] == BETA
    sides = inputs.written["answer_side"].to_pylist()
    assert len(sides) == 2 * len(rows)
    for row in sides:
        pair = rows[row["id"]]
        assert row["n_tokens"] == pair[f"{row['side']}_tokens"]
        total = -row["n_tokens"] * row["loss"]
        assert total == pytest.approx(pair[f"{row['side']}_logp"], rel=1e-5)


def dpo_gradient(
    network: nn.Module,
    weights: list[nn.Parameter],
    transposed: set[nn.Parameter],
    reference: list[float],
    tokenizer: Any,
    form: str,
    row: int,
) -> tuple[np.ndarray, float]:
    """The flattened gradient of one pair's loss by autograd, and the loss."""
    chosen, rejected = likelihoods(network, tokenizer, form, row)
    margin = BETA * ((chosen - reference[0]) - (rejected - reference[1]))
    loss = -torch.nn.functional.logsigmoid(margin)
    found = torch.autograd.grad(loss, weights)
    flat = [(g.T if w in transposed else g).flatten() for g, w in zip(found, weights, strict=True)]
    return torch.cat(flat).numpy(), float(loss.detach())


def assert_row_equals(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.linalg.norm(expected) > 1e-6
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("kind", "form"), [("gpt2", "preference"), ("llama", "preference_messages")]
)
def test_gradients_are_those_of_the_dpo_loss(
    kind: str, form: str, policy_and_reference: Any, memory: Any
) -> None:
    """A loss is a difference: its own rounding is that of the larger of two gradients."""
    policy, other = policy_and_reference(kind)
    model = ModelSpec(str(policy), head="completion", reduction="mean")
    inputs = memory(rows_of(form), details(form))
    margin = AnswerMargin(model, ModelSpec(str(other)), beta=BETA)
    inputs.tables["answer_margin"] = inputs.run(margin)
    stage = Gradient(model, **EXACT, margins="answer_margin", token_budget=60)
    vectors = matrix_of(inputs.run(stage)["vector"])
    told = inputs.written["diagnostics"].to_pylist()
    network, base = whole(policy), whole(other)
    linear = [m.weight for m in network.modules() if isinstance(m, nn.Linear | Conv1D)]
    transposed = {m.weight for m in network.modules() if isinstance(m, Conv1D)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    order = np.argsort(inputs.tables["text"]["id"].to_numpy())
    for at, row in enumerate(order.tolist()):
        with torch.no_grad():
            reference = [float(x) for x in likelihoods(base, tokenizer, form, row)]
        expected, loss = dpo_gradient(
            network, list(dict.fromkeys(linear)), transposed, reference, tokenizer, form, row
        )
        assert_row_equals(vectors[at], expected)
        assert told[at]["measured"] == pytest.approx(loss, rel=1e-5)
        assert told[at]["n_tokens"] == sum(
            len(side(tokenizer, form, PROMPTS[row], answer)[0])
            for answer in (CHOSEN[row], REJECTED[row])
        )
    parts = [
        matrix_of(inputs.run(dataclasses.replace(stage, of=of))["vector"])
        for of in ("chosen", "rejected")
    ]
    scale = np.abs(parts[0]).max()
    np.testing.assert_allclose(parts[0] + parts[1], vectors, rtol=0, atol=1e-6 * scale)
    assert np.linalg.norm(parts[0] - vectors) > 0.1 * np.linalg.norm(vectors)


def test_gradients_of_fresh_adapters(saved: Any, memory: Any) -> None:
    """By autograd in the network that the stage has made, in float64; its reference is itself."""
    trained = Trained(lora=Lora(rank=3, alpha=6))
    model = ModelSpec(str(saved("llama", "CausalLM")), head="completion", train=trained)
    inputs = memory(rows_of("preference"), details("preference"))
    margins = inputs.run(AnswerMargin(model, beta=BETA))
    assert set(margins["loss"].to_pylist()) == {np.log(2.0)}
    inputs.tables["answer_margin"] = margins
    stage = Gradient(model, **EXACT, margins="answer_margin")
    vectors = matrix_of(inputs.run(stage)["vector"])
    measurement = inputs.opened.measurement
    network = measurement.network.double()
    layers = trained_layers(network, trained)
    weights = [layer.weight.requires_grad_() for layer in layers.values()]
    assert all(".lora_B." in name for name in layers)
    for at, row in enumerate(np.argsort(inputs.tables["text"]["id"].to_numpy()).tolist()):
        both = []
        for answer in (CHOSEN[row], REJECTED[row]):
            text = pa.table({"text": [PROMPTS[row]], "text_b": [answer]})
            tokens = measurement.tokenise(text)
            both.append(network(**measurement.batch(tokens, np.array([0])))[0, 0])
        margin = BETA * ((both[0] - both[0].detach()) - (both[1] - both[1].detach()))
        found = torch.autograd.grad(-torch.nn.functional.logsigmoid(margin), weights)
        assert_row_equals(vectors[at], torch.cat([g.flatten() for g in found]).numpy())


def test_a_trained_adapter_is_compared_with_the_model_below_it(
    saved: Any, memory: Any, tmp_path: Path
) -> None:
    folder = saved("llama", "CausalLM")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"])
    save_moved(peft.get_peft_model(network, lora), tmp_path, step=0.3)
    base = ModelSpec(str(folder), head="completion")
    inputs = memory(rows_of("preference"), details("preference"))
    plain = inputs.run(AnswerMargin(base)).to_pylist()
    adapted = AnswerMargin(dataclasses.replace(base, adapter=str(tmp_path)))
    for own, below in zip(inputs.run(adapted).to_pylist(), plain, strict=True):
        for side in ("chosen", "rejected"):
            reference = own[f"reference_{side}_logp"]
            assert reference == pytest.approx(below[f"{side}_logp"], rel=1e-6)
            assert abs(own[f"{side}_logp"] - reference) > 1e-3


def test_pairs_without_room_for_an_answer_have_no_gradient(saved: Any, memory: Any) -> None:
    model = ModelSpec(str(saved("gpt2", "CausalLM")), head="completion", max_length=6)
    inputs = memory(rows_of("preference"), details("preference"))
    margins = inputs.run(AnswerMargin(model))
    assert inputs.told.details()["notices"] == [
        "pairs have no margin whose answers max_length cuts off, one or both"
    ]
    inputs.tables["answer_margin"] = margins
    found = inputs.run(Gradient(model, **EXACT, margins="answer_margin"))["id"].to_pylist()
    known = [row["id"] for row in margins.to_pylist() if row["loss"] is not None]
    assert found == known
    assert 0 < len(known) < 4
    status = {row["id"]: row["status"] for row in inputs.written["diagnostics"].to_pylist()}
    assert {key for key, said in status.items() if said == "no target"} == {1, 2, 3, 5} - set(known)


def test_what_does_not_fit_is_refused(saved: Any, memory: Any, tmp_path: Path) -> None:
    model = ModelSpec(str(saved("gpt2", "CausalLM")), head="completion")
    with pytest.raises(ConfigError, match="beta: found -1.0, expected a positive number"):
        AnswerMargin(model, beta=-1.0)
    inputs = memory(rows_of("preference"), details("preference"))
    with pytest.raises(ModelError, match="found other tokens than in"):
        inputs.open(AnswerMargin(model, ModelSpec(str(word_model(tmp_path, ["good"], 128)))))
    with pytest.raises(ConfigError, match="a token has no loss of a pair"):
        Gradient(model, per="token", of="chosen")
    pairs = Gradient(model).sized(Size(4, 4, 0, 0, {}, "preference"))
    assert pairs.margins == "answer_margin"
    assert pairs.tasks == ("preference",)
    assert Gradient(model).sized(Size(4, 4, 0, 0, {}, "completion")) == Gradient(model)
    other = dataclasses.replace(model, max_length=64, train=Trained(last_blocks=1))
    with pytest.raises(ConfigError, match="Set model alike in both"):
        pairs.check_reads({"answer_margin": AnswerMargin(other)})
    trained = dataclasses.replace(model, train=Trained(last_blocks=1))
    pairs.check_reads({"answer_margin": AnswerMargin(trained)})
