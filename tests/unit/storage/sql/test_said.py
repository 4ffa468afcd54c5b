"""What people read of conversations: all that a message says, and not its text alone."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from storage.views import SQL

REASONED = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
        {"function": {"name": "time", "arguments": '{"zone": 1}'}},
    ],
}
SAID = 'weather {"city":"Rome"}\ntime {"zone": 1}'
ASKED = {"role": "user", "content": "How warm is it?"}


@pytest.fixture(scope="module")
def connection() -> Iterator[Any]:
    with duckdb.connect() as opened:
        for macro in sorted((SQL / "macros").glob("*.sql")):
            opened.execute(macro.read_text(encoding="utf-8"))
        opened.execute("CREATE SCHEMA tables; CREATE SCHEMA provenance")
        yield opened


def read(connection: Any, view: str, form: str, text: Any, text_b: Any = None) -> Sequence[Any]:
    """The columns of a row of the view that people read."""
    manifest = {"table": "text", "details": json.dumps({"format": form})}
    row = {"id": 1, "role": "example", "run_id": "r", "text": json.dumps(text)}
    row["text_b"] = json.dumps(text_b)
    for name, cells in (("provenance.manifest", manifest), ("tables.text", row)):
        listed = ", ".join(f'? AS "{column}"' for column in cells)
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT {listed}", [*cells.values()])
    shown = {"completions": "prompt, answer", "preferences": "prompt, chosen, rejected"}[view]
    statement = (SQL / f"{view}.sql").read_text(encoding="utf-8")
    found: Sequence[Any] = connection.execute(f"SELECT {shown} FROM ({statement})").fetchone()
    return found


def test_calls_and_reasoning_are_read_in_chats(connection: Any) -> None:
    assert read(connection, "completions", "messages", [ASKED, CALLED]) == (ASKED["content"], SAID)
    heard = {"role": "tool", "content": "30"}
    prompt, answer = read(connection, "completions", "messages", [ASKED, CALLED, heard, REASONED])
    assert prompt == f"user: How warm is it?\nassistant: {SAID}\ntool: 30"
    assert answer == "<think>2 and 2</think>\n4"


def test_pairs_that_stand_both_ways_round(connection: Any) -> None:
    def pair(chosen: str, rejected: str) -> str:
        return json.dumps({"chosen": chosen, "rejected": rejected})

    asked = ["How far?", "how  FAR?", "How far?", "How near?", "How far?"]
    pairs = [pair("a", "b"), pair("B", "a "), pair("a", "c"), pair("b", "a"), pair("a", "b")]
    rows = [
        {"id": at, "role": "example", "run_id": "r", "text": text, "text_b": text_b}
        for at, (text, text_b) in enumerate(zip(asked, pairs, strict=True))
    ]
    rows.append({**rows[1], "id": 9, "role": "query"})
    text = pa.Table.from_pylist(rows)
    with connection.cursor() as own:
        own.register("given", text)
        own.execute("CREATE OR REPLACE TABLE tables.text AS FROM given")
        own.execute("CREATE OR REPLACE TABLE tables.label AS SELECT id, role FROM given")
        statement = (SQL / "issues.preferences.sql").read_text(encoding="utf-8")
        found = own.execute(
            f"SELECT example_id, other_id FROM ({statement}) ORDER BY ALL"
        ).fetchall()
    assert found == [(0, 1), (1, 0), (4, 1)]


def test_calls_and_reasoning_are_read_in_preferences(connection: Any) -> None:
    sides = {"chosen": [CALLED], "rejected": [REASONED, ASKED]}
    prompt, chosen, rejected = read(
        connection, "preferences", "preference_messages", [ASKED], sides
    )
    assert (prompt, chosen) == (ASKED["content"], SAID)
    assert rejected == "assistant: <think>2 and 2</think>\n4\nuser: How warm is it?"
