"""Chosen rows of completions and preferences as files that trainers read: the source's cells."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import assay, complaint, write_lines, write_run

USER = {"role": "user", "content": "how warm is it"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"town": "Oslo"}'}}
CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "how "}, {"type": "text", "text": "so"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "20"},
    {"role": "assistant", "content": "no", "weight": 0},
    USER,
    {"content": "warm \n", "role": "assistant", "reasoning_content": "20 is warm"},
]
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
COLUMNS: dict[str, dict[str, Any]] = {
    "messages": {"messages": CONVERSATION, "tools": TOOLS, "score": 0.5},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"instruction": "say b", "input": "a", "output": "b"},
    "completions": {"prompt": "say b ", "completion": "b"},
    "trl": {"prompt": [USER], "completion": [{"role": "assistant", "content": "warm"}]},
}
PAIRS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "a ", "chosen": "b", "rejected": "c"},
    "talks": {
        "chosen": [USER, {"role": "assistant", "content": "b"}],
        "rejected": [USER, {"role": "assistant", "content": "c"}],
    },
}
OURS = ["example_id", "value", "rank"]


def told(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL or Parquet file."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def chosen(folder: Path, corpus: dict[str, Any], *outs: Path, keep: str = "3") -> None:
    config = write_run(folder, corpus=corpus, model=None, stages={"near_duplicates": {}})
    assay("run", config)
    for out in outs:
        asked = ("--keep", keep, "--by", "random", "--keep-flagged", "--no-forecast")
        assay("select", folder / "run", *asked, "--out", out)


@pytest.mark.parametrize(
    ("task", "columns"),
    [("completion", c) for c in COLUMNS.values()] + [("preference", c) for c in PAIRS.values()],
    ids=[*COLUMNS, *PAIRS],
)
def test_the_cells_are_those_of_the_source_and_no_other_stands_beside(
    tmp_path: Path, task: str, columns: dict[str, Any]
) -> None:
    rows = [{"id": f"r{n}", **columns} for n in range(3)]
    corpus = {"path": write_lines(tmp_path / "rows.jsonl", rows), "task": task, "id": "id"}
    out = tmp_path / "out.jsonl"
    chosen(tmp_path, corpus, out)
    written = told(out)
    assert [list(row) for row in written] == [["id", *columns, *OURS]] * 3
    # As text: the keys of a message stand in their order.
    own = sorted(json.dumps({name: row[name] for name in rows[0]}) for row in written)
    assert own == [json.dumps(row) for row in rows]


def test_conversations_keep_their_type(tmp_path: Path) -> None:
    """A list of messages in Parquet stays one, and JSON in CSV the text that it was.

    Also where a key is null in all of them, which Arrow does not cast to its own type.
    """
    turns = [turn | {"tool_calls": None} for turn in (USER, {**USER, "role": "assistant"})]
    rows = [{"messages": turns, "n": n} for n in (1, 2)]
    given = pa.Table.from_pylist(rows)
    pq.write_table(given, tmp_path / "rows.parquet")
    out = tmp_path / "out.parquet"
    corpus = {"path": str(tmp_path / "rows.parquet"), "task": "completion"}
    chosen(tmp_path, corpus, out, keep="2")
    written = pq.read_table(out)
    assert written.schema.field("messages").type == given.schema.field("messages").type
    assert sorted(written.select(["messages", "n"]).to_pylist(), key=lambda row: row["n"]) == rows
    cell = json.dumps(CONVERSATION, indent=1)
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([["messages"], [cell]])
    folder = tmp_path / "csv"
    folder.mkdir()
    corpus = {"path": str(tmp_path / "rows.csv"), "task": "completion"}
    chosen(folder, corpus, folder / "out.csv", keep="1")
    with open(folder / "out.csv", newline="") as file:
        assert [row["messages"] for row in csv.DictReader(file)] == [cell]


def test_a_choice_of_no_row_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n} ", "completion": f"{n} it is"} for n in range(4)]
    corpus = {"path": write_lines(tmp_path / "rows.jsonl", rows), "task": "completion"}
    chosen(tmp_path, corpus)
    out = tmp_path / "out.jsonl"
    for name, number in [("keep", "0"), ("keep", "1%"), ("drop", "100%")]:
        asked = (f"--{name}", number, "--by", "random", "--out", out)
        said = complaint("select", tmp_path / "run", *asked)
        assert f"found {name} {number}, by which no row is kept" in said
        assert not out.exists()


def test_all_rows_are_marked_in_the_order_of_the_source(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n} ", "completion": f"{n} it is", "keep": n} for n in range(9)]
    corpus = {"path": write_lines(tmp_path / "rows.jsonl", rows), "task": "completion"}
    chosen(tmp_path, corpus)
    asked = ("--by", "random", "--keep-flagged", "--no-forecast")
    kept, marked = tmp_path / "kept.jsonl", tmp_path / "marked.jsonl"
    assay("select", tmp_path / "run", "--keep", "3", *asked, "--out", kept)
    said = assay("select", tmp_path / "run", "--keep", "3", *asked, "--out", marked, "--mark")
    assert f"9 rows in {marked}, of 3 keep is true" in said.stderr
    written = told(marked)
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    ranks = {row["keep"]: row["rank"] for row in told(kept)}
    assert {row["keep"]: row["rank"] for row in written if row["assay_keep"]} == ranks
    assert [row["rank"] for row in written if not row["assay_keep"]] == [None] * 6
    assay("select", tmp_path / "run", "--soft", "1", *asked, "--out", marked, "--mark")
    written = told(marked)
    assert [row["prompt"] for row in written] == [row["prompt"] for row in rows]
    assert sum(row["weight"] for row in written) == pytest.approx(9)
    said_of = complaint("select", tmp_path / "run", "--keep", "3", *asked, "--mark", "--out", "x/")
    assert "found a folder to be marked" in said_of
