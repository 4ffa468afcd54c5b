"""From rows to tokens where a template or a completion decides what is read."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stages.model.batches import REWRITTEN
from stages.model.chats import special_ids
from stages.model.spec import Lora, ModelSpec, Prompt, Trained
from stages.model.templates import (
    label_word_ids,
    one_position_each,
    plain_texts,
    tokenise_completions,
    tokenise_prompts,
)
from stages.stage import ConfigError, DataError, ModelError, RefusedRow

WORDS = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "</s>", "it", "was", ".", "good", "bad"]
WORDS += ["a", "b", "c", "d", "e", "A", "Hello", "?", "user:", "bot:", "<e>"]


def tokenizer(masked: bool) -> Any:
    """One token a word; a masked model's frames the text."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if masked:
        special = [("[CLS]", 1), ("[SEP]", 2)]
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
        )
        names = {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", **names)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="</s>")


def words(tok: Any, ids: list[int]) -> str:
    return " ".join(tok.convert_ids_to_tokens(ids))


PAIRS = {"prompt_completion": " zzz b"}
TURN = [{"role": "assistant", "content": "zzz b"}]
MASKED = Prompt("{text} it was {mask} .", ("good", "bad"))
CAUSAL = Prompt("{text} it was", ("good", "bad"))


def test_the_mask_or_the_last_token_answers() -> None:
    tok = tokenizer(masked=True)
    tokens = tokenise_prompts(tok, MASKED, ["a b", "c"], [None, None], 16, True)
    shown = [words(tok, ids) for ids in tokens.columns["input_ids"]]
    assert shown == ["[CLS] a b it was [MASK] . [SEP]", "[CLS] c it was [MASK] . [SEP]"]
    assert tokens.positions is not None
    assert tokens.positions.tolist() == [5, 4]
    causal = tokenise_prompts(tokenizer(False), CAUSAL, ["a b"], [None], 16, False)
    assert causal.positions is not None
    assert causal.positions.tolist() == [3]


def test_a_long_row_loses_text_and_never_the_question() -> None:
    tok = tokenizer(masked=True)
    tokens = tokenise_prompts(tok, MASKED, ["a b c d e a b c"], [None], 9, True)
    assert words(tok, tokens.columns["input_ids"][0]) == "[CLS] a b c it was [MASK] . [SEP]"
    pair = Prompt("{text} ? {mask} {text_b}", ("good", "bad"))
    tokens = tokenise_prompts(tok, pair, ["a b"], ["a b c d e"], 9, True)
    assert words(tok, tokens.columns["input_ids"][0]) == "[CLS] a b ? [MASK] a b c [SEP]"


def test_a_mask_in_the_text_is_none() -> None:
    tok = tokenizer(masked=True)
    tokens = tokenise_prompts(tok, MASKED, ["[MASK] a"], [None], 16, True)
    assert words(tok, tokens.columns["input_ids"][0]) == "[CLS] a it was [MASK] . [SEP]"


def test_parts_can_be_trimmed_and_lowered() -> None:
    tok = tokenizer(masked=True)
    prompt = Prompt("{text:trimmed} ? {mask} {text_b:uncapitalised}", ("good", "bad"))
    tokens = tokenise_prompts(tok, prompt, ["a."], ["A b"], 16, True)
    assert words(tok, tokens.columns["input_ids"][0]) == "[CLS] a ? [MASK] a b [SEP]"


@pytest.mark.parametrize(
    ("prompt", "masked", "pair", "error", "match"),
    [
        (CAUSAL, True, None, ConfigError, "masked language model, expected {mask} in it"),
        (MASKED, False, None, ConfigError, "causal language model"),
        (Prompt("{text} {other} it", ("good", "bad")), False, None, ConfigError, "other"),
        (Prompt("{text} {text_b} it", ("good", "bad")), False, None, DataError, "no second text"),
    ],
)
def test_templates_that_cannot_be_used(
    prompt: Prompt, masked: bool, pair: str | None, error: Any, match: str
) -> None:
    with pytest.raises(error, match=match):
        tokenise_prompts(tokenizer(masked), prompt, ["a"], [pair], 16, masked)


def test_a_template_needs_room() -> None:
    with pytest.raises(ConfigError, match=r"6 tokens in the empty template.*max_length: 5"):
        tokenise_prompts(tokenizer(True), MASKED, ["a b c"], [None], 5, True)


def test_label_words_are_single_tokens() -> None:
    tok = tokenizer(False)
    assert label_word_ids(tok, ["good", "bad"]) == [WORDS.index("good"), WORDS.index("bad")]
    with pytest.raises(ConfigError, match="'not good' is 2 tokens"):
        label_word_ids(tok, ["not good", "bad"])
    with pytest.raises(ConfigError, match="'great' is 1 tokens"):
        label_word_ids(tok, ["great", "bad"])


def targets(tok: Any, tokens: Any, row: int = 0) -> str:
    return " ".join("-" if t < 0 else WORDS[t] for t in tokens.columns["targets"][row])


def test_a_completion_and_its_end_are_predicted() -> None:
    tok = tokenizer(False)
    tokens = tokenise_completions(tok, ["a b"], ["c d"], "prompt_completion", 16)
    assert words(tok, tokens.columns["input_ids"][0]) == "a b c d </s>"
    assert targets(tok, tokens) == "- c d </s> -"
    plain = tokenise_completions(tok, ["a b"], [None], "text", 16)
    assert targets(tok, plain) == "b </s> -"
    cut = tokenise_completions(tok, ["a b c"], ["d"], "prompt_completion", 3)
    assert targets(tok, cut) == "- - -"


@pytest.mark.parametrize("form", ["text", "prompt_completion", "messages"])
def test_unknown_words_of_a_completion_are_text(form: str) -> None:
    """They have a token of their own, which is special only by name."""
    tok = tokenizer(False)
    tok.chat_template = "{% for m in messages %} {{ m.content }} </s>{% endfor %}"
    texts = {"messages": json.dumps([{"role": "user", "content": "a"}, *TURN]), "text": "a zzz b"}
    tokens = tokenise_completions(
        tok, [texts.get(form, "a")], [PAIRS.get(form)], form, 16, with_offsets=True
    )
    assert tokens.spans is not None
    assert [span[0] >= 0 or span == REWRITTEN for span in tokens.spans[0]] == [
        token != "</s>" for token in tok.convert_ids_to_tokens(tokens.columns["input_ids"][0])
    ]
    assert "[UNK]" in words(tok, tokens.columns["input_ids"][0])
    assert special_ids(tok) == {WORDS.index("</s>")}
    tok.unk_token = "</s>"  # as GPT-2 has it
    assert special_ids(tok) == {WORDS.index("</s>")}


@pytest.mark.parametrize(
    ("max_length", "shown", "predicted"),
    [
        (7, "a b c d </s>", "- - d </s> -"),
        (4, "b c d </s>", "- d </s> -"),
        (3, "c d </s>", "d </s> -"),
        # Of a completion without its prompt, the first token follows from nothing.
        (2, "d </s>", "</s> -"),
    ],
)
def test_the_end_of_a_row_can_be_kept(max_length: int, shown: str, predicted: str) -> None:
    tok = tokenizer(False)
    tokens = tokenise_completions(tok, ["a b c"], ["d"], "prompt_completion", max_length, True)
    assert words(tok, tokens.columns["input_ids"][0]) == shown
    assert targets(tok, tokens) == predicted


def test_what_the_assistant_says_is_predicted() -> None:
    tok = tokenizer(False)
    tok.chat_template = (
        "{% for m in messages %}{{ 'bot: ' if m.role == 'assistant' else 'user: ' }}"
        "{{ m.content }}{{ ' <e> ' if m.role == 'assistant' else ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}bot: {% endif %}"
    )
    turns = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "e")]
    text = json.dumps([{"role": role, "content": content} for role, content in turns])
    tokens = tokenise_completions(tok, [text], [None], "messages", 32)
    shown = words(tok, tokens.columns["input_ids"][0])
    assert shown == "user: a bot: b c <e> user: d bot: e <e>"
    assert targets(tok, tokens) == "- - b c <e> - - - e <e> -"
    tok.chat_template = "{{ messages | length }} {{ messages[-1].content }}"
    with pytest.raises(RefusedRow, match="in another way when later ones follow"):
        tokenise_completions(tok, [text], [None], "messages", 32)
    tok.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        tokenise_completions(tok, [text], [None], "messages", 32)


def test_every_predicted_token_becomes_a_row_of_its_own() -> None:
    tok = tokenizer(False)
    both = tokenise_completions(tok, ["a", "b c"], ["d", "e"], "prompt_completion", 16)
    each, owners, indices = one_position_each(both)
    assert owners.tolist() == [0, 0, 1, 1]
    assert indices.tolist() == [1, 2, 2, 3]
    assert [words(tok, ids) for ids in each.columns["input_ids"]] == ["a", "a d", "b c", "b c e"]
    assert [targets(tok, each, row) for row in range(4)] == ["d", "- </s>", "- e", "- - </s>"]


def test_a_model_without_completions_reads_them_as_text() -> None:
    chat = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert plain_texts([chat], [None], "messages") == (["a\nb"], [None])
    assert plain_texts(["a "], ["b"], "prompt_completion") == (["a b"], [None])
    assert plain_texts(["a"], ["b"], "text") == (["a"], ["b"])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Prompt("it was", ("a", "b")), "expected {text} in it"),
        (lambda: Prompt("{text}", ("a",)), "a different word"),
        (lambda: Prompt("{text}", ("a", "a")), "a different word"),
        (lambda: Lora(rank=0), "rank: 0"),
        (lambda: Trained(layers=()), "at least one pattern"),
        (lambda: Trained(last_blocks=-1), "last_blocks: -1"),
        (lambda: ModelSpec("x", head="label_words"), "without prompt"),
        (lambda: ModelSpec("x", prompt=MASKED), "with prompt"),
        (lambda: ModelSpec("x", truncation_mode="keep_end"), "keep_end with head: probe"),
        (lambda: ModelSpec("x", adapter="y", train=Trained(lora=Lora())), "both adapter and"),
    ],
)
def test_fields_that_cannot_be_used(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()
