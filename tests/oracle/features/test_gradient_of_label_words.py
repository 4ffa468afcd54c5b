"""Label words against the whole language model: its logits at one place, and their gradients."""

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
from stages.model.networks import MaskedWordNetwork, NextWordNetwork
from stages.model.spec import Lora, ModelSpec, Prompt, Trained
from stages.model.templates import tokenise_prompts
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError

EXACT: dict[str, Any] = {
    "projection": Projection(inputs=None, outputs=None, principal=0, dim=None),
    "dtype": "float32",
}
LABELS = [0, 1, 0, 1, 0, 1, 1]
WORDS = ("good", "bad")
KINDS = [
    ("bert", "MaskedLM", True),
    ("bert", "MaskedLM", False),
    ("roberta", "MaskedLM", True),
    ("distilbert", "MaskedLM", True),
    ("gpt2", "CausalLM", True),
    ("llama", "CausalLM", True),
    ("llama", "CausalLM", False),
]


def template_of(task: str) -> str:
    return "{text} it was {mask} ." if task == "MaskedLM" else "{text} it was"


def word_ids(tokenizer: Any) -> list[int]:
    """As they stand behind a space, where the tokenizer knows one."""
    return [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in WORDS]


def whole_logits(network: Any, tokenizer: Any, task: str, text: str) -> torch.Tensor:
    """The label words' logits of the model as it was saved, one row alone."""
    filled = template_of(task).format(text=text, mask=tokenizer.mask_token)
    ids = tokenizer(filled, return_tensors="pt")["input_ids"]
    at = ids[0].tolist().index(tokenizer.mask_token_id) if task == "MaskedLM" else -1
    return network(input_ids=ids).logits[0, at, word_ids(tokenizer)]


def loss(outputs: torch.Tensor, row: int) -> torch.Tensor:
    return -torch.log_softmax(outputs, 0)[LABELS[row]]


@pytest.fixture
def binary(label: pa.Table) -> pa.Table:
    return label.set_column(2, "label", pa.array(LABELS))


@pytest.mark.parametrize(("kind", "task", "is_tied"), KINDS)
def test_logits_and_gradients_are_the_whole_models(
    kind: str,
    task: str,
    is_tied: bool,
    saved: Any,
    text: pa.Table,
    binary: pa.Table,
    memory: Any,
    func_gradients: Any,
) -> None:
    folder = saved(kind, task, tie_word_embeddings=is_tied)
    prompt = Prompt(template_of(task), WORDS)
    inputs = memory({"text": text, "label": binary})
    stage = Gradient(ModelSpec(str(folder), head="label_words", prompt=prompt), **EXACT)
    vectors = matrix_of(inputs.run(stage)["vector"])
    measurement = inputs.opened.measurement
    kept = MaskedWordNetwork if task == "MaskedLM" else NextWordNetwork
    assert isinstance(measurement.network, kept)
    tokens = measurement.tokenise(text)
    with torch.no_grad():
        found = measurement.outputs(measurement.batch(tokens, np.arange(text.num_rows)))

    loader = getattr(transformers, f"AutoModelFor{task}")
    network = loader.from_pretrained(folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # The head's own use of the weight counts, an embedding table's does not: untie them.
    head = network.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    linear = [m for m in network.modules() if isinstance(m, nn.Linear | Conv1D)]
    expected = []
    for row, words in enumerate(text["text"].to_pylist()):
        logits = whole_logits(network, tokenizer, task, words)
        torch.testing.assert_close(found[row].double(), logits.detach(), rtol=1e-4, atol=1e-4)
        gradients = torch.autograd.grad(loss(logits, row), [m.weight for m in linear])
        parts = []
        for module, gradient in zip(linear, gradients, strict=True):
            part = gradient.T if isinstance(module, Conv1D) else gradient
            parts.append((part[word_ids(tokenizer)] if module is head else part).flatten())
        expected.append(torch.cat(parts).numpy())
    again = func_gradients(measurement, text, loss)
    for vector, row in zip(vectors, np.argsort(text["id"].to_numpy()), strict=True):
        for oracle in (expected[row], again[row]):
            assert np.linalg.norm(vector - oracle) <= 1e-5 * np.linalg.norm(oracle)


@pytest.mark.parametrize(
    "trained", [Trained(lora=Lora(rank=2)), Trained(last_blocks=1), Trained(layers=("*.1.*",))]
)
@pytest.mark.parametrize(("kind", "task"), [("bert", "MaskedLM"), ("llama", "CausalLM")])
def test_the_choice_of_weights_holds_for_label_words(
    kind: str,
    task: str,
    trained: Trained,
    saved: Any,
    text: pa.Table,
    binary: pa.Table,
    memory: Any,
    loop_gradients: Any,
) -> None:
    prompt = Prompt(template_of(task), WORDS)
    folder = saved(kind, task)
    model = ModelSpec(str(folder), head="label_words", prompt=prompt, train=trained)
    inputs = memory({"text": text, "label": binary})
    vectors = matrix_of(inputs.run(Gradient(model, **EXACT))["vector"])
    names = list(inputs.opened.projector.modules)
    head = "model.cls.predictions.decoder" if task == "MaskedLM" else "head"
    assert (head in names) == (trained.layers == ("*",))
    assert any(".1." in name for name in names)
    assert any(".0." in name for name in names) == (trained.lora is not None)
    expected = loop_gradients(inputs.opened.measurement, text, loss, trained)
    for vector, row in zip(vectors, np.argsort(text["id"].to_numpy()), strict=True):
        assert np.linalg.norm(vector - expected[row]) <= 1e-5 * np.linalg.norm(expected[row])


def test_the_template_of_the_other_kind_of_model_is_refused(
    saved: Any, text: pa.Table, binary: pa.Table, memory: Any
) -> None:
    for kind, task, other in [("bert", "MaskedLM", "CausalLM"), ("gpt2", "CausalLM", "MaskedLM")]:
        prompt = Prompt(template_of(other), WORDS)
        model = ModelSpec(str(saved(kind, task)), head="label_words", prompt=prompt)
        inputs = memory({"text": text, "label": binary})
        with pytest.raises(ConfigError, match="Correct template"):
            inputs.run(Gradient(model, **EXACT))


@pytest.mark.parametrize("max_length", [7, 8, 9, 10, 11, 12])
@pytest.mark.parametrize(
    "words", ["\U0001f600\U0001f600\U0001f600", "good \U0001f600 film", "\u00e9\u00e9\u00e9"]
)
def test_a_character_of_several_tokens_is_cut_as_a_whole(
    words: str, max_length: int, saved: Any
) -> None:
    # Byte-level tokenizers give each byte of a character the same place in the text.
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved("gpt2", "CausalLM"))
    prompt = Prompt("{text} it was", WORDS)
    room = max_length - len(tokenizer(" it was")["input_ids"])
    if room < 0:
        with pytest.raises(ConfigError, match="expected fewer than max_length"):
            tokenise_prompts(tokenizer, prompt, [words], [None], max_length, False)
        return
    tokens = tokenise_prompts(tokenizer, prompt, [words], [None], max_length, False)
    shown = tokenizer.decode(tokens.columns["input_ids"][0])
    assert shown.endswith(" it was")
    assert words.startswith(shown.removesuffix(" it was"))
    assert tokens.lengths[0] <= max_length


def test_a_shard_without_rows_is_empty(
    saved: Any, text: pa.Table, binary: pa.Table, memory: Any
) -> None:
    prompt = Prompt(template_of("MaskedLM"), WORDS)
    model = ModelSpec(str(saved("bert", "MaskedLM")), head="label_words", prompt=prompt)
    inputs = memory({"text": text, "label": binary.slice(0, 0)})
    assert inputs.run(Gradient(model, **EXACT)).num_rows == 0
