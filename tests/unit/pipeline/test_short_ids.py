"""Ids in the characters that tell them apart, and what they are found by."""

import io

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.short_ids import LONG, condition, shortened
from pipeline.terminal import narrow, table

UUIDS = ["0e2f6c1a-5b1d-4c58-9a55-1f2d3c4b5a69", "0e2f6c1a-5b1d-4c58-9a55-1f2d3c4b5a70"]
HASHES = ["5feceb66ffc86f38d952786c6d696c79", "6b86b273ff34fce19d6b804eff5a3f57", "12"]
URLS = [f"https://reviews.example.org/2024/films/items/{n}/comments.html" for n in range(98, 102)]


def found(ids: list[str], name: str) -> list[str]:
    values = "SELECT unnest($ids) AS id"
    rows = duckdb.execute(
        f"SELECT DISTINCT id FROM ({values}) WHERE {condition('id', name)}", {"ids": ids}
    )
    return [row[0] for row in rows.fetchall()]


@pytest.mark.parametrize(
    ("ids", "short"),
    [
        (HASHES, ["5feceb66ffc8…", "6b86b273ff34…", "12"]),
        (UUIDS, ["0e2f6c1a…1f2d3c4b5a69", "0e2f6c1a…1f2d3c4b5a70"]),
        (URLS[:2], ["https://…98/comments.html", "https://…99/comments.html"]),
        (["1234567890123456789", "b"], ["1234567890123456789", "b"]),
        ([], []),
    ],
)
def test_long_ids_are_short_and_differ(ids: list[str], short: list[str]) -> None:
    if ids == URLS[:2]:
        assert [text[:9] for text in shortened(ids)] == ["https://…"] * 2
        assert max(map(len, shortened(ids))) < 30
    else:
        assert shortened(ids) == short
    assert len(set(shortened(ids))) == len(ids)


@settings(deadline=None)  # a database is opened for each, which a busy machine is slow at
@given(st.lists(st.text("ab/", max_size=40) | st.text(max_size=40), max_size=8, unique=True))
def test_what_is_shown_finds_the_one_that_is_meant(ids: list[str]) -> None:
    assert len(set(shortened(ids))) == len(ids)
    for text, short in zip(ids, shortened(ids), strict=True):
        assert short == text or len(short) <= max(LONG, len(text))
        if short != text and "\0" not in text and short.count("…") == 1 and "..." not in text:
            assert found([i for i in ids if "\0" not in i], short) == [text]


def test_ids_are_never_cut_for_the_width_and_whole_elsewhere() -> None:
    names, long = ["source_id", "text", "label"], "a film that goes on and on " * 4
    rows = [[uid, long, "positive"] for uid in UUIDS]
    for width in (60, 80, 120, 200):
        shown = table(names, rows)
        assert narrow(shown, width) == []
        buffer = io.StringIO()
        Console(file=buffer, width=width, force_terminal=True, color_system=None).print(shown)
        lines = buffer.getvalue().splitlines()
        assert [line.split()[0] for line in lines[1:]] == shortened(UUIDS)
        assert all(len(line) <= width for line in lines)
    buffer = io.StringIO()
    Console(file=buffer, width=500).print(table(names, [[URLS[0] * 2, "", ""]]))
    assert URLS[0] * 2 in buffer.getvalue()
