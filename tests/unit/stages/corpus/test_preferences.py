"""Pairs as rows hold them: TRL's forms, implicit prompts, what is refused, reviewed pairs."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpus import ingest
from stages.corpus.preferences import SAME, Pair, read_pair, side_columns, sides, swapped
from stages.corpus.reasons import REASONS
from stages.corpus.review import correct, read_review
from stages.corpus.source import Source
from stages.model.answers import answer_of
from stages.model.templates import plain_texts
from stages.stage import ConfigError, DataError

ASK = {"role": "user", "content": "What colour?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}
TALKS = ([ASK, BLUE], [ASK, GREEN])


def read_cells(*cells: Any) -> Pair:
    """The pair of a row in a corpus of its own kind."""
    return read_pair("preference_messages" if isinstance(cells[0], list) else "preference", *cells)


def answers(text_b: str | None) -> tuple[Any, Any]:
    pair = json.loads(text_b or "")
    return pair["chosen"], pair["rejected"]


@pytest.mark.parametrize(
    ("cells", "prompt", "pair"),
    [
        ((" blue.", " green.", "The sky is"), "The sky is", (" blue.", " green.")),
        # The prompt is what both begin with; the space before the answers is theirs.
        (("The sky is blue.", "The sky is green."), "The sky is", (" blue.", " green.")),
        (("blue.", "green."), "", ("blue.", "green.")),
        # A prompt of another kind than the answers is not read, as in TRL.
        (("The sky is blue.", "The sky is green.", [ASK]), "The sky is", (" blue.", " green.")),
    ],
)
def test_pairs_of_texts(cells: tuple[Any, ...], prompt: str, pair: tuple[str, str]) -> None:
    read = read_cells(*cells)
    assert (read.text, answers(read.text_b), read.reason) == (prompt, pair, "")
    first, second = sides(str(read.text), read.text_b, "preference")
    assert (first, second) == ((prompt, pair[0]), (prompt, pair[1]))
    assert swapped(swapped(str(read.text_b))) == read.text_b
    assert answers(swapped(str(read.text_b))) == pair[::-1]


@pytest.mark.parametrize("prompt", [[ASK], None, "What colour?"])
def test_pairs_of_messages(prompt: Any) -> None:
    before = [] if isinstance(prompt, list) else [ASK]
    read = read_cells([*before, BLUE], [*before, GREEN], prompt)
    assert read.reason == ""
    assert json.loads(str(read.text)) == [ASK]
    assert answers(read.text_b) == ([BLUE], [GREEN])
    chosen, rejected = sides(str(read.text), read.text_b, "preference_messages")
    assert json.loads(chosen.text) == [ASK, BLUE]
    assert json.loads(rejected.text) == [ASK, GREEN]
    assert chosen.pair is None


def test_messages_of_a_prompt_are_not_learned_and_tools_go_with_both() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    talk = [ASK, BLUE, {"role": "user", "content": "And grass?"}]
    read = read_cells([*talk, GREEN], [*talk, BLUE], None, tools)
    chosen, rejected = sides(str(read.text), read.text_b, "preference_messages")
    assert json.loads(chosen.text)[1] == {**BLUE, "train": False}
    assert json.loads(chosen.text)[3] == GREEN
    assert json.loads(chosen.pair or "") == json.loads(rejected.pair or "") == tools


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ((None, "a"), "null chosen"),
        (("a", None), "null rejected"),
        (("a", "a", "b"), SAME),
        (([ASK, BLUE], [ASK, BLUE]), SAME),
        (("  ", "b", "a"), "empty chosen"),
        (("b", "", "a"), "empty rejected"),
        # One is what the other begins with: nothing is left of it.
        (("ab", "abc"), "empty chosen"),
        (([ASK, BLUE], [ASK]), "empty rejected"),
        (("a", [ASK, BLUE]), "chosen and rejected are not of one kind"),
        ((3, 4), "chosen and rejected are not of one kind"),
        (([BLUE], [ASK], [ASK]), "messages without an assistant's"),
        (([BLUE], [{**BLUE, "content": " "}], [ASK]), "messages of the assistant are empty"),
        (([BLUE], [{"role": "assistant"}], [ASK]), "messages are not a list of {role, content}"),
        (("\ud800", "b", "a"), "not UTF-8"),
    ],
)
def test_what_is_no_pair_is_refused(cells: tuple[Any, ...], reason: str) -> None:
    assert read_cells(*cells).reason == reason
    assert reason in REASONS


def test_messages_may_be_json_and_rows_of_another_kind_are_refused() -> None:
    other = "chosen and rejected are of another kind than in the first row"
    lists: tuple[Any, ...] = ([BLUE], [GREEN], [ASK], [{"type": "function"}])
    written = tuple(map(json.dumps, lists))
    assert read_pair("preference_messages", *written) == read_cells(*lists)
    assert read_pair("preference_messages", "blue", "green").reason == other
    assert read_pair("preference", *lists).reason == other
    assert other in REASONS


def survey(path: Path, rows: list[dict[str, Any]], **fields: Any) -> Any:
    file = path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return ingest.survey(Source(str(file), task="preference", **fields), "example")


def test_columns_are_taken_by_name_and_carried_along(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "prompt": "p", "chosen": "a", "rejected": "b"},
        {"question": "q", "prompt": "p", "chosen": "a", "rejected": "a"},
        {"question": "q", "prompt": None, "chosen": "a", "rejected": "b"},
    ]
    found = survey(tmp_path, rows)
    assert [REASONS[at] for at in found.reasons] == ["", SAME, "null prompt"]
    assert found.format == "preference"
    assert [column["stored"] for column in found.stored] == [*rows[0]]
    talks = [{"prompt": prompt, "chosen": [ASK, BLUE], "rejected": [ASK, GREEN]} for prompt in "a "]
    found = survey(tmp_path, [*talks, {**talks[0], "prompt": None}])
    assert [REASONS[at] for at in found.reasons] == ["", "", ""]
    named = [{"q": "p", "good": [BLUE], "bad": [GREEN]}]
    with pytest.raises(DataError, match="found no column 'chosen' for chosen"):
        survey(tmp_path, named)
    with pytest.raises(DataError, match="found lists in good, lists in bad, texts in q"):
        survey(tmp_path, named, prompt="q", chosen="good", rejected="bad")
    mixed = [{"chosen": [ASK, BLUE], "rejected": "b"}]
    with pytest.raises(DataError, match="found lists in chosen, texts in rejected"):
        survey(tmp_path, mixed)
    asked = [{"prompt": [ASK], "chosen": "b", "rejected": "c"}]
    with pytest.raises(DataError, match="texts in chosen, texts in rejected, lists in prompt"):
        survey(tmp_path, asked)
    talk = survey(tmp_path, [{"chosen": [ASK, BLUE], "rejected": [ASK, GREEN], "prompt": "p"}])
    assert talk.format == "preference_messages"
    row = {name: json.dumps(cell) for name, cell in zip(("chosen", "rejected"), TALKS, strict=True)}
    assert survey(tmp_path, [row | {"prompt": "p"}]).format == "preference_messages"
    assert survey(tmp_path, [row | {"rejected": "b"}]).format == "preference"
    assert survey(tmp_path, [{"chosen": "[1]", "rejected": "[2]"}]).format == "preference"


def test_fields_of_other_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="chosen: found it with task: completion"):
        Source("a.jsonl", task="completion", chosen="chosen")
    with pytest.raises(ConfigError, match="text: found body with task: preference"):
        Source("a.jsonl", task="preference", text="body")
    with pytest.raises(ConfigError, match="turns: found last with task: preference"):
        Source("a.jsonl", task="preference", turns="last")
    with pytest.raises(ConfigError, match="prompt: found it with task: regression"):
        Source("a.jsonl", task="regression", prompt="p")


def test_a_reviewed_pair_is_turned_around(tmp_path: Path) -> None:
    lines = ["source_id,decision", "a,fix", "b,drop", "c,accept"]
    review = tmp_path / "review.csv"
    review.write_text("\n".join(lines) + "\n")
    read = read_review(str(review), "preference", ())
    pairs = [json.dumps({"chosen": f"+{name}", "rejected": f"-{name}"}) for name in "abc"]
    talks = [[{**BLUE, "content": f"{sign}{name}"}] for sign in "+-" for name in "abc"]
    rows = pa.table(
        {
            "id": [0, 1, 2],
            "source_id": ["a", "b", "c"],
            "text_b": pairs,
            "is_dropped": [False] * 3,
            "good": talks[:3],
            "bad": talks[3:],
        }
    )
    found, decided = correct(rows, read, "preference", ("good", "bad"))
    assert decided.tolist() == [0, 1, 2]
    assert [answers(pair)[0] for pair in found["text_b"].to_pylist()] == ["-a", "+b", "+c"]
    assert found["good"].to_pylist() == [talks[3], talks[1], talks[2]]
    assert found["bad"].to_pylist() == [talks[0], talks[4], talks[5]]
    assert found["is_dropped"].to_pylist() == [False, True, False]
    other = rows.set_column(5, "bad", pa.array(["x", "y", "z"]))
    with pytest.raises(DataError, match="expected one type in both, as the answers of a pair"):
        correct(other, read, "preference", ("good", "bad"))


def test_as_plain_text_a_pair_is_its_chosen_side() -> None:
    read = read_cells([ASK, BLUE], [ASK, GREEN])
    texts = plain_texts([str(read.text)], [read.text_b], "preference_messages")
    assert texts == (["What colour?\nBlue."], [None])
    pair = json.dumps({"chosen": " blue.", "rejected": " green."})
    assert plain_texts(["The sky is"], [pair], "preference") == (["The sky is blue."], [None])
    assert answer_of("The sky is", pair, "preference") == " blue.\n green."
    assert answer_of(str(read.text), read.text_b, "preference_messages") == "Blue.\nGreen."
    both = side_columns(["The sky is"], [pair], "preference")
    assert both == (["The sky is"] * 2, [" blue.", " green."])
