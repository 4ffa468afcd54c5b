"""CSV: the separator is found and named, and no row takes another's cells."""

from pathlib import Path
from typing import Any

import pytest
from source_rows import reasons
from whole_corpus import Corpus, read

from stages.corpus import csv_quotes
from stages.corpus.source import Source
from stages.stage import DataError


def corpus(path: Path, content: str | bytes, **fields: Any) -> Corpus:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(Source(str(path), **fields), "example")


@pytest.mark.parametrize(
    ("name", "separator", "word"),
    [
        ("a.csv", ";", "semicolons"),
        ("a.csv", "\t", "tabs"),
        ("a.csv", "|", "vertical bars"),
        ("a.tsv", ",", "commas"),
        ("a.csv", ",", None),
        ("a.tsv", "\t", None),
    ],
)
def test_the_separator_is_found_and_named(
    tmp_path: Path, name: str, separator: str, word: str | None
) -> None:
    rows = [["text", "label", "price"], ["one, two; three", "a", "1.10"], ["four | five", "b", "1"]]
    lines = [separator.join(f'"{cell}"' for cell in row) for row in rows]
    found = corpus(tmp_path / name, "\n".join(lines))
    assert found.rows["text"].to_pylist() == ["one, two; three", "four | five"]
    assert found.rows["price"].to_pylist() == ["1.10", "1"]
    usual = "tabs" if name.endswith("tsv") else "commas"
    expected = (
        f"{name}: its fields are separated by {word}, not {usual}; columns text, label, price"
    )
    assert found.notices[:-1] == ((expected,) if word else ())


def test_numbers_with_a_comma_stay_whole_between_semicolons(tmp_path: Path) -> None:
    found = corpus(tmp_path / "a.csv", "text;label;price\nx;a;1,50\ny;b;2,25\n")
    assert found.rows["price"].to_pylist() == ["1,50", "2,25"]


def test_columns_that_are_named_decide(tmp_path: Path) -> None:
    content = "text,x;label,y\na,1;b,2\nc,3;d,4\n"
    with pytest.raises(DataError) as caught:
        corpus(tmp_path / "a.csv", content, text="none")
    assert (
        "found that commas and semicolons both separate its rows into columns (text, x;label, y"
        in (str(caught.value))
    )
    assert "expected one of them. Quote the fields that hold the other" in str(caught.value)
    found = corpus(tmp_path / "a.csv", content, text="text,x", label="label,y")
    assert found.rows["text"].to_pylist() == ["a,1", "c,3"]


def test_rows_that_do_not_fit_the_header_are_rejected_where_they_stand(tmp_path: Path) -> None:
    content = b'text,label\n"a\nb",0\nc,1,x\n\nd\ne,1\nf,0,\xc3\xbf\ng,0\n'
    found = corpus(tmp_path / "a.csv", content)
    assert found.rows["text"].to_pylist() == ["a\nb", "e", "g"]
    assert found.rows["row_number"].to_pylist() == [0, 3, 5]
    assert reasons(found) == dict.fromkeys((1, 2, 4), "other number of fields than the header")
    assert found.rejected["raw"].to_pylist()[:2] == ["c,1,x", "d"]


def test_the_header_may_hold_quotes_and_stand_below_blank_lines(tmp_path: Path) -> None:
    content = '\ufeff\r\n"text","a ""label"",\nodd"\r\nx,1\r\ny,2\r\n'
    found = corpus(tmp_path / "a.csv", content, label='a "label",\nodd')
    assert found.rows["text"].to_pylist() == ["x", "y"]
    assert found.classes == ("1", "2")


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path: Path, end: str) -> None:
    with pytest.raises(DataError, match=r"found a quote that opens in the last row.*Close it"):
        corpus(tmp_path / "a.csv", f'label,text\n0,a\n1,"b\n0,c\n1,d{end}')
    closed = corpus(tmp_path / "b.csv", f'label,text\n0,a\n1,"b\n0,c\n1,d"{end}')
    assert closed.rows["text"].to_pylist() == ["a", "b\n0,c\n1,d"]


@pytest.mark.parametrize("rest", ["b,1\nc,0", "b\nc,1\nd,0\n", f"{'b' * 3000},1\nc,0"])
def test_nor_where_what_it_swallows_is_no_row(tmp_path: Path, rest: str) -> None:
    with pytest.raises(DataError, match=r"found a quote that opens in the last row.*Close it"):
        corpus(tmp_path / "a.csv", f'text,label\na,0\nz,1\n"{rest}')
    with pytest.raises(DataError, match="found a quote that opens in the last row"):
        corpus(tmp_path / "b.csv", f'text,label\n"{rest}')
    found = corpus(tmp_path / "c.csv", 'text,label\na,0\nz,1\n"the last,1\n')
    assert reasons(found) == {2: "other number of fields than the header"}


def test_a_row_larger_than_any_block_that_is_usual(tmp_path: Path) -> None:
    long = "x" * 3_000_000
    found = corpus(tmp_path / "a.csv", f'text,label\n"{long}",0\ny,1\n')
    assert [len(text) for text in found.rows["text"].to_pylist()] == [3_000_000, 1]


RAW = [
    'He said "hi" to her.\t0',
    '"Hello," he said.\t1',
    '"Open\t0',
    "plain\t1",
    'an inch is 1"\t0',
    '"All of it"\t1',
    '"Once" more\t0',
    '"A ""pair"" of them"\t1',
    "end\t0",
    "\t1",
    "last\t1",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("piece_bytes", [1 << 20, 1])
def test_quotes_of_a_file_without_quoting_are_text(
    tmp_path: Path, end: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_quotes, "_BEYOND", 1)
    more = [f"row {i}\t{i % 2}" for i in range(8)]
    path = tmp_path / "a.tsv"
    path.write_bytes(end.join(["text\tlabel", *RAW, *more, ""]).encode())
    found = read(Source(str(path)), "example", piece_bytes=piece_bytes)
    rows = [line.rsplit("\t", 1) for line in [*RAW, *more]]
    assert found.rows["text"].to_pylist() == [text for text, _ in rows if text]
    labels = [int(label) for text, label in rows if text]
    assert found.rows["label"].to_pylist() == labels
    assert reasons(found) == {9: "null text"}
    assert "a.tsv: quotes are read as part of its texts" in found.notices[0]


@pytest.mark.parametrize(
    ("lines", "n_odd"),
    [
        (['"a, b",0', '"c" d,1', "e,0", "f,1"], 1),  # As many speak against it.
        (['"a","0"', '"b "c" d","1"', '"e","0"', '"f","1"'], 1),  # They end with quotes.
        ([r'"a \"b\" c",0', r'"d \"e\"",1', '"f",0', '"g",1'], 2),
        (['"a" ,"0"', '"b" ,"1"', '"c" ,"0"', '"d","1"'], 0),
        (['"a ""b"" c",0', '"""d""",1', '"",0', '"""e\nf"" g",1', '"h,""i"", j",0'], 0),
    ],
)
def test_text_behind_a_closing_quote_is_told_where_quoting_is_used(
    tmp_path: Path, lines: list[str], n_odd: int
) -> None:
    found = corpus(tmp_path / "a.csv", "\n".join(["text,label", *lines]))
    assert found.classes == ("0", "1")
    assert found.rows.num_rows == 4
    told = [notice for notice in found.notices if "quote" in notice]
    assert len(told) == bool(n_odd)
    assert all(f"a.csv: fields of {n_odd} lines go on behind the quote" in one for one in told)
