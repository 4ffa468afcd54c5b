"""What a prompt of `explain --prompt` may be; the model itself is tested elsewhere."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

import pipeline.explain.prompt
from pipeline.errors import RunError
from pipeline.explain.new_query import _said
from pipeline.explain.prompt import WRITER, answered
from pipeline.progress import Progress

USER = {"role": "user", "content": "ask"}
OWN = {"role": "assistant", "content": "said"}


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answers a prompt in a corpus of conversations by a model that says what it is asked."""
    stage = SimpleNamespace(model_ref=SimpleNamespace(head="completion"), reads=("text",))
    finished: Any = SimpleNamespace(
        stages={"answer_loss": stage}, job=lambda _: SimpleNamespace(threads=1)
    )
    monkeypatch.setattr(pipeline.explain.prompt, "written", lambda _, text, *__: text)
    kept = {WRITER: SimpleNamespace(form="messages")}
    return lambda prompt: answered(finished, prompt, 5, Progress(), kept)


def test_calls_of_tools_are_part_of_what_a_new_text_asks() -> None:
    call = {"function": {"name": "look", "arguments": {"q": 1}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    heard = {"role": "tool", "content": "2"}
    finished: Any = SimpleNamespace(
        corpus=lambda table: SimpleNamespace(details={"format": "messages"})
    )
    found = _said(finished, json.dumps([USER, called, heard, OWN]), None)
    assert found == {"prompt": 'user: ask\nassistant: look {"q":1}\ntool: 2', "answer": "said"}


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("ask", [USER]),
        ("[1, 2]", [{"role": "user", "content": "[1, 2]"}]),
        ("[]", [{"role": "user", "content": "[]"}]),
        (json.dumps([USER, OWN, USER]), [USER, OWN, USER]),
        (json.dumps([{"from": "human", "value": "ask"}]), [USER]),
    ],
)
def test_a_prompt_is_a_text_or_a_conversation(
    answer: Any, prompt: str, asked: list[dict[str, str]]
) -> None:
    text, second = answer(prompt)
    *before, last = json.loads(text)
    assert (before, second) == (asked, None)
    assert json.loads(last["content"]) == asked


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ('[{"content": "ask"}]', "found messages are not a list of .role, content."),
        ('[{"from": "nobody", "value": "ask"}]', "found messages from others than human"),
        ("caf\udce9", "found text that is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said(answer: Any, prompt: str, found: str) -> None:
    with pytest.raises(RunError, match=f"--prompt: {found}"):
        answer(prompt)
