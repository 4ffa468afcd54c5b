"""Offsets of tokens, for every way in which a text reaches a model."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import transformers

from stages.model.batches import Tokens
from stages.model.measurement import load_measurement
from stages.model.offsets import COLUMNS, TokenOffsets, extended, token_offsets
from stages.model.spec import ModelSpec, Prompt
from stages.saliency.outputs import load_embedded, read_outputs
from stages.tokens.grad_input import GradInput
from stages.tokens.ig import IntegratedGradients


def located(memory: Any, spec: ModelSpec, text: pa.Table, form: str = "text") -> tuple[Any, Any]:
    inputs = memory({"text": text}, {"text": {"format": form}})
    measurement = load_measurement(spec, inputs)
    tokens = measurement.tokenise(text, with_offsets=True)
    return tokens, token_offsets(measurement, text, tokens)


def check(text: pa.Table, tokens: Tokens, places: list[TokenOffsets]) -> None:
    """Every offset cuts out the token's own characters, and every letter of a text has a token."""
    for row, own in enumerate(places):
        covered: dict[str, str] = {name: "" for name in COLUMNS}
        assert len(own.token) == len(tokens.columns["input_ids"][row])
        for at, name in enumerate(own.column):
            if name is None:
                assert own.start[at] is None
                continue
            assert own.is_text[at]
            cut = text[name][row].as_py()[own.start[at] : own.end[at]]
            assert cut == own.token[at]
            covered[name] += cut
        for name in COLUMNS:
            whole = (text[name][row].as_py() or "").replace(" ", "")
            assert covered[name].replace(" ", "") == whole


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
def test_pairs_and_single_texts(memory: Any, saved: Any, text: pa.Table, kind: str) -> None:
    spec = ModelSpec(str(saved(kind, "SequenceClassification")), head="checkpoint")
    tokens, places = located(memory, spec, text)
    check(text, tokens, places)


@pytest.mark.parametrize(
    "template", ["{text} It was {mask}.", "{text_b} ? {mask} , {text}", "a {text:trimmed}? {mask}"]
)
def test_the_template_of_a_prompt_is_not_the_text(
    memory: Any, saved: Any, text: pa.Table, template: str
) -> None:
    full = text.set_column(3, "text_b", pa.array(["good plot"] * text.num_rows))
    prompt = Prompt(template, ("good", "bad"))
    spec = ModelSpec(str(saved("bert", "MaskedLM")), head="label_words", prompt=prompt)
    _, places = located(memory, spec, full)
    for row, own in enumerate(places):
        for name in COLUMNS:
            if f"{{{name}" not in template:
                assert name not in own.column
                continue
            whole = full[name][row].as_py()
            if "trimmed" in template:
                whole = whole[:-1]
            spans = [(own.start[i], own.end[i]) for i, c in enumerate(own.column) if c == name]
            assert spans[0][0] == 0
            assert spans[-1][1] == len(whole)
        # The words around the text stay where they are.
        assert (~own.is_text).sum() > 2


@pytest.mark.parametrize("form", ["text", "prompt_completion"])
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_completions(memory: Any, saved: Any, text: pa.Table, form: str, mode: Any) -> None:
    full = text
    if form == "prompt_completion":
        full = text.set_column(3, "text_b", pa.array([" good film"] * text.num_rows))
    else:
        full = text.set_column(3, "text_b", pa.nulls(text.num_rows, pa.string()))
    folder = str(saved("gpt2", "CausalLM"))
    tokens, places = located(memory, ModelSpec(folder, head="completion"), full, form)
    check(full, tokens, places)
    short = ModelSpec(folder, head="completion", max_length=5, truncation_mode=mode)
    _, cut = located(memory, short, full, form)
    kept = slice(-5, None) if mode == "keep_end" else slice(5)
    for own, whole in zip(cut, places, strict=True):
        assert own.token == whole.token[kept]
        assert own.start == whole.start[kept]


def test_tokens_of_a_word_share_its_sum(memory: Any, checkpoint_folder: Path) -> None:
    text = pa.table(
        {
            "id": [4],
            "role": ["query"],
            "text": ["slowly good"],
            "text_b": pa.array([None], pa.string()),
        }
    )
    inputs = memory({"text": text})
    found = inputs.run(GradInput(ModelSpec(str(checkpoint_folder), head="checkpoint")))
    assert found["token"].to_pylist() == ["slow", "ly", "good"]
    assert found["word_index"].to_pylist() == [0, 0, 1]
    first, second, third = found["score"].to_pylist()
    assert found["word_score"].to_pylist() == [first + second, first + second, third]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_tokens_belong_to_the_words_of_unicode(memory: Any, saved: Any, kind: str) -> None:
    """Also where a tokenizer cuts letters into bytes, or drops signs and accents."""
    phrase = "फिल्म थी cafe\u0301 நல்ல 👩\u200d👩\u200d👧 3.5 isn't 東京 مُحَمَّد"
    spans = [(m.start(), m.end()) for m in re.finditer(r"[^ 東京]+|[東京]", phrase)]
    text = pa.table(
        {"id": [0], "role": ["query"], "text": [phrase], "text_b": pa.nulls(1, pa.string())}
    )
    spec = ModelSpec(str(saved(kind, "SequenceClassification")), head="checkpoint")
    _, (own,) = located(memory, spec, text)
    found = [at for at in range(len(own.token)) if own.column[at] is not None]
    assert [own.word[at] for at in found] == [
        next(n for n, (start, end) in enumerate(spans) if start <= int(own.start[at] or 0) < end)
        for at in found
    ]
    assert {own.word[at] for at in found} == set(range(len(spans)))


def test_written_tokens_count_as_text_and_stand_nowhere(
    memory: Any, saved: Any, text: pa.Table
) -> None:
    folder = str(saved("gpt2", "CausalLM"))
    _, (first, *_) = located(memory, ModelSpec(folder, head="completion"), text.slice(0, 1))
    tokenizer = load_measurement(
        ModelSpec(folder, head="completion"), memory({"text": text})
    ).tokenizer
    longer = extended(tokenizer, [5] * (len(first.token) + 2), first)
    assert longer.column[: len(first.token)] == first.column
    assert longer.column[-2:] == [None, None]
    assert longer.is_text[-2:].all()


def test_the_next_token_of_a_language_model(memory: Any, saved: Any, text: pa.Table) -> None:
    """Scores of a linear path add up to the rise of the logit that `continuation` named."""
    spec = ModelSpec(str(saved("gpt2", "CausalLM")), head="completion")
    asked = text.slice(0, 2).set_column(1, "role", pa.array(["query"] * 2))
    measurement = load_measurement(spec, memory({"text": asked}))
    ids = measurement.tokenise(asked).columns["input_ids"]
    chosen = pa.table(
        {
            "query_id": asked["id"],
            "token_index": [len(ids[0]) - 1, 2],
            "token_id": [3, 4],
            "token": ["x", "y"],
            "prefix": [ids[0][:-1], ids[1][:2]],
        }
    )
    inputs = memory({"text": asked, "continuation": chosen})
    units = read_outputs(load_embedded(spec, inputs), inputs, 64)
    wanted = {}
    for row in chosen.to_pylist():
        hidden = measurement.network.trunk(input_ids=torch.tensor([row["prefix"]]))
        logits = measurement.network.head(hidden.last_hidden_state[0, -1])
        wanted[row["query_id"]] = float(logits[row["token_id"]])
    found = dict(zip(units.query_ids.tolist(), units.values.tolist(), strict=True))
    assert found == pytest.approx(wanted, rel=1e-4)
    found = inputs.run(IntegratedGradients(spec, baseline="zero", steps=80))
    told = inputs.written["explained"]
    for query, value, start in zip(
        *(told[name].to_pylist() for name in ("query_id", "value", "baseline_value")), strict=True
    ):
        own = found.filter(pc.equal(found["query_id"], query))["score"].to_numpy()
        np.testing.assert_allclose(own.sum(), value - start, rtol=2e-2, atol=1e-4)


def test_a_conversation_reads_as_it_is_laid_out(memory: Any, saved: Any, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(saved("gpt2", "CausalLM"), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    turns = [{"role": "user", "content": "good film"}, {"role": "assistant", "content": "not bad"}]
    text = pa.table(
        {
            "id": [0],
            "role": ["query"],
            "text": [json.dumps(turns)],
            "text_b": pa.nulls(1, pa.string()),
        }
    )
    _, (own,) = located(memory, ModelSpec(str(folder), head="completion"), text, "messages")
    read = "".join(token for token, moved in zip(own.token, own.is_text, strict=True) if moved)
    assert "good film" in read
    assert "not bad" in read
    assert set(own.start) == {None}
