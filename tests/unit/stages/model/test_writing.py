"""What a model writes after a prompt, against passes over all tokens before each new one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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


def test_a_prompt_without_room_for_an_answer_is_refused(saved: Callable[..., Path]) -> None:
    measurement = opened(saved, "llama", "prompt_completion", longest=4)
    with pytest.raises(DataError, match="fewer than max_length, 4"):
        written(measurement, "the house is red and a road near it", None, NEW)
