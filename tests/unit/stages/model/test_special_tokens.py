"""A special token that a text spells out is text: only the tokenizer and templates write tokens."""

from typing import Any

import pytest

from stages.model.batches import encode_text, tokenise, tokenise_questions, with_marks
from stages.model.pretrained import load_tokenizer
from stages.model.spec import ModelSpec, Prompt
from stages.model.templates import tokenise_completions, tokenise_plain, tokenise_prompts

KINDS = ("bert", "roberta", "gpt2", "llama", "t5")


def special(tokenizer: Any, ids: list[int]) -> list[int]:
    """The special tokens among these ids; the unknown word is none that anyone writes."""
    known = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [i for i in ids if i in known]


def spelt(tokenizer: Any) -> str:
    """A text that spells out all special tokens of the tokenizer."""
    return f"good {' '.join(tokenizer.all_special_tokens)} film"


@pytest.mark.parametrize("kind", KINDS)
def test_no_path_takes_text_for_special_tokens(saved: Any, kind: str) -> None:
    tokenizer = load_tokenizer(ModelSpec(str(saved(kind))))
    plain, odd = "good film", spelt(tokenizer)
    pairs: list[Any] = [
        lambda text: tokenise(tokenizer, [text], [None], 99),
        lambda text: tokenise(tokenizer, ["not bad"], [text], 99),
        lambda text: tokenise_questions(tokenizer, [text], ["not bad"], 99),
        lambda text: tokenise_questions(tokenizer, ["not bad"], [text], 99),
        lambda text: tokenise_plain(tokenizer, [text], [text], "prompt_completion", 99),
        lambda text: tokenise_completions(tokenizer, [text], [text], "prompt_completion", 99),
        lambda text: tokenise_completions(tokenizer, [text], [None], "text", 99),
        lambda text: tokenise_prompts(
            tokenizer, Prompt("{text} It was", ("good", "bad")), [text], [None], 99, False
        ),
    ]
    for tokenised in pairs:
        found, wanted = (tokenised(text).columns["input_ids"][0] for text in (odd, plain))
        assert special(tokenizer, found) == special(tokenizer, wanted)
        assert len(found) > len(wanted)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_prompt_has_its_own_mask_and_no_token_of_the_text(saved: Any, kind: str) -> None:
    tokenizer = load_tokenizer(ModelSpec(str(saved(kind))))
    prompt = Prompt("{text} It was {mask}.", ("good", "bad"))
    odd = spelt(tokenizer)
    for text in (odd, odd * 9):
        tokens = tokenise_prompts(tokenizer, prompt, [text], [None], 60, True, with_offsets=True)
        (ids,) = tokens.columns["input_ids"]
        assert len(ids) <= 60
        assert tokens.positions is not None
        assert ids[tokens.positions[0]] == tokenizer.mask_token_id
        plain = tokenise_prompts(tokenizer, prompt, ["good film"], [None], 60, True)
        wanted = plain.columns["input_ids"][0]
        assert special(tokenizer, ids) == special(tokenizer, wanted)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_texts_without_special_tokens_are_tokenised_as_ever(saved: Any, kind: str) -> None:
    tokenizer = load_tokenizer(ModelSpec(str(saved(kind))))
    mask = tokenizer.mask_token
    for text in ("good film", f"good film It was {mask}.", f" {mask} was not bad"):
        marked = encode_text(with_marks(tokenizer, (mask,)), text)
        assert marked["input_ids"] == tokenizer(text)["input_ids"]


def test_special_tokens_of_a_template_stay_tokens(saved: Any) -> None:
    tokenizer = load_tokenizer(ModelSpec(str(saved("roberta"))))
    prompt = Prompt("{text}</s></s>It was {mask}.", ("good", "bad"))
    rows = tokenise_prompts(
        tokenizer, prompt, ["good film", "good</s>film"], [None, None], 60, True
    ).columns["input_ids"]
    assert [row.count(tokenizer.eos_token_id) for row in rows] == [3, 3]
