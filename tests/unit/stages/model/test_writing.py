"""What a model writes after a prompt, against passes over all tokens before each new one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from memory_inputs import MemoryInputs
from tiny_models import CHAT

from stages.model.measurement import Measurement, load_measurement
from stages.model.spec import ModelSpec
from stages.model.writing import written
from stages.stage import DataError

NEW = 6


def opened(saved: Callable[..., Path], kind: str, form: str, longest: int = 48) -> Measurement:
    spec = ModelSpec(str(saved(kind, "CausalLM")), head="completion", max_length=longest)
    return load_measurement(spec, MemoryInputs({}, {"text": {"format": form}}))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("form", "before"),
    [("prompt_completion", []), ("text", []), ("messages", []), ("messages", ["good", "bad"])],
)
def test_words_are_the_likeliest_one_after_the_other(
    saved: Callable[..., Path], kind: str, form: str, before: list[str]
) -> None:
    measurement = opened(saved, kind, form, longest=80)
    tokenizer, network = measurement.tokenizer, measurement.network
    text, begin = "the house is", "the house is"
    if form == "messages":
        tokenizer.chat_template = CHAT
        roles = ["user", "assistant", "user"]
        said = zip(roles, [*before, text], strict=False)
        messages = [{"role": role, "content": content} for role, content in said]
        text = json.dumps(messages)
        begin = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(begin, add_special_tokens=form != "messages")["input_ids"]
    if form != "messages" and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    whole: Any = network
    found: list[int] = []
    while len(found) < NEW:
        with torch.no_grad():
            states = whole.trunk(input_ids=torch.tensor([ids + found])).last_hidden_state
            found.append(int(whole.head(states[0, -1]).argmax()))
        if found[-1] == tokenizer.eos_token_id:
            break
    wanted = tokenizer.decode(found, skip_special_tokens=True)
    assert written(measurement, text, None, NEW) == wanted


def test_an_answer_ends_where_the_models_generation_does(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved("llama", "CausalLM"), tmp_path / "model")
    spec = ModelSpec(str(folder), head="completion", max_length=48)
    measurement = load_measurement(spec, MemoryInputs({}, {"text": {"format": "text"}}))
    tokenizer = measurement.tokenizer
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer("the house is")["input_ids"]])

    def generated() -> list[int]:
        found = network.generate(ids, do_sample=False, max_new_tokens=NEW)
        return list(found[0, ids.shape[1] :].tolist())

    first, *others = generated()
    end = next(token for token in others if token != first)
    network.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    network.generation_config.save_pretrained(folder)
    *kept, last = generated()
    assert last == end
    wanted = tokenizer.decode(kept, skip_special_tokens=True)
    assert written(measurement, "the house is", None, NEW) == wanted


def test_a_prompt_without_room_for_an_answer_is_refused(saved: Callable[..., Path]) -> None:
    measurement = opened(saved, "llama", "prompt_completion", longest=4)
    with pytest.raises(DataError, match="fewer than max_length, 4"):
        written(measurement, "the house is red and a road near it", None, NEW)
