"""Which tokens of a conversation are answers, against their characters; what a template refuses."""

import functools
from typing import Any

import pytest
from tiny_models import TALKING

from stages.model.chats import chat_pieces, lay_out
from stages.stage import ModelError, RefusedRow

TEMPLATES = {
    # Openings as words and as special tokens, of which one swallows what follows.
    "lines": ("{role}\n", "{content}\n", "assistant\n"),
    "marks": ("<|{role}|>", "{content}</s>", "<|assistant|>"),
    "spaces": ("{role} ", "{content} ", "assistant "),
    "nothing": ("{role}:", "{content}", "assistant:"),
}


def tokenise_chat(*given: Any) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and whether each is a token of an answer."""
    found = list(chat_pieces(*given))
    return [i for ids, _ in found for i in ids], [is_one for _, own in found for is_one in own]


def template(opening: str, closing: str, asks: str, content: str = "m.content") -> str:
    filled = [
        part.replace("{role}", "{{ m.role }}").replace("{content}", f"{{{{ {content} }}}}")
        for part in (opening, closing)
    ]
    body = f"{filled[0]}{filled[1]}"
    return (
        f"{{% for m in messages %}}{body}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{asks}{{% endif %}}"
    )


def laid_out(parts: tuple[str, str, str], turns: list[tuple[str, str]]) -> tuple[str, set[int]]:
    """The conversation as text, and the characters of its answers, written by hand."""
    text, answers = "", set()
    for role, content in turns:
        text += parts[0].format(role=role)
        first = len(text)
        text += parts[1].format(content=content)
        if role == "assistant":
            answers |= set(range(first, len(text)))
    return text, answers


@functools.cache
def tokenizer(kind: str) -> Any:
    return TALKING[kind]()


def messages(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


TURNS = [
    [("user", "so good"), ("assistant", "no film")],
    [("user", "so bad"), ("assistant", "\nno film\n"), ("user", "\nit was"), ("assistant", " bad")],
    [("user", "a "), ("assistant", "\n\nfilm 😀 é "), ("user", " not"), ("assistant", "so  ")],
    [("system", "it was"), ("user", ""), ("assistant", ""), ("user", ""), ("assistant", "no")],
]


@pytest.mark.parametrize("kind", TALKING)
@pytest.mark.parametrize("form", TEMPLATES)
@pytest.mark.parametrize("turns", TURNS)
def test_a_token_with_a_character_of_an_answer_is_one(
    kind: str, form: str, turns: list[tuple[str, str]]
) -> None:
    """A token added to the vocabulary counts where it begins, though it swallows a line end."""
    talker = tokenizer(kind)
    talker.chat_template = template(*TEMPLATES[form])
    text, answers = laid_out(TEMPLATES[form], turns)
    ids, is_answer = tokenise_chat(talker, messages(turns))
    own = talker(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == own["input_ids"]
    added = set(talker.added_tokens_decoder)
    n_crossing = 0
    for token, (start, end), is_own in zip(ids, own["offset_mapping"], is_answer, strict=True):
        is_mark = token in added and text[start] == "<"
        characters = {start} if is_mark else set(range(start, end))
        if start == end:
            continue  # A space, of which a tokenizer does not say where it is.
        n_crossing += bool(characters & answers and characters - answers)
        assert is_own == bool(characters & answers), (text[start:end], start)
    assert any(is_answer)
    if kind == "bytes" and form == "lines" and turns is TURNS[1]:
        assert n_crossing


def test_spaces_that_offsets_leave_out_are_their_answers() -> None:
    talker = tokenizer("bytes, trimmed")
    talker.chat_template = template(*TEMPLATES["marks"])
    plain = tokenizer("bytes")
    plain.chat_template = talker.chat_template
    turns = messages([("user", "so  "), ("assistant", "   "), ("user", " "), ("assistant", " a")])
    assert tokenise_chat(talker, turns) == tokenise_chat(plain, turns)


@pytest.mark.parametrize("content", ["m.content | trim", "m.content.replace('a', 'b')"])
def test_what_a_template_changes_is_the_answer(content: str) -> None:
    talker = tokenizer("bytes")
    talker.chat_template = template("{role}\n", "{content}</s>", "assistant\n", content)
    turns = messages([("user", " so "), ("assistant", "\n a film \n")])
    chat = lay_out(talker, turns)
    wanted = " a film </s>".replace("a", "b") if "replace" in content else "a film</s>"
    assert [chat.text[a:b].lstrip("\n") for a, b in chat.answers] == [
        "\n b film \n</s>".lstrip("\n") if "replace" in content else wanted
    ]


RAISES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must\n alternate: ' + m.role) }}{% endif %}<|{{ m.role }}|>"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if loop.last else "
    "m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ONLY_USERS = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("chat_template", "turns", "reason"),
    [
        (RAISES, [("system", "x"), ("user", "so"), ("assistant", "no")], "Roles must alternate: s"),
        (RAISES, [("user", "so"), ("user", "so"), ("assistant", "no")], "Roles must alternate: u"),
        (RAISES, [("assistant", "so"), ("user", "no")], "Roles must alternate: assistant"),
        (
            "{{ messages[0].content }}",
            [("assistant", "no")],
            "it asks for no message of the assist",
        ),
        ("{{ messages[5].content }}", [("user", "a"), ("assistant", "no")], "has no element 5"),
        ("{{ messages[0].name + 'x' }}", [("user", "a"), ("assistant", "no")], "has no attribute"),
        ("{{ 1 + messages[0].role }}", [("user", "a"), ("assistant", "no")], "unsupported operand"),
        ("{% for", [("user", "a"), ("assistant", "no")], "xpected"),
        (THINKS, [("user", "a"), ("assistant", "x</think>y"), ("user", "b")], "in another way"),
        (ONLY_USERS, [("user", "a"), ("assistant", "no")], "it leaves nothing of the assistant"),
    ],
)
def test_what_a_template_refuses(
    chat_template: str, turns: list[tuple[str, str]], reason: str
) -> None:
    talker = tokenizer("bytes")
    talker.chat_template = chat_template
    with pytest.raises(RefusedRow, match="found chat template: .*, expected a conv") as refused:
        tokenise_chat(talker, messages(turns))
    assert refused.value.reason.startswith("chat template: ")
    assert reason in refused.value.reason
    assert "\n" not in refused.value.reason


CALLS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.tool_calls or '' }}{% endfor %}"


@pytest.mark.parametrize(
    "call", [{"function": {"name": "look"}}, {"name": "look", "arguments": "{}"}]
)
def test_calls_of_tools_are_answers_where_the_template_shows_them(call: dict[str, Any]) -> None:
    talker = tokenizer("bytes")
    turns = [
        *messages([("user", "so")]),
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    talker.chat_template = CALLS
    chat = lay_out(talker, turns)
    assert all("look" in chat.text[a:b] for a, b in chat.answers)
    talker.chat_template = template(*TEMPLATES["lines"])
    with pytest.raises(RefusedRow, match="leaves nothing of the assistant's messages"):
        lay_out(talker, turns)
    lay_out(talker, [*turns, *messages([("user", "so"), ("assistant", "no")])])


def test_tools_are_given_to_the_template() -> None:
    talker = tokenizer("bytes")
    talker.chat_template = "{{ tools | length if tools else 'none' }}:" + template(
        *TEMPLATES["lines"]
    )
    turns = messages([("user", "so"), ("assistant", "no")])
    assert lay_out(talker, turns).text.startswith("none:")
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert lay_out(talker, turns, tools).text.startswith("1:")


def test_a_tokenizer_needs_a_template_and_offsets() -> None:
    talker = tokenizer("bytes")
    talker.chat_template = None
    turns = messages([("user", "so"), ("assistant", "no")])
    with pytest.raises(ModelError, match="no chat template, expected one"):
        lay_out(talker, turns)

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="without character offsets .Slow., expected a fast one"):
        tokenise_chat(Slow(), turns)


@pytest.mark.parametrize("kind", sorted(TALKING))
def test_special_tokens_that_a_message_spells_out_are_text(kind: str) -> None:
    """Only those that the template writes are tokens, and the answers are where they are."""
    made = tokenizer(kind)
    opening, closing, asks = TEMPLATES["marks"]
    made.chat_template = template(opening, closing, asks)
    spelt = made.all_special_tokens[0]
    plain = [("user", "so good"), ("assistant", "no film")]
    by_user = [("user", f"so {spelt} good"), plain[1]]
    by_both = [by_user[0], ("assistant", f"no {spelt} film")]
    ids, answers = {}, {}
    for name, turns in (("plain", plain), ("user", by_user), ("both", by_both)):
        ids[name], is_answer = tokenise_chat(made, messages(turns))
        answers[name] = [i for i, said in zip(ids[name], is_answer, strict=True) if said]
        assert lay_out(made, messages(turns)).text == laid_out(TEMPLATES["marks"], turns)[0]
    special = set(made.all_special_ids) - {made.unk_token_id}
    written = {name: [i for i in row if i in special] for name, row in ids.items()}
    assert written["plain"] == written["user"] == written["both"]
    assert len(ids["plain"]) < len(ids["user"]) < len(ids["both"])
    assert answers["plain"] == answers["user"]
    if kind.startswith("bytes"):
        said = "".join(made.convert_ids_to_tokens(answers["both"])).replace("\u0120", " ")
        assert said == f"no {spelt} film</s>"
    assert len(answers["both"]) - len(answers["user"]) == len(ids["both"]) - len(ids["user"])
