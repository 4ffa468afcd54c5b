"""Losses of answers against the whole language model, one row and one token at a time."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import transformers

from stages.model.answers import (
    Reader,
    answer_of,
    cut_after,
    told,
    with_answer_of,
    with_changed_answer,
    without_prompt,
)
from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec
from stages.predictions.answer_loss import AnswerLoss
from stages.predictions.planted_answers import PlantedAnswers
from stages.predictions.prediction import Prediction
from stages.reading.vectors import matrix_of
from stages.stage import Part

ASKED = ["good film", "the plot is", "a very dull and slow film", "not"]
SAID = [" bad", " very bright and good", " bad plot", " dull not good film and plot"]


def chat(asked: str, said: str) -> str:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return json.dumps(turns)


def table(form: str, asked: list[str], said: list[str]) -> pa.Table:
    n = len(asked)
    texts, pairs = asked, pa.array(said)
    if form == "messages":
        texts, pairs = [chat(*row) for row in zip(asked, said, strict=True)], pa.nulls(n, "string")
    ids = pa.array(range(n))
    return pa.table({"id": ids, "role": ["example"] * n, "text": texts, "text_b": pairs})


class Whole:
    """The model as transformers has it."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def ids(self, form: str, asked: str, said: str) -> tuple[list[int], int, int]:
        """Ids of a row, where its answer begins, and how many tokens end it."""

        def of(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        if form == "messages":
            before = of(f"<|user|>{asked}<|assistant|>")
            # Its end mark is no token of its own: it counts as text, and no end is known.
            return before + of(f"{said}<|end|>"), len(before), 0
        begin = [self.tokenizer.bos_token_id] if self.tokenizer("")["input_ids"] else []
        before = begin + of(asked)
        return [*before, *of(said), self.tokenizer.eos_token_id], len(before), 1

    def losses(self, ids: list[int], begin: int) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each token from `begin` on, and the hidden states."""
        with torch.no_grad():
            found = self.network(torch.tensor([ids]), output_hidden_states=True)
        logs = torch.log_softmax(found.logits[0].double(), 1)
        each = [-float(logs[at - 1, ids[at]]) for at in range(max(1, begin), len(ids))]
        return np.array(each), found.hidden_states[-1][0].numpy()


@pytest.mark.parametrize("form", ["prompt_completion", "messages"])
def test_losses_are_those_of_the_whole_model(form: str, saved: Any, memory: Any) -> None:
    folder = saved("gpt2", "CausalLM")
    text = table(form, ASKED, SAID)
    inputs = memory({"text": text}, {"text": {"format": form}})
    stage = AnswerLoss(ModelSpec(str(folder), head="completion"), token_budget=40)
    rows = inputs.run(stage).sort_by("id").to_pylist()
    whole = Whole(folder)
    for row, asked, said in zip(rows, ASKED, SAID, strict=True):
        ids, begin, n_ends = whole.ids(form, asked, said)
        each, states = whole.losses(ids, begin)
        bare_ids, bare_begin, _ = whole.ids(form, "", said)
        bare, bare_states = whole.losses(bare_ids, bare_begin)
        n = len(each) - n_ends
        assert row["n_tokens"] == len(each)
        assert row["loss"] == pytest.approx(each.mean(), rel=1e-5)
        assert row["text_loss"] == pytest.approx(each[:n].mean(), rel=1e-5)
        assert row["text_loss_alone"] == pytest.approx(bare[:n].mean(), rel=1e-5)
        end = pytest.approx(each[n], rel=1e-5) if n_ends else None
        assert row["end_loss"] == end
        worst = np.sort(each[:n])[-max(1, n // 10) :].mean()
        assert row["worst_loss"] == pytest.approx(worst, rel=1e-5)
        first, second = np.split(np.array(row["vector"]), 2)
        np.testing.assert_allclose(first, states[: len(ids) - len(each)].mean(0), atol=1e-5)
        bare_answer = bare_states[len(bare_ids) - len(bare) :]
        np.testing.assert_allclose(second, bare_answer.mean(0), atol=1e-5)


def test_an_answer_that_is_cut_is_the_row_with_the_shorter_answer(saved: Any, memory: Any) -> None:
    folder = saved("gpt2", "CausalLM")
    model = ModelSpec(str(folder), head="completion")
    details = {"text": {"format": "prompt_completion"}}
    inputs = memory({"text": table("prompt_completion", ASKED, SAID)}, details)
    reader = Reader(load_measurement(model, inputs), 512)
    (long,) = reader.read(["not"], [" dull not good film"]).tokens
    (short,) = reader.read(["not"], [" dull not"]).tokens
    assert long is not None
    assert short is not None
    n = len(short.losses) - 1
    found, expected = told(cut_after(long, n), None), told(short, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected.end_loss != told(long, None).end_loss


def test_text_without_prompts_has_no_difficulty(saved: Any, memory: Any) -> None:
    model = ModelSpec(str(saved("gpt2", "CausalLM")), head="completion")
    text = table("prompt_completion", ASKED, SAID)
    text = text.set_column(3, "text_b", pa.nulls(len(ASKED), pa.string()))
    rows = memory({"text": text}, {"text": {"format": "text"}}).run(AnswerLoss(model))
    assert rows["text_loss_alone"].null_count == len(ASKED)
    assert rows["loss"].null_count == 0


def test_what_stands_in_for_rows() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "tool_calls": []},
    ]
    emptied = without_prompt(json.dumps(turns), None, "messages")
    assert emptied is not None
    contents = [turn["content"] for turn in json.loads(emptied[0])]
    assert contents == ["", "", "b", "", "d"]
    new = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "new"}]
    donor = (json.dumps(new), None)
    changed = json.loads(with_answer_of(json.dumps(turns), None, "messages", donor)[0])
    assert changed == [*turns[:4], new[1]]
    turns[4]["train"] = False
    emptied = without_prompt(json.dumps(turns), None, "messages")
    assert emptied is not None
    assert [turn["content"] for turn in json.loads(emptied[0])] == ["", "", "b", "", ""]
    assert answer_of(json.dumps(turns), None, "messages") == "b"
    changed = json.loads(with_answer_of(json.dumps(turns), None, "messages", donor)[0])
    assert changed == [*turns[:2], new[1], *turns[3:]]
    arguments = {"where": {"city": "Rome"}}
    calls = [{"type": "function", "id": "c1", "function": {"name": "look", "arguments": arguments}}]
    called: list[dict[str, Any]] = [
        *turns[:4],
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    calling = (json.dumps(called), None)
    assert answer_of(json.dumps(called), None, "messages") == 'look {"where":{"city":"Rome"}}'
    changed = json.loads(with_answer_of(json.dumps(turns), None, "messages", calling)[0])
    assert changed == [*turns[:2], called[4], *turns[3:]]
    changed = json.loads(with_changed_answer(*calling, "messages", str.upper)[0])
    function = {"name": "look", "arguments": {"where": {"city": "ROME"}}}
    assert changed[4] == {**called[4], "tool_calls": [{**calls[0], "function": function}]}
    thought = {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": "hm"}
    reply = {"role": "tool", "content": "18 C", "tool_call_id": "7"}
    asked = [*turns[:2], {**thought, "train": False}, reply, *turns[2:3]]
    emptied = without_prompt(json.dumps(asked), None, "messages")
    assert emptied is not None
    said = json.loads(emptied[0])
    assert said[2] == {"role": "assistant", "content": "", "train": False}
    assert said[3] == {"role": "tool", "content": "", "tool_call_id": "7"}
    assert said[4] == turns[2]
    assert without_prompt("a", "b", "prompt_completion") == ("", "b")
    assert without_prompt("", "b", "prompt_completion") is None
    assert without_prompt("a", None, "text") is None
    assert with_answer_of("a", "b", "prompt_completion", ("x", "c")) == ("a", "c")
    assert with_changed_answer("a", "b", "prompt_completion", str.upper) == ("a", "B")


def test_planted_answers_are_measured_as_rows_with_these_answers(
    saved: Any, memory: Any, sharded: Any
) -> None:
    model = ModelSpec(str(saved("gpt2", "CausalLM")), head="completion")
    words = "good film bad plot very bright dull slow not and the a".split()
    generator = np.random.default_rng(0)
    asked = [" ".join(generator.choice(words, 4)) for _ in range(40)]
    said = [" " + " ".join(generator.choice(words, 8)) for _ in range(40)]
    text = table("prompt_completion", asked, said)
    details = {"text": {"format": "prompt_completion"}}
    losses = memory({"text": text}, details).run(AnswerLoss(model))
    inputs = memory({"text": text, "answer_loss": losses}, details)
    stage = PlantedAnswers(model, rows=10)
    planted = inputs.run(stage, Part("example", 0))
    cut = sharded(inputs.tables, details, 3)
    cut.open(stage)
    parts = [cut.compute(stage, Part("example", i))["planted_answer"] for i in range(3)]
    assert all(len(part) for part in parts)
    # Rows in other batches differ in the last bits.
    order = [("kind", "ascending"), ("id", "ascending")]
    one, other = (t.sort_by(order) for t in (planted, pa.concat_tables(parts)))
    for name in ("kind", "id", "donor_id", "n_tokens"):
        assert one[name].equals(other[name])
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-4)
    counts = planted.group_by("kind").aggregate([("id", "count")]).to_pydict()
    kinds = dict(zip(counts["kind"], counts["id_count"], strict=True))
    assert kinds == {"another answer": 10, "off topic": 10, "garbled": 10, "cut off": 10}
    # Each swapped answer is another row's, measured behind this row's prompt.
    whole = Whole(Path(model.path))
    for row in planted.to_pylist():
        if row["kind"] not in ("another answer", "off topic"):
            continue
        answer = said[row["donor_id"]]
        assert answer != said[row["id"]]
        ids, begin, _ = whole.ids("prompt_completion", asked[row["id"]], answer)
        assert row["loss"] == pytest.approx(whole.losses(ids, begin)[0].mean(), rel=1e-5)
    states = {row["id"]: row["vector"] for row in losses.to_pylist()}
    for row in planted.to_pylist():
        prompt = np.split(np.array(row["vector"]), 2)[0]
        np.testing.assert_allclose(prompt, np.split(np.array(states[row["id"]]), 2)[0], atol=1e-5)
    assert matrix_of(planted["vector"]).shape[0] == 40


CALLING = (
    "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('a result of no call') }}{% endif %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_answers_of_others_keep_their_calls_of_tools(
    saved: Any, memory: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved("gpt2", "CausalLM"), folder)
    (folder / "chat_template.jinja").write_text(CALLING)
    model = ModelSpec(str(folder), head="completion")
    words = "good film bad plot very bright dull slow not and the a".split()
    generator = np.random.default_rng(0)
    drawn = [generator.choice(words, 8).tolist() for _ in range(40)]
    chats = []
    for at, said in enumerate(drawn):
        turn = {"role": "assistant", "content": " ".join(said)}
        result = []
        if at % 2:
            function = {"name": "_".join(said), "arguments": {}}
            turn = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
            result = [{"role": "tool", "content": "so"}]
        chats.append([{"role": "user", "content": " ".join(said[:4])}, turn, *result])
    texts = [json.dumps(chat) for chat in chats]
    rows = {"id": range(40), "role": ["example"] * 40, "text": texts}
    text = pa.table({**rows, "text_b": pa.nulls(40, pa.string())})
    details = {"text": {"format": "messages"}}
    losses = memory({"text": text}, details).run(AnswerLoss(model))
    stage = PlantedAnswers(model, rows=20)
    planted = memory({"text": text, "answer_loss": losses}, details).run(stage).to_pylist()
    swapped = [row for row in planted if row["donor_id"] is not None]
    # A text before the result of a call is refused; calls without a result are not.
    assert {(row["id"] % 2, row["donor_id"] % 2) for row in swapped} == {(0, 0), (0, 1), (1, 1)}
    calling = next(row for row in swapped if (row["id"] % 2, row["donor_id"] % 2) == (0, 1))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    name = "_".join(drawn[calling["donor_id"]])
    assert calling["n_tokens"] == len(tokenizer(name)["input_ids"])


def test_rows_whose_answer_is_cut_off_are_left_out(saved: Any, memory: Any) -> None:
    model = ModelSpec(str(saved("gpt2", "CausalLM")), head="completion", max_length=6)
    details = {"text": {"format": "prompt_completion"}}
    inputs = memory({"text": table("prompt_completion", ASKED, SAID)}, details)
    losses = inputs.run(AnswerLoss(model)).sort_by("id")
    read = losses.filter(pc.greater(losses["n_tokens"], 0))["id"].to_pylist()
    assert 0 < len(read) < len(ASKED)
    assert losses["loss"].null_count == len(ASKED) - len(read)
    found = inputs.run(Prediction(model)).sort_by("id")
    assert found["id"].to_pylist() == read
    (notice,) = inputs.told.details()["notices"]
    assert notice == "rows are left out whose answer max_length cuts off"
    likelihood = [row[0] for row in found["logits"].to_pylist()]
    expected = [-x for x in losses["loss"].to_pylist() if x is not None]
    np.testing.assert_allclose(likelihood, expected, rtol=1e-5)
