"""Which answers of a conversation are learned, by marks of messages and by marks of a template."""

import functools
from typing import Any

import pytest
from tiny_models import TALKING

from stages.corpus.conversations import read_conversation
from stages.model.chats import REASONING, Messages, chat_pieces, lay_out, left_out_of, parsed
from stages.stage import RefusedRow

MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}\n{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
FORGETS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if loop.last else "
    "m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenise_chat(*given: Any) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and whether each is a token of an answer."""
    found = list(chat_pieces(*given))
    return [i for ids, _ in found for i in ids], [is_one for _, own in found for is_one in own]


@functools.cache
def tokenizer(kind: str, template: str) -> Any:
    made = TALKING[kind]()
    made.chat_template = template
    return made


def said(*contents: str, **last: Any) -> Messages:
    """A conversation of a user and the assistant in turn; `last` are keys of its last message."""
    roles = ("user", "assistant")
    talk: Messages = [{"role": roles[at % 2], "content": c} for at, c in enumerate(contents)]
    return [*talk[:-1], {**talk[-1], **last}]


def answers(template: str, talk: Messages) -> list[str]:
    chat = lay_out(tokenizer("bytes", template), talk)
    return [chat.text[start:stop] for start, stop in chat.answers]


TALKS = [
    said("so good", "no film"),
    said("so bad", "\nno film\n", "\nit was", " bad"),
    said("a ", "\n\nfilm 😀 é ", " not", "so  "),
]


@pytest.mark.parametrize("opening", ["{{ m.role }}\n", "{{ m.role }} ", "{{ m.role }}:"])
@pytest.mark.parametrize("talk", TALKS)
def test_marked_answers_are_those_of_transformers(opening: str, talk: Messages) -> None:
    """The masks of `apply_chat_template` are the definition, also of tokens that cross a border.

    Openings are words: a token of the vocabulary that swallows what follows counts where it begins.
    """
    made = tokenizer("bytes", MARKED.replace("<|{{ m.role }}|>", opening))
    ids, is_answer = tokenise_chat(made, talk)
    wanted = made.apply_chat_template(
        talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == wanted["input_ids"]
    assert is_answer == list(map(bool, wanted["assistant_masks"]))
    assert 0 < sum(is_answer) < len(ids)


def test_marks_of_a_template_are_narrower_than_its_openings() -> None:
    assert answers(MARKED, TALKS[1]) == ["\nno film\n</s>", " bad</s>"]
    assert answers(PLAIN, TALKS[1]) == ["\nno film\n</s>\n", " bad</s>\n"]


@pytest.mark.parametrize("template", [MARKED, PLAIN])
@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_a_marked_message_is_no_answer_and_reads_the_same(template: str, mark: Any) -> None:
    plain, both = said("so", "one", "and", "two"), said("so", "one", "and", "two")
    both[1] |= mark
    made = tokenizer("bytes", template)
    assert lay_out(made, both).text == lay_out(made, plain).text
    assert answers(template, both) == answers(template, plain)[1:]


def test_a_template_does_not_see_marks() -> None:
    talk = said("so", "one", weight=1, train=True)
    shows = "{% for m in messages %}{{ m | list }}{% endfor %}"
    made = tokenizer("bytes", shows + "{% if add_generation_prompt %}:{% endif %}")
    with pytest.raises(RefusedRow, match="in another way"):
        lay_out(made, talk)
    made.chat_template = "{% for m in messages %}{{ m | list }}{% endfor %}"
    assert "weight" not in lay_out(made, talk).text


def test_a_template_that_forgets_works_where_the_last_turn_alone_is_learned() -> None:
    talk = said("a", "x</think>y", "b", "z</think>w")
    with pytest.raises(RefusedRow, match="in another way when later ones follow"):
        answers(FORGETS, talk)
    talk[1]["train"] = False
    assert answers(FORGETS, talk) == ["z</think>w"]


def test_marks_that_are_not_one_for_each_message() -> None:
    once = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' and loop.last %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    talk = said("a", "one", "b", "two")
    assert answers(once, talk) == ["two"]
    talk[1]["weight"] = 0
    with pytest.raises(RefusedRow, match="it marks 1 answers of 2 messages of the assistant"):
        answers(once, talk)
    with pytest.raises(RefusedRow, match="it leaves nothing of the assistant's messages"):
        answers(once, [*said("a", "one"), {"role": "user", "content": "b"}])


def test_marks_tell_the_answers_of_a_template_that_forgets() -> None:
    """Without marks it is refused: nothing tells where earlier answers are."""
    forgets = MARKED.replace("{{ m.content }}</s>", "{{ m.content.split('</think>')[-1] }}</s>")
    assert answers(forgets, said("a", "x</think>y", "b", "z")) == ["y</s>", "z</s>"]


THINKS = said("so", "<think>\nwell\n</think>no film")
KEYED = said("so", "no film", reasoning_content=" well ")
SHOWS = PLAIN.replace(
    "{% if m.role == 'assistant' %}",
    "{% if m.role == 'assistant' %}{{ m.reasoning_content }}",
)
DROPS = PLAIN.replace(
    "{% if m.role == 'assistant' %}{{ m.content }}",
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}",
)


@pytest.mark.parametrize(
    ("template", "talk", "wanted"),
    [
        (PLAIN, said("so", "no film"), False),
        (PLAIN, THINKS, False),
        (DROPS, THINKS, True),
        (DROPS, said("so", "<think>\n\n</think>no film"), False),
        (PLAIN, KEYED, True),
        (PLAIN, said("so", "no film", thinking="well"), True),
        (SHOWS, KEYED, False),
        (MARKED, KEYED, True),
        # What is not learned may lack what it likes.
        (PLAIN, [KEYED[0], {**KEYED[1], "weight": 0}, *said("so", "one")], False),
    ],
)
def test_reasoning_that_a_template_leaves_out(template: str, talk: Any, wanted: bool) -> None:
    assert left_out_of(tokenizer("bytes", template), talk) == REASONING * wanted
    assert ("well" in "".join(answers(template, talk))) == (talk in (THINKS, KEYED) and not wanted)


@pytest.mark.parametrize("before", [1, 3])
def test_a_completion_of_messages_is_learned_as_in_trl(before: int) -> None:
    """There the prompt's tokens, with the opening of an answer, are masked, and no others."""
    made = tokenizer("bytes", PLAIN)
    talk = said("so good", "no film", "it was", "not bad")[: before + 1]
    row = read_conversation(talk[before:], prompt=talk[:before])
    ids, is_answer = tokenise_chat(made, *parsed(str(row.text), row.tools))
    opening = made.apply_chat_template(talk[:before], add_generation_prompt=True)["input_ids"]
    assert ids == made.apply_chat_template(talk)["input_ids"]
    assert ids[: len(opening)] == opening
    assert is_answer == [at >= len(opening) for at in range(len(ids))]
