"""Long texts are cut before they are tokenised, and keep the same first tokens."""

from typing import Any

import pytest
from long_texts import KINDS, long_text
from tiny_models import TOKENIZERS

from stages.model.batches import encode_question, encode_text, tokenise
from stages.model.first_part import LONG, MOST, first_part
from stages.model.spec import Prompt
from stages.model.templates import tokenise_completions, tokenise_prompts

KEPT = 40


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_tokens_stay(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a small bound, so that many cuts are tried: every start is one of the whole's tokens."""
    tokenizer = KINDS[kind]()
    monkeypatch.setattr("stages.model.first_part.LONG", 64 * KEPT)
    for seed in range(4):
        text = long_text(seed, 12_000)
        part = first_part(tokenizer, text, KEPT)
        assert len(part) < len(text)
        assert text.startswith(part)
        whole = encode_text(tokenizer, text, add_special_tokens=False)["input_ids"]
        found = encode_text(tokenizer, part, add_special_tokens=False)["input_ids"]
        assert len(found) > KEPT
        assert found[:KEPT] == whole[:KEPT]


@pytest.mark.parametrize("kind", ["minilm", "gpt2", "unigram, unsplit"])
def test_rows_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every form of rows, with and without a cut."""
    tokenizer = KINDS[kind]()
    text, other = long_text(1, 12_000), long_text(2, 400)

    def rows() -> list[Any]:
        found: list[Any] = [
            tokenise(tokenizer, [text, other, text], [None, text, other], KEPT, True),
            tokenise_completions(tokenizer, [other[:60]], [text], "prompt_completion", KEPT),
            tokenise_completions(tokenizer, [text], [None], "text", KEPT),
            tokenise_completions(tokenizer, [text], [None], "text", KEPT, keeps_end=True),
            encode_question(tokenizer, other[:30], text, KEPT)["input_ids"],
        ]
        if kind != "minilm":
            prompt = Prompt("{text} It was", ("good", "bad"))
            found.append(tokenise_prompts(tokenizer, prompt, [text], [None], KEPT, False))
        return [getattr(row, "columns", row) for row in found]

    whole = rows()
    monkeypatch.setattr("stages.model.first_part.LONG", 64 * KEPT)
    cuts = []
    monkeypatch.setattr(
        "stages.model.batches.first_part",
        lambda *given: cuts.append(len(part := first_part(*given)) < len(given[1])) or part,
    )
    assert rows() == whole
    assert any(cuts)


def test_short_texts_are_never_touched() -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is asked of the tokenizer")

    for text in ("", "a", "x" * LONG):
        assert first_part(fails, text, 3) is text
    text = "x" * (64 * 5000)
    assert first_part(fails, text, 5000) is text


def test_texts_with_few_tokens_are_cut_in_the_end() -> None:
    tokenizer = TOKENIZERS["bert"]()
    assert first_part(tokenizer, " " * (3 * MOST), 10) == " " * MOST
    assert len(first_part(tokenizer, "a" * (3 * MOST), 10)) == MOST


def test_a_tokenizer_sees_no_long_text() -> None:
    """Of 16 million characters, of which it would make 2 GB."""
    seen = []

    class Counting:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tokenizer, name)

        def __call__(self, *texts: Any, **options: Any) -> Any:
            seen.append(
                sum(
                    len(t)
                    for text in texts
                    for t in ([text] if isinstance(text, str) else text or [])
                )
            )
            return self._tokenizer(*texts, **options)

    tokenizer = Counting(TOKENIZERS["gpt2"]())
    text = "so good a film " * (1 << 20)
    assert len(tokenise(tokenizer, [text], [None], 128).columns["input_ids"][0]) == 128
    assert (
        len(
            tokenise_completions(tokenizer, [text], [text], "prompt_completion", 128).columns[
                "input_ids"
            ][0]
        )
        == 128
    )
    assert sum(seen) < 8 * LONG
