"""A long text has the same tokens in windows as at once."""

import json
from typing import Any

import pytest
from long_texts import KINDS, long_text
from tiny_models import TALKING

from stages.model import windows
from stages.model.batches import encode_text
from stages.model.chats import chat_pieces
from stages.model.heads.head import head_of
from stages.model.lengths import row_lengths
from stages.model.spec import ModelSpec
from stages.model.templates import tokenise_completions

UNCUT = 1 << 30


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows so small that a test has many of them."""
    monkeypatch.setattr(windows, "WINDOW", 2000)
    monkeypatch.setattr(windows, "OVERLAP", 256)


def texts() -> list[str]:
    random = [long_text(seed, 9000 + seed) for seed in range(3)]
    return [*random, "a" * 5000, " " * 5000, "ab " * 2000, "不" * 5000, "😀" * 2000, "", "a"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_windows_have_the_tokens_and_places_of_the_whole(kind: str) -> None:
    tokenizer = KINDS[kind]()
    for text in texts():
        for special, splits in ((False, True), (True, True), (True, False)):
            whole = tokenizer(
                text,
                add_special_tokens=special,
                split_special_tokens=splits,
                return_offsets_mapping=True,
                verbose=False,
            )
            found = list(windows.pieces(tokenizer, text, special, splits))
            assert [i for piece in found for i in piece.ids] == whole["input_ids"]
            places = zip(whole.sequence_ids(0), whole["offset_mapping"], strict=True)
            assert [at for piece in found for at in piece.places] == [
                None if part is None else place for part, place in places
            ]
        for pair in (None, "and another"):
            encoded = encode_text(tokenizer, text, *([pair] if pair else []), verbose=False)
            assert windows.row_length(tokenizer, text, pair) == len(encoded["input_ids"])


def test_a_tokenizer_sees_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    tokenizer = KINDS["gpt2"]()
    call = type(tokenizer).__call__

    def counting(self: Any, text: Any, *rest: Any, **options: Any) -> Any:
        seen.append(len(text))
        return call(self, text, *rest, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    text = "so good a film " * (1 << 17)
    n_tokens = windows.count(tokenizer, text)
    assert max(seen) <= windows.WINDOW
    assert sum(seen) < 1.15 * len(text)
    each = windows.count(tokenizer, text[:3000]) - windows.count(tokenizer, text[:1500])
    assert n_tokens == each * (1 << 17) // 100


CHAT = [
    {"role": "user", "content": long_text(4, 5000)},
    {"role": "assistant", "content": long_text(5, 6000)},
    {"role": "user", "content": "and </s> then ?"},
    {"role": "assistant", "content": long_text(6, 4000)},
]

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


@pytest.mark.parametrize("kind", TALKING)
def test_completions_are_the_same_in_windows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every form, from the start, from the end, and how long they are."""
    talker = TALKING[kind]()
    talker.chat_template = TEMPLATE
    rows = [("text", long_text(1, 9000), None), ("prompt_completion", "why ", long_text(2, 9000))]
    rows += [
        ("prompt_completion", long_text(3, 9000), "so ."),
        ("messages", json.dumps(CHAT), None),
    ]

    def found() -> list[Any]:
        tokens = [
            tokenise_completions(talker, [text], [pair], form, most, keeps_end, True)
            for form, text, pair in rows
            for most, keeps_end in ((50, False), (50, True), (UNCUT, False))
        ]
        lengths = [row_lengths(talker, [text], [pair], form) for form, text, pair in rows]
        return [(one.columns, one.spans) for one in tokens] + [one.tolist() for one in lengths]

    whole = found()
    for (form, text, pair), (columns, _), lengths in zip(
        rows, whole[2 : 3 * len(rows) : 3], whole[3 * len(rows) :], strict=True
    ):
        (ids,), (targets,) = columns["input_ids"], columns["targets"]
        predicted = [at + 1 for at, token in enumerate(targets) if token >= 0]
        assert lengths == [[len(ids), predicted[0], predicted[-1], 0]]
        head = head_of(ModelSpec("unread", head="completion"))
        assert head.lengths(talker, [text], [pair], form) == [len(ids)]
    monkeypatch.setattr(windows, "WINDOW", 2000)
    monkeypatch.setattr(windows, "OVERLAP", 256)
    assert found() == whole
    assert len(list(chat_pieces(talker, CHAT))) > 5
