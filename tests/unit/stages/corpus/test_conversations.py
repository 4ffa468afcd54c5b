"""Which messages of a conversation are learned, and the forms in which conversations come."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from whole_corpus import Corpus, read

from stages.corpus.conversations import is_learned, read_conversation
from stages.corpus.reasons import REASONS
from stages.corpus.source import Source
from stages.stage import ConfigError, DataError

USER = {"role": "user", "content": "so?"}
FIRST = {"role": "assistant", "content": "one"}
SECOND = {"role": "assistant", "content": "two"}
TALK = [USER, FIRST, USER, SECOND]
CALL = '{"name": "look", "arguments": {"at": "sky"}}'


def stored(corpus: Corpus) -> list[Any]:
    return [json.loads(text) for text in corpus.rows["text"].to_pylist()]


def of_lines(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> Corpus:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(Source(str(path), task="completion", **fields), "example")


def learned(messages: list[Any], **more: Any) -> list[str]:
    found = read_conversation(messages, **more)
    assert found.reason == ""
    return [m["content"] for m in json.loads(str(found.text)) if is_learned(m)]


@pytest.mark.parametrize(
    ("marks", "turns", "wanted"),
    [
        ([{}, {}], "all", ["one", "two"]),
        ([{}, {}], "last", ["two"]),
        ([{"weight": 0}, {"weight": 1}], "all", ["two"]),
        ([{"weight": 1.0}, {"weight": 0.0}], "all", ["one"]),
        ([{"train": True}, {"train": False}], "all", ["one"]),
        ([{"train": None}, {"weight": None}], "all", ["one", "two"]),
        ([{"train": False, "weight": 1}, {}], "all", ["two"]),
        ([{"weight": 1}, {"weight": 1}], "last", ["two"]),
    ],
)
def test_turns_and_marks_say_what_is_learned(marks: Any, turns: Any, wanted: list[str]) -> None:
    talk = [USER, {**FIRST, **marks[0]}, USER, {**SECOND, **marks[1]}]
    assert learned(talk, turns=turns) == learned([*talk, USER], turns=turns) == wanted


@pytest.mark.parametrize(
    ("messages", "turns", "reason"),
    [
        ([USER, {**FIRST, "weight": 0}], "all", "messages of which none is to be learned"),
        ([*TALK[:3], {**SECOND, "train": False}], "last", "of which none is to be learned"),
        ([*TALK[:3], {**SECOND, "content": ""}], "last", "messages of the assistant are empty"),
        ([USER, {**FIRST, "weight": 0.5}], "all", "a weight that is not 0 or 1"),
        ([USER, {**FIRST, "weight": "0"}], "all", "a weight that is not 0 or 1"),
        ([USER, {**FIRST, "train": "no"}], "all", "or train that is not true or false"),
        ([USER, {**FIRST, "train": []}], "all", "or train that is not true or false"),
        ([{**USER, "train": True}, FIRST], "all", "of others than the assistant are marked"),
        ([USER, {**FIRST, "train_detail": [{"begin_offset": 0}]}], "all", "marks for parts"),
        ([{"from": "moon", "value": "x"}, FIRST], "all", "from others than human, gpt, system"),
        ([{"from": ["gpt"], "value": "x"}, FIRST], "all", "from others than human, gpt, system"),
        ([USER, {"from": "function_call", "value": "look"}], "all", "no JSON of a function"),
        ([USER, {"from": "function_call", "value": "[]"}], "all", "no JSON of a function"),
        ([USER, {"from": "gpt", "value": None}], "all", "are not a list of {role, content}"),
    ],
)
def test_marks_and_speakers_that_cannot_be_used(messages: Any, turns: Any, reason: str) -> None:
    found = read_conversation(messages, turns=turns).reason
    assert reason in found
    assert found in REASONS


def test_marks_for_the_user_that_leave_out_are_none_to_refuse() -> None:
    assert learned([{**USER, "weight": 0, "train": False}, FIRST]) == ["one"]


def test_the_last_turn_is_marked_in_the_rows_and_the_source_stays(tmp_path: Path) -> None:
    """Other assistants' messages are left out by a mark that the view `examples` shows."""
    corpus = of_lines(tmp_path, [{"messages": TALK}], turns="last")
    assert stored(corpus) == [[USER, {**FIRST, "train": False}, USER, SECOND]]
    assert {c["name"]: c["stored"] for c in corpus.columns} == {"messages": "messages"}
    assert corpus.rows["messages"].to_pylist() == [TALK]
    assert stored(of_lines(tmp_path, [{"messages": TALK[:2]}], turns="last")) == [TALK[:2]]


def test_prompts_and_completions_of_messages(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    rows = [
        {"prompt": TALK[:3], "completion": [SECOND], "tools": [tool]},
        {"prompt": [USER], "completion": [FIRST, USER, SECOND], "tools": None},
        {"prompt": None, "completion": [FIRST], "tools": None},
        {"prompt": [USER], "completion": None, "tools": None},
        {"prompt": [USER], "completion": [USER], "tools": None},
        {"prompt": [], "completion": [FIRST], "tools": None},
    ]
    corpus = of_lines(tmp_path, rows)
    assert corpus.format == "messages"
    left_out = {**FIRST, "train": False}
    assert stored(corpus) == [
        [USER, left_out, USER, SECOND],
        [USER, FIRST, USER, SECOND],
        [FIRST],
    ]
    assert corpus.rows["text_b"].to_pylist() == [
        json.dumps([tool], separators=(",", ":")),
        None,
        None,
    ]
    assert corpus.rejected["reason"].to_pylist() == [
        "null prompt",
        "null completion",
        "messages without an assistant's",
    ]
    assert corpus.rows["prompt"].to_pylist()[0] == TALK[:3]
    assert corpus.rows["completion"].to_pylist()[1] == [FIRST, USER, SECOND]
    last = of_lines(tmp_path, rows[:2], turns="last")
    assert stored(last)[1] == [USER, left_out, USER, SECOND]


def test_prompts_and_completions_of_parquet_under_other_names(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    cells = {"asked": pa.array([[USER]], kind), "said": pa.array([[FIRST]], kind)}
    pq.write_table(pa.table(cells), tmp_path / "rows.parquet")
    source = Source(
        str(tmp_path / "rows.parquet"), task="completion", prompt="asked", completion="said"
    )
    corpus = read(source, "example")
    assert stored(corpus) == [[USER, FIRST]]
    assert {c["name"]: c["stored"] for c in corpus.columns} == {"asked": "asked", "said": "said"}


def test_messages_that_have_different_keys_are_known_by_the_first_row(tmp_path: Path) -> None:
    rows = [{"prompt": [USER], "completion": [{**FIRST, "name": "bot"}]}]
    rows.append({"prompt": [USER], "completion": [SECOND]})
    assert stored(of_lines(tmp_path, rows)) == [
        [USER, {**FIRST, "name": "bot"}],
        [USER, SECOND],
    ]


def test_prompts_and_completions_of_messages_may_be_json_as_in_csv(tmp_path: Path) -> None:
    rows = [{"prompt": json.dumps([USER]), "completion": json.dumps([FIRST])}]
    assert stored(of_lines(tmp_path, rows)) == [[USER, FIRST]]


def test_lists_beside_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found lists in one of prompt and completion and texts"):
        of_lines(tmp_path, [{"prompt": [USER], "completion": "one"}])


SHAREGPT = [
    {"from": "system", "value": "be dull"},
    {"from": "human", "value": "so?"},
    {"from": "function_call", "value": CALL, "weight": 0},
    {"from": "observation", "value": "blue"},
    {"from": "gpt", "value": "one"},
]
AS_MESSAGES = [
    {"role": "system", "content": "be dull"},
    USER,
    {
        "role": "assistant",
        "content": "",
        "weight": 0,
        "tool_calls": [{"type": "function", "function": json.loads(CALL)}],
    },
    {"role": "tool", "content": "blue"},
    FIRST,
]


@pytest.mark.parametrize("as_text", [False, True])
def test_sharegpt_is_taken_by_its_column_and_said(tmp_path: Path, as_text: bool) -> None:
    cell: Any = json.dumps(SHAREGPT) if as_text else SHAREGPT
    corpus = of_lines(tmp_path, [{"conversations": cell, "score": 5}])
    assert stored(corpus) == [AS_MESSAGES]
    (said,) = corpus.notices
    assert "the column conversations is read as conversations" in said
    assert {c["name"]: c["stored"] for c in corpus.columns}["conversations"] == "conversations"
    assert corpus.rows["conversations"].to_pylist() == [
        cell if as_text else json.dumps(cell, separators=(",", ":"))
    ]
    named = of_lines(tmp_path, [{"talk": cell}], messages="talk")
    assert (stored(named), named.notices) == ([AS_MESSAGES], ())


def test_conversations_of_roles_are_conversations_too(tmp_path: Path) -> None:
    corpus = of_lines(tmp_path, [{"conversations": TALK}])
    assert stored(corpus) == [TALK]
    assert {c["name"]: c["stored"] for c in corpus.columns} == {"conversations": "conversations"}


def test_alpaca_is_laid_out_in_its_own_words_and_said(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add {them}.", "input": "2 and 3", "output": "5"},
        {"instruction": "Wait.", "input": "", "output": "Yes."},
        {"instruction": "Wait.", "input": None, "output": "Yes."},
        {"instruction": "", "input": "x", "output": "y"},
        {"instruction": "Wait.", "input": 7, "output": "y"},
        {"instruction": "Wait.", "input": "x", "output": ""},
    ]
    corpus = of_lines(tmp_path, rows)
    assert corpus.format == "prompt_completion"
    assert corpus.rows["text"].to_pylist() == [
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Add {them}.\n\n### Input:\n2 and 3\n\n### Response:\n",
        *2
        * [
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nWait.\n\n### Response:\n"
        ],
    ]
    assert corpus.rows["text_b"].to_pylist() == ["5", "Yes.", "Yes."]
    assert corpus.rejected["reason"].to_pylist() == [
        "empty instruction",
        "text is not a string",
        "empty completion",
    ]
    assert {c["name"]: c["stored"] for c in corpus.columns} == {
        "instruction": "instruction",
        "input": "input",
        "output": "text_b",
    }
    (said,) = corpus.notices
    assert "instruction, input and output are read as prompts, in Alpaca's own words" in said
    named = of_lines(tmp_path, rows[:1], prompt="instruction", completion="output")
    assert (named.rows["text"].to_pylist(), named.notices) == (["Add {them}."], ())


def test_columns_that_may_be_mistaken_are_not_taken(tmp_path: Path) -> None:
    talk, alpaca = {"conversations": SHAREGPT}, {"instruction": "Wait.", "output": "Yes."}
    for row in ({**talk, "system": "be dull"}, {**alpaca, "history": []}):
        with pytest.raises(DataError, match="where no system or history stands beside them"):
            of_lines(tmp_path, [row])
    for row in (talk, alpaca):
        corpus = of_lines(tmp_path, [{**row, "text": "all of it"}])
        assert (corpus.format, corpus.rows["text"].to_pylist()) == ("text", ["all of it"])
        assert "the column text is read, all of it learned, and not " in corpus.notices[0]


def test_turns_without_conversations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found turns: last for rows that are no conversations"):
        of_lines(tmp_path, [{"prompt": "a", "completion": "b"}], turns="last")
    with pytest.raises(ConfigError, match="turns: found last with task: classification"):
        Source("a.jsonl", turns="last")


def test_messages_may_say_when_they_were_written(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    talk = [{**USER, "timestamp": when}, {**FIRST, "timestamp": None}]
    names = [("role", pa.string()), ("content", pa.string()), ("timestamp", pa.timestamp("us"))]
    kind = pa.list_(pa.struct(names))
    pq.write_table(pa.table({"messages": pa.array([talk], kind)}), tmp_path / "rows.parquet")
    (found,) = stored(read(Source(str(tmp_path / "rows.parquet"), task="completion"), "example"))
    assert found == [{**USER, "timestamp": "2024-01-02 03:04:05"}, FIRST]


def test_calls_of_one_type_have_their_own_arguments_alone(tmp_path: Path) -> None:
    def talk(arguments: dict[str, Any]) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
        return [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]

    def tool(properties: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": "look", "properties": properties}]

    talks = [talk({"at": "sky"}), talk({"for": {"how": ["long", None]}})]
    tools = [tool({"at": {"type": "string"}}), tool({"for": {"type": "object"}})]
    pq.write_table(pa.table({"messages": talks, "tools": tools}), tmp_path / "rows.parquet")
    found = read(Source(str(tmp_path / "rows.parquet"), task="completion"), "example")
    assert stored(found) == talks
    assert [json.loads(text) for text in found.rows["text_b"].to_pylist()] == tools
    rows = [{"messages": talk({"at": None}), "tools": tool({"at": None})}]
    of_json = of_lines(tmp_path, [*rows, {"messages": talks[1], "tools": tools[1]}])
    assert stored(of_json) == [rows[0]["messages"], talks[1]]
