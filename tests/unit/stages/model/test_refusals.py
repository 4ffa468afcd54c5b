"""Rows that a tokenizer leaves nothing of, for every kind of model."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from stages.model.heads.head import head_of
from stages.model.refusals import WITHOUT, TextCheck, reading_fingerprint
from stages.model.spec import ModelSpec, Prompt


def dropping() -> Any:
    """Pairs of letters among a, b and c; all other letters are dropped."""
    vocabulary = {token: at for at, token in enumerate(("<s>", "a", "b", "c", "ab"))}
    core = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<s>")


@pytest.mark.parametrize(
    "text", ["ab", "कab", "k k b", "\u200b", "क", "hello", "hello c", "", " ", "\x00", "\x00a"]
)
def test_a_text_has_a_token_if_the_tokenizer_finds_one(text: str) -> None:
    check = TextCheck(dropping())
    wanted = None if set(text) & set("abc") else WITHOUT
    assert bool(dropping()(text)["input_ids"]) == (wanted is None)
    for _ in range(2):  # The second time what is known of the letters decides.
        assert check.refusal(text) == wanted


def test_a_text_that_a_tokenizer_fails_on_is_refused() -> None:
    """Some have no token for unknown words, and raise."""
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[CLS]": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
    check = TextCheck(tokenizer)
    texts = ["a b", "a x", "", "b"]
    reasons = [check.refusal(text) for text in texts]
    assert [r and r.split(":")[0] for r in reasons] == [
        None,
        "that its tokenizer fails on",
        WITHOUT,
        None,
    ]
    assert "UNK" in str(reasons[1])
    for head, form in (("probe", "text"), ("completion", "prompt_completion")):
        found = head_of(ModelSpec("x", head=head)).refusals(tokenizer, texts, ["a"] * 4, form)
        assert [bool(reason) for reason in found] == [False, True, False, False]


TEXTS, PAIRS = ["ab", "hello", "hello", "ab"], ["c", "hello", "c", "hello"]


@pytest.mark.parametrize(
    ("head", "form", "pairs", "refused"),
    [
        ("checkpoint", "text", [None] * 4, [1, 2]),
        ("probe", "text", PAIRS, [1]),
        ("probe", "prompt_completion", PAIRS, [1]),
        ("span", "text", PAIRS, [1]),
        ("label_words", "text", [None] * 4, []),
        ("completion", "text", [None] * 4, [1, 2]),
        ("completion", "prompt_completion", PAIRS, [1, 3]),
    ],
)
def test_who_refuses_what(head: str, form: str, pairs: list[Any], refused: list[int]) -> None:
    prompt = Prompt("{text} is", ("a", "b")) if head == "label_words" else None
    kind = head_of(ModelSpec("x", head=head, prompt=prompt))
    found = kind.refusals(dropping(), TEXTS, pairs, form)
    what = "completion" if (head, form) == ("completion", "prompt_completion") else "text"
    assert found == [f"{what} {WITHOUT}" if row in refused else None for row in range(4)]


def test_special_tokens_are_enough_for_a_model_of_whole_texts(saved: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved("bert"))
    kind = head_of(ModelSpec("x"))
    assert kind.refusals(tokenizer, ["\u200b"], [None], "text") == [None]


def test_how_a_model_reads_does_not_depend_on_its_weights(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    model = ModelSpec(str(tmp_path))
    first = reading_fingerprint(model)
    (tmp_path / "model.safetensors").write_text("other")
    (tmp_path / "README.md").write_text("other")
    assert reading_fingerprint(model) == first
    (tmp_path / "chat_template.jinja").write_text("other")
    assert reading_fingerprint(model) != first
