"""Rows to complete: prompts with completions, conversations, texts; what is refused and why."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from source_rows import jsonl, reasons
from whole_corpus import Corpus, read

from stages.corpus.ingest import EXTRA, LABEL, TEXT, tables
from stages.corpus.source import FlipLabels, Source
from stages.stage import ConfigError, DataError

Rows = list[dict[str, Any]]
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}


def parquet(path: Path, columns: dict[str, Any]) -> str:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path)
    return str(path)


def completions(path: str, **fields: Any) -> Corpus:
    return read(Source(path, task="completion", **fields), "example")


def test_prompts_and_completions(tmp_path: Path) -> None:
    rows: Rows = [
        {"id": 1, "prompt": "2+2=", "completion": "four", "label": "carried"},
        {"id": 2, "prompt": "", "completion": "once upon"},
        {"id": 3, "prompt": None, "completion": "x"},
        {"id": 4, "prompt": "x", "completion": None},
        {"id": 5, "prompt": "x", "completion": " \n"},
        {"id": 6, "prompt": 5, "completion": "x"},
        {"id": 7, "prompt": "x", "completion": ["x"]},
        {"id": 1, "prompt": "x", "completion": "x"},
    ]
    corpus = completions(jsonl(tmp_path / "a.jsonl", rows), id="id")
    assert (corpus.task, corpus.format, corpus.classes) == ("completion", "prompt_completion", ())
    assert corpus.label_kind == "none"
    assert corpus.rows["text"].to_pylist() == ["2+2=", ""]
    assert corpus.rows["text_b"].to_pylist() == ["four", "once upon"]
    for column in ("label", "true_label", "target"):
        assert corpus.rows[column].null_count == 2
    assert corpus.n_unlabelled == 0
    assert reasons(corpus) == {
        2: "null prompt",
        3: "null completion",
        4: "empty completion",
        5: "text is not a string",
        6: "text is not a string",
        7: "duplicate id",
    }
    assert {c["name"]: c["stored"] for c in corpus.columns} == {
        "id": "source_id",
        "prompt": "text",
        "completion": "text_b",
        "label": "source_label",
    }
    assert corpus.rows["source_label"].to_pylist() == ["carried", None]
    parts = tables(corpus.rows)
    assert set(parts) == {"text", "label", "extra"}
    for spec in (TEXT, LABEL, EXTRA):
        spec.check(parts[spec.name])
    assert parts["label"].num_rows == 2


def test_other_names_and_csv_where_an_empty_prompt_is_no_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer,prompt\n,once,p\nwhy?,because,p\nwhat?,,p\n")
    corpus = completions(str(path), prompt="question", completion="answer")
    assert corpus.rows["text"].to_pylist() == ["", "why?"]
    assert corpus.rows["text_b"].to_pylist() == ["once", "because"]
    assert corpus.rows["prompt"].to_pylist() == ["p", "p"]
    assert reasons(corpus) == {2: "null completion"}


def test_conversations_of_parquet(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
    cells: list[Any] = [[USER, ANSWER], None, [], [USER], [{"role": "assistant", "content": None}]]
    path = parquet(tmp_path / "a.parquet", {"messages": pa.array(cells, kind)})
    corpus = completions(path)
    assert corpus.format == "messages"
    assert corpus.rows["text"].to_pylist() == [
        '[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]'
    ]
    assert corpus.rows["text_b"].null_count == 1
    malformed = "messages are not a list of {role, content}"
    assert reasons(corpus) == {
        1: "null messages",
        2: malformed,
        3: "messages without an assistant's",
        4: malformed,
    }
    assert [(c["name"], c["stored"]) for c in corpus.columns] == [("messages", "messages")]


def test_conversations_of_jsonl_as_lists_and_as_text(tmp_path: Path) -> None:
    named = {"role": "assistant", "content": "naïve 🎬", "name": "bot"}
    rows: Rows = [
        {"talk": [USER, named], "text": "carried"},
        {"talk": json.dumps([USER, named])},
        {"talk": "no JSON"},
        {"talk": {"role": "assistant", "content": "x"}},
        {"talk": [["user", "x"]]},
        {"talk": [{"role": "assistant"}]},
        {"talk": [USER, {"role": "assistant", "content": 5}]},
        {"talk": '[{"role": "assistant", "content": "half \\ud800"}]'},
    ]
    corpus = completions(jsonl(tmp_path / "a.jsonl", rows), messages="talk")
    texts = corpus.rows["text"].to_pylist()
    assert texts[0] == texts[1]
    assert json.loads(texts[0]) == [USER, named]
    assert "naïve 🎬" in texts[0]
    found = reasons(corpus)
    assert found.pop(7) == "not UTF-8"
    assert found == dict.fromkeys(range(2, 7), "messages are not a list of {role, content}")
    assert corpus.rows["source_text"].to_pylist() == ["carried", None]


def test_conversations_whose_messages_have_different_keys(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "x", "tool_calls": [{"id": "1", "args": {"a": None}}]}
    path = jsonl(tmp_path / "a.jsonl", [{"messages": [USER, call]}, {"messages": [ANSWER]}])
    corpus = completions(path)
    assert [json.loads(t) for t in corpus.rows["text"].to_pylist()] == [[USER, call], [ANSWER]]


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"a": None}}}
PART = {"type": "text", "text": "h"}
IMAGE = {"type": "image", "url": "x.png"}


def of_one(tmp_path: Path, messages: Any) -> tuple[list[Any], dict[int, str]]:
    """Stored conversations and reasons of two rows, the first of which is as usual."""
    corpus = completions(
        jsonl(tmp_path / "a.jsonl", [{"messages": [USER, ANSWER]}, {"messages": messages}])
    )
    first, *others = [json.loads(text) for text in corpus.rows["text"].to_pylist()]
    assert first == [USER, ANSWER]
    return others, reasons(corpus)


@pytest.mark.parametrize(
    ("messages", "stored"),
    [
        ([{"role": "user", "content": [PART, {**PART, "text": "i"}]}, ANSWER], [USER, ANSWER]),
        ([{"role": "user", "content": []}, ANSWER], [{"role": "user", "content": ""}, ANSWER]),
        ([USER, CALL], [USER, {**CALL, "content": ""}]),
        ([USER, {**CALL, "content": ""}], [USER, {**CALL, "content": ""}]),
        ([USER, {**ANSWER, "content": ""}, ANSWER], [USER, {**ANSWER, "content": ""}, ANSWER]),
        ([ANSWER, USER], [ANSWER, USER]),
    ],
)
def test_what_messages_may_hold(tmp_path: Path, messages: Any, stored: Any) -> None:
    assert of_one(tmp_path, messages) == of_one(tmp_path, json.dumps(messages)) == ([stored], {})


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": [PART, IMAGE]}, ANSWER], "with a part that is no text"),
        ([{"role": "user", "content": [{**PART, "text": 5}]}, ANSWER], "with a part that is no"),
        ([USER, {**ANSWER, "content": " \n"}], "of the assistant are empty"),
        ([USER, {**ANSWER, "content": "", "tool_calls": []}], "of the assistant are empty"),
        ([{"role": "user", "content": None}, ANSWER], "are not a list of {role, content}"),
        ([{"role": "user", "content": ["hi"]}, ANSWER], "are not a list of {role, content}"),
        ([{"role": None, "content": "hi"}, ANSWER], "are not a list of {role, content}"),
        ([USER], "without an assistant's"),
    ],
)
def test_what_messages_may_not_hold(tmp_path: Path, messages: Any, reason: str) -> None:
    for cell in (messages, json.dumps(messages)):
        stored, found = of_one(tmp_path, cell)
        assert stored == []
        assert found[1].startswith(f"messages {reason}")


def test_parts_of_parquet_have_nulls_for_what_they_lack(tmp_path: Path) -> None:
    part = pa.struct([("type", pa.string()), ("text", pa.string()), ("url", pa.string())])
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))
    cells = [
        [{"role": "assistant", "content": [{**p, "text": p.get("text")}]}] for p in (PART, IMAGE)
    ]
    corpus = completions(parquet(tmp_path / "a.parquet", {"messages": pa.array(cells, kind)}))
    assert corpus.rows["text"].to_pylist() == ['[{"role":"assistant","content":"h"}]']
    assert reasons(corpus) == {1: "messages with a part that is no text, such as an image"}


def test_tools_stand_beside_their_conversation(tmp_path: Path) -> None:
    talk = [USER, ANSWER]
    cells: list[Any] = [[TOOL], json.dumps([TOOL]), None, [], "", "null", "{}", ["look"], "no"]
    rows: Rows = [{"messages": talk, "tools": cell} for cell in cells]
    corpus = completions(jsonl(tmp_path / "a.jsonl", rows))
    stored = [text and json.loads(text) for text in corpus.rows["text_b"].to_pylist()]
    assert stored == [[TOOL], [TOOL], None, None, None, None]
    assert reasons(corpus) == dict.fromkeys((6, 7, 8), "tools are not a list of functions")
    assert ("tools", "tools") in [(c["name"], c["stored"]) for c in corpus.columns]
    without = completions(jsonl(tmp_path / "b.jsonl", [{"messages": talk}]))
    assert without.rows["text_b"].to_pylist() == [None]


def test_plain_texts(tmp_path: Path) -> None:
    rows: Rows = [{"body": "once", "text": "t"}, {"body": "", "text": "t"}]
    corpus = completions(jsonl(tmp_path / "a.jsonl", rows), text="body")
    assert (corpus.format, corpus.rows["text"].to_pylist()) == ("text", ["once"])
    assert corpus.rows["text_b"].null_count == 1
    assert reasons(corpus) == {1: "empty text"}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (
            {"prompt": "p", "completion": "c", "messages": [ANSWER], "text": "t"},
            "prompt_completion",
        ),
        ({"prompt": "p", "messages": [ANSWER], "text": "t"}, "messages"),
        ({"completion": "c", "text": "t"}, "text"),
    ],
)
def test_without_names_the_columns_that_are_there_are_taken(
    tmp_path: Path, row: dict[str, Any], form: str
) -> None:
    assert completions(jsonl(tmp_path / "a.jsonl", [row])).format == form


def test_without_any_such_column_the_forms_are_told(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(DataError) as caught:
        completions(path)
    assert "found the columns question, answer, expected prompt and completion" in str(caught.value)
    with pytest.raises(DataError, match=r"found no column 'quetsion' for prompt \(did you mean"):
        completions(path, prompt="quetsion", completion="answer")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "completion", "prompt": "p"}, "expected both or neither"),
        ({"task": "completion", "completion": "c"}, "expected both or neither"),
        ({"task": "completion", "prompt": "p", "completion": "c", "messages": "m"}, "one form"),
        ({"task": "completion", "messages": "m", "text": "body"}, "messages and text named"),
        ({"task": "completion", "text_b": "b"}, "text_b: found b with task: completion"),
        ({"task": "completion", "label": "y"}, "label: found y with task: completion"),
        ({"task": "completion", "classes": ("a", "b")}, "classes: found it with task: completion"),
        ({"task": "regression", "flip_labels": FlipLabels(0.1)}, "flip_labels: found it with task"),
        ({"task": "regression", "classes": ("a", "b")}, "set task: classification"),
        ({"messages": "m"}, "messages: found it with task: classification.*set task: completion"),
        ({"task": "regression", "prompt": "p", "completion": "c"}, "prompt: found it with task"),
        ({"text": None}, "text: found null with features: None"),
        ({"text": None, "features": "v", "text_b": "b"}, "expected a column, or features and no"),
    ],
)
def test_fields_that_do_not_fit_the_task_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Source("a.jsonl", **fields)


def test_a_review_may_drop_a_completion_and_fix_none(tmp_path: Path) -> None:
    rows: Rows = [{"id": i, "text": f"t {i}"} for i in range(3)]
    path, review = jsonl(tmp_path / "a.jsonl", rows), tmp_path / "review.csv"
    review.write_text("source_id,decision\n1,drop\n2,accept\n")
    corpus = completions(path, id="id", corrections=(str(review),))
    assert corpus.rows["is_dropped"].to_pylist() == [False, True, False]
    assert tables(corpus.rows)["label"]["id"].to_pylist() == [0, 2]
    review.write_text("source_id,decision,new_label\n1,fix,x\n")
    with pytest.raises(DataError, match="found decision fix, expected accept, drop or nothing"):
        completions(path, id="id", corrections=(str(review),))
