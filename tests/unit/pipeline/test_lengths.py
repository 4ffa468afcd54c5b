"""What `max_length` leaves of completions, against rows that are really cut."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import CHAT, TALKING

from pipeline.lengths import Lengths
from stages.corpus import scan
from stages.corpus.ingest import survey
from stages.corpus.source import Source
from stages.model.chats import CALLS, REASONING
from stages.model.lengths import row_lengths
from stages.model.networks import IGNORED
from stages.model.templates import tokenise_completions


@functools.cache
def tokenizer() -> Any:
    made = TALKING["bytes"]()
    made.chat_template = CHAT
    return made


def talk(*contents: str, **last: Any) -> str:
    roles = ("user", "assistant")
    turns: list[Any] = [{"role": roles[at % 2], "content": c} for at, c in enumerate(contents)]
    return json.dumps([*turns[:-1], {**turns[-1], **last}])


ROWS: dict[str, tuple[list[str], list[str | None]]] = {
    "prompt_completion": (["so", "a film it was", "", "x"], ["good", "bad bad", "no", "a b c d"]),
    "text": (["so good", "a", "it was bad bad"], [None, None, None]),
    "messages": (
        [talk("so", "good film"), talk("a", "b", "so bad", "no"), talk("it was", "x", "so")],
        [None, None, None],
    ),
}


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("keeps_end", [False, True])
def test_rows_that_are_cut_are_counted_as_they_are_cut(form: str, keeps_end: bool) -> None:
    texts, pairs = ROWS[form]

    def predicted(max_length: int) -> list[int]:
        tokens = tokenise_completions(tokenizer(), texts, pairs, form, max_length, keeps_end)
        return [sum(t != IGNORED for t in row) for row in tokens.columns["targets"]]

    found = row_lengths(tokenizer(), texts, pairs, form)
    lengths = Lengths.of(found, len(texts))
    assert Lengths.read(json.loads(json.dumps(lengths.written()))) == lengths
    in_all, n_tokens = predicted(10**6), found[:, 0]
    outcomes = set()
    for max_length in range(1, int(n_tokens.max()) + 2):
        kept = predicted(max_length)
        left = lengths.left(max_length, keeps_end)
        assert left.n_whole == sum(n_tokens <= max_length)
        assert left.n_lost == sum(k == 0 < a for k, a in zip(kept, in_all, strict=True))
        assert left.n_cut == sum(0 < k < a for k, a in zip(kept, in_all, strict=True))
        outcomes.add((left.n_lost > 0, left.n_cut > 0))
    assert all(map(any, zip(*outcomes, strict=True)))


def test_a_row_without_an_answer_loses_none() -> None:
    assert Lengths(1, ((9, -1, -1, 0, 1),)).left(3, False) == (0, 0, 0)


def test_the_smallest_length_that_keeps_99_percent_whole() -> None:
    generator = np.random.default_rng(0)
    n_tokens = generator.integers(1, 500, 700)
    found = np.column_stack([n_tokens, n_tokens - 1, n_tokens - 1, n_tokens * 0])
    long_enough = Lengths.of(found, 700).long_enough()
    assert np.mean(n_tokens <= long_enough) >= 0.99 > np.mean(n_tokens < long_enough)


def test_reasoning_that_the_template_leaves_out_is_counted() -> None:
    texts = [talk("a", "b", thinking="hm"), talk("a", "b"), talk("a", "<think>hm</think>b")]
    found = row_lengths(tokenizer(), texts, [None] * 3, "messages")
    assert found[:, 3].tolist() == [1, 0, 0]
    assert Lengths.of(found, 3).n_without(REASONING) == 1


def test_calls_and_tools_that_the_template_leaves_out_are_counted() -> None:
    calls = {"tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}]}
    tools = json.dumps([{"type": "function", "function": {"name": "look"}}])
    texts = [talk("a", "b", **calls), talk("a", "b"), talk("a", "b", thinking="hm"), talk("a", "b")]
    found = row_lengths(tokenizer(), texts, [None, None, None, tools], "messages")
    assert found[:, 3].tolist() == [CALLS, 0, REASONING, CALLS]
    shown = tokenizer()
    shown.chat_template = "{{ tools }}" + shown.chat_template.replace(
        "{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}"
    )
    assert row_lengths(shown, texts, [None, None, None, tools], "messages")[:, 3].sum() == REASONING


@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 20])
def test_of_many_rows_some_are_measured_evenly_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    """However the source is cut into parts; rejected rows are not measured."""
    monkeypatch.setattr(scan, "MEASURED", 7)
    lines = [{"id": n % 24, "text": "" if n == 20 else f"{n}"} for n in range(25)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def measures(texts: Any, pairs: Any, form: str) -> dict[str, np.ndarray]:
        return {"reading": np.array([[int(text), 0, 0, 0] for text in texts]).reshape(-1, 4)}

    source = Source(str(path), task="completion", id="id")
    found = survey(source, "example", measures=measures, piece_bytes=piece_bytes)
    # Of every 25 / 7 rows the last; 20 is empty, and 24 has the id of 0.
    assert found.lengths["reading"][:, 0].tolist() == [3, 7, 10, 14, 17, 21]
    monkeypatch.setattr(scan, "MEASURED", 25)
    found = survey(source, "example", measures=measures, piece_bytes=piece_bytes)
    assert found.lengths["reading"][:, 0].tolist() == [n for n in range(24) if n != 20]
