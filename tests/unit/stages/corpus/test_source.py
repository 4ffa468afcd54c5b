"""Where rows come from: files, globs, saved folders, a stand-in for the hub."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from processes import run_code as run
from whole_corpus import read

from stages.corpus.load import fingerprint, load, reading
from stages.corpus.pieces import read_all
from stages.corpus.source import FlipLabels, Source
from stages.stage import ConfigError, DataError

ROWS = [{"text": f"review {i}", "label": i % 2} for i in range(6)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "text,label\n" + "".join(f"review {i},{i % 2}\n" for i in range(6))


def put(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def parquet(path: Path, table: pa.Table) -> str:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path)
    return str(path)


def texts(source: Source) -> list[Any]:
    return list(load(source).table[source.text].to_pylist())


def error(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        load(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.ndjson", "\ufeff" + JSONL),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.csv", CSV),
        ("b.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("a.tsv", CSV.replace(",", "\t")),
        ("odd [1] name*.jsonl", JSONL),
    ],
)
def test_file_types_give_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    corpus = read(Source(put(tmp_path / name, content)), "example")
    assert corpus.rows["text"].to_pylist() == [row["text"] for row in ROWS]
    assert corpus.rows["label"].to_pylist() == [row["label"] for row in ROWS]
    assert corpus.classes == ("0", "1")


def test_globs_are_sorted_and_counted_through(tmp_path: Path) -> None:
    put(tmp_path / "b.csv", "text,label\nc,0\n")
    put(tmp_path / "a.csv", "label,text\n1,a\n0,b\n")
    corpus = read(Source(str(tmp_path / "*.csv")), "example")
    assert corpus.rows["text"].to_pylist() == ["a", "b", "c"]
    assert corpus.rows["row_number"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", [0, 1, 2, 3, 4, 5]),
        ("train[:2]", [0, 1]),
        ("train[4:]", [4, 5]),
        ("train[:50%]", [0, 1, 2]),
        ("train[4:]+train[:1]", [4, 5, 0]),
        ("all", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_split_expressions(tmp_path: Path, split: str, expected: list[int]) -> None:
    source = Source(put(tmp_path / "a.jsonl", JSONL), split=split)
    assert texts(source) == [f"review {i}" for i in expected]


def test_row_numbers_count_from_the_split_and_through_broken_rows(tmp_path: Path) -> None:
    lines = JSONL.splitlines()
    lines[3] = "{broken"
    source = Source(put(tmp_path / "a.jsonl", "\n".join(lines)), split="train[2:]")
    corpus = read(source, "example")
    assert corpus.rows["row_number"].to_pylist() == [0, 2, 3]
    assert corpus.rejected["row_number"].to_pylist() == [1]
    assert corpus.rejected["reason"].to_pylist() == ["not valid JSON"]


def test_unknown_and_malformed_splits(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", JSONL)
    message = error(Source(path, split="test"))
    assert "found the splits train, expected 'test' among them. Correct split" in message
    message = error(Source(path, split="train[:x]"))
    assert "expected one such as train, train[:1000]" in message


def test_bad_bytes_in_csv_reject_only_their_rows(tmp_path: Path) -> None:
    good = 'id,text,label,n\n1,"two\nlines é",0,1\n'
    bad = b"2,caf\xe9 \xff,1,2\n3,fine,1,\xfe3\n"
    path = put(tmp_path / "a.csv", good.encode() + bad + b"4,last,1,4\n")
    corpus = read(Source(path, id="id"), "example")
    assert corpus.rows["text"].to_pylist() == ["two\nlines é", "last"]
    assert corpus.rows["id"].to_pylist() == [1, 4]
    assert corpus.rows["n"].to_pylist() == ["1", "4"]
    assert corpus.rejected["row_number"].to_pylist() == [1, 2]
    assert corpus.rejected["reason"].to_pylist() == ["not UTF-8"] * 2
    assert "caf\\xe9 \\xff" in corpus.rejected["raw"][0].as_py()


def test_bad_bytes_in_a_json_array(tmp_path: Path) -> None:
    content = json.dumps([*ROWS, {"text": "half \ud800", "label": 0}, 7]).encode()
    path = put(tmp_path / "a.json", content.replace(b"review 1", b"review \xff"))
    corpus = read(Source(path), "example")
    assert corpus.rows["row_number"].to_pylist() == [0, 2, 3, 4, 5]
    assert corpus.rejected["reason"].to_pylist() == ["not UTF-8", "not UTF-8", "not valid JSON"]
    assert "review \\xff" in corpus.rejected["raw"][0].as_py()
    assert "half \\ud800" in corpus.rejected["raw"][1].as_py()


def test_bad_bytes_in_parquet(tmp_path: Path) -> None:
    def text(*values: bytes) -> pa.Array:
        cells = pa.array(values, pa.binary())
        return pa.Array.from_buffers(pa.string(), len(cells), cells.buffers())

    tags = pa.ListArray.from_arrays([0, 1, 2, 3, 4], text(b"x", b"y", b"z", b"\xff"))
    table = pa.table(
        {"text": text(b"a", b"\xffb", b"c", b"d"), "label": [0, 1, 1, 0], "tags": tags}
    )
    corpus = read(Source(parquet(tmp_path / "a.parquet", table)), "example")
    assert corpus.rows["text"].to_pylist() == ["a", "c"]
    assert corpus.rejected["row_number"].to_pylist() == [1, 3]
    assert corpus.rejected["reason"].to_pylist() == ["not UTF-8"] * 2
    assert "\\xffb" in corpus.rejected["raw"][0].as_py()


def test_parquet_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b", "c"], pa.large_string()),
            "label": pa.array(["x", "y", "x"]).dictionary_encode(),
            "when": pa.array([1, 2, 3], pa.timestamp("us")),
        }
    )
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    corpus = read(Source(parquet(tmp_path / "a.parquet", chunked)), "example")
    assert corpus.rows.schema.field("text").type == pa.string()
    assert corpus.rows["label"].to_pylist() == [0, 1, 0]
    assert corpus.rows.schema.field("when").type == pa.timestamp("us")


def test_dates_in_jsonl_stay_as_written(tmp_path: Path) -> None:
    rows = [{"id": f"2024-01-0{i}", "text": "t", "label": i % 2} for i in (1, 2)]
    path = put(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    corpus = read(Source(path, id="id"), "example")
    assert corpus.rows["source_id"].to_pylist() == ["2024-01-01", "2024-01-02"]


def test_two_objects_on_one_line_are_not_two_rows(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", JSONL + '{"text":"a","label":0}{"text":"b","label":0}\n')
    corpus = read(Source(path), "example")
    assert corpus.rows.num_rows == 6
    assert corpus.rejected["row_number"].to_pylist() == [6]


def test_csv_columns_that_are_empty_or_change_their_type_halfway(tmp_path: Path) -> None:
    lines = [f"t{i},{i % 2},,{i if i < 11000 else 'x'}" for i in range(12000)]
    path = put(tmp_path / "a.csv", "text,label,none,mixed\n" + "\n".join(lines))
    corpus = read(Source(path), "example")
    assert corpus.rows.num_rows == 12000
    assert corpus.rows["none"].null_count == 12000
    assert corpus.rows["mixed"].to_pylist()[::11999] == ["0", "x"]


def test_cells_of_csv_stay_as_written(tmp_path: Path) -> None:
    rows = 'a,0,01234,12345678901234567890,1.10,true,""\nb,1, 5,1E5,NA,False,\n'
    path = put(tmp_path / "a.csv", "text,label,zip,long,share,is_new,note\n" + rows)
    cells = read(Source(path), "example").rows.to_pydict()
    assert cells["zip"] == ["01234", " 5"]
    assert cells["long"] == ["12345678901234567890", "1E5"]
    assert cells["share"] == ["1.10", "NA"]
    assert cells["is_new"] == ["true", "False"]
    assert cells["note"] == ["", None]


def test_json_columns_of_mixed_and_nested_types_are_carried(tmp_path: Path) -> None:
    extra = [{"m": 1, "n": [{"a": 1}]}, {"m": "x", "n": [{"b": "c"}]}, {"m": None, "n": []}]
    rows = [ROWS[i] | extra[i] for i in range(3)]
    put(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    put(tmp_path / "b.jsonl", "\ufeff" + JSONL)
    corpus = read(Source(str(tmp_path / "*.jsonl")), "example")
    assert corpus.rows.num_rows == 9
    assert [cell and json.loads(cell) for cell in corpus.rows["m"].to_pylist()[:2]] == [1, "x"]
    path = parquet(tmp_path / "c.parquet", corpus.rows.drop_columns(["label"]))
    assert load(Source(path)).table.num_rows == 9


def test_files_that_are_not_there(tmp_path: Path) -> None:
    put(tmp_path / "reviews.csv", CSV)
    message = error(Source(str(tmp_path / "review.csv")))
    assert "found no file or folder at" in message
    assert "expected one with an ending among .parquet, .jsonl" in message
    assert "did you mean reviews.csv?" in message
    message = error(Source(str(tmp_path / "*.parquet")))
    assert "found no file that the pattern matches" in message
    assert "Correct the pattern" in message
    message = error(Source("no hub id"))
    assert "expected owner/name, a local path or glob, or the URL of files (s3://" in message


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", CSV)
    put(tmp_path / "b.jsonl", JSONL)
    message = error(Source(str(tmp_path / "*")))
    assert "found files of different types (.csv, .jsonl), expected one type. Write a" in message
    message = error(Source(put(tmp_path / "c.docx", "x")))
    assert "found c.docx, expected a file with an ending among" in message
    message = error(Source(put(tmp_path / "d.csv", "")))
    assert "found an empty file, expected rows" in message
    message = error(Source(put(tmp_path / "e.csv", CSV.encode("utf-16"))))
    assert "found UTF-16, expected UTF-8. Save the file as UTF-8" in message
    message = error(Source(put(tmp_path / "f.csv", "text,text\na,b\n")))
    assert "found the header ['text', 'text'], expected different names" in message
    message = error(Source(put(tmp_path / "g.csv", "text,label\na,0,x\n")))
    assert "found 3 fields in the first row, expected the 2 of the header. Name every" in message
    message = error(Source(put(tmp_path / "h.csv", 'text,label\na,0\nb,"0\nc,1\n')))
    assert "found a quote that opens in the last row" in message
    assert "is never closed, expected one at the end of its field. Close it" in message
    put(tmp_path / "sub" / "1.csv", "text,label\na,0\n")
    put(tmp_path / "sub" / "2.csv", "text,labels\na,0\n")
    message = error(Source(str(tmp_path / "sub" / "*.csv")))
    assert "found columns ['text', 'labels'], expected ['text', 'label'] as in" in message
    message = error(Source(put(tmp_path / "i.json", '{\n"text": ["a"],\n"label": [0]\n}')))
    assert "found no JSON object in 4 lines" in message
    assert "expected one per line or one array" in message
    message = error(Source(put(tmp_path / "j.parquet", "not parquet")))
    assert "cannot be loaded" in message
    assert "expected Parquet. Write the file again" in message
    message = error(Source(put(tmp_path / "k.jsonl", "\n\n")))
    assert "found no rows, expected at least one" in message
    for name in ("l.csv", "m.tsv"):
        message = error(Source(put(tmp_path / name, "text,label\n")))
        assert "found no rows, expected at least one. Fill the file" in message
    empty = pa.table({"text": pa.array([], pa.string())})
    assert "found no rows" in error(Source(parquet(tmp_path / "n.parquet", empty)))


def test_folder_of_data_files_has_the_splits_of_its_file_names(tmp_path: Path) -> None:
    put(tmp_path / "data" / "train.csv", CSV)
    put(tmp_path / "data" / "test.csv", "text,label\nq,1\n")
    put(tmp_path / "README.md", "# reviews")
    assert texts(Source(str(tmp_path), split="test")) == ["q"]
    assert len(texts(Source(str(tmp_path), split="train+test"))) == 7
    message = error(Source(str(tmp_path)))
    assert "found the splits train, test, expected to be told which. Set split" in message
    (tmp_path / "none").mkdir()
    message = error(Source(str(tmp_path / "none")))
    assert "expected one written by save_to_disk" in message
    assert "write a glob such as folder/*.parquet" in message


def test_saved_folders_keep_class_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = {"text": ["a", "b", "c", "d"], "label": [1, 0, -1, 1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    try:
        dataset.save_to_disk(tmp_path / "one")
        both = datasets.DatasetDict({"train": dataset, "test": dataset.select([3, 1])})
        both.save_to_disk(tmp_path / "two")
    finally:
        datasets.enable_progress_bars()
    corpus = read(Source(str(tmp_path / "one")), "example")
    assert corpus.classes == ("neg", "pos")
    assert corpus.label_kind == "classlabel"
    assert corpus.rows["label"].to_pylist() == [1, 0, 1]
    assert corpus.rejected["reason"].to_pylist() == ["missing label"]
    source = Source(str(tmp_path / "two"), split="test")
    assert read(source, "query", ("pos", "neg")).rows["label"].to_pylist() == [0, 1]
    renamed = read(replace(source, classes=("bad", "good")), "example")
    assert renamed.rows["label"].to_pylist() == [1, 0]
    reordered = read(replace(source, classes=("pos", "neg")), "example")
    assert reordered.rows["label"].to_pylist() == [0, 1]
    assert "found the splits train, test" in error(Source(str(tmp_path / "two")))
    assert "expected 'dev' among them" in error(replace(source, split="dev"))


def test_a_saved_folder_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "saved"
    datasets.disable_progress_bars()
    try:
        for text in ("old", "new"):
            shutil.rmtree(folder, ignore_errors=True)
            datasets.Dataset.from_dict({"text": [text], "label": [0]}).save_to_disk(folder)
            split = reading(Source(str(folder)))
            assert read_all(split).table["text"].to_pylist() == [text]
        os.utime(folder / "state.json", (0, 0))
        with pytest.raises(DataError, match="changed since it was listed"):
            read_all(split)
    finally:
        datasets.enable_progress_bars()


def test_local_files_are_never_stale_and_settings_are_restored(tmp_path: Path) -> None:
    import datasets

    level = datasets.logging.get_verbosity()
    path = put(tmp_path / "a.csv", CSV)
    stamp = os.stat(path)
    first = texts(Source(path))
    put(tmp_path / "a.csv", CSV.replace("review", "REVIEW"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert texts(Source(path)) == [text.replace("review", "REVIEW") for text in first]
    assert not datasets.utils.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == level


def test_fingerprint_follows_content_fields_and_corrections(tmp_path: Path) -> None:
    source = Source(put(tmp_path / "a.csv", CSV))
    seen = {fingerprint(source)}
    assert fingerprint(Source(source.path)) in seen
    put(tmp_path / "r.csv", "source_id,decision\n0,drop\n")
    changed = [
        replace(source, text="x"),
        replace(source, split="train[:3]"),
        replace(source, flip_labels=FlipLabels(0.1)),
        replace(source, flip_labels=FlipLabels(0.1, seed=1)),
        replace(source, corrections=(str(tmp_path / "r.csv"),)),
        Source(str(tmp_path / "*.csv")),
        Source(str(tmp_path)),
    ]
    seen |= {fingerprint(other) for other in changed}
    put(tmp_path / "r.csv", "source_id,decision\n1,drop\n")
    seen.add(fingerprint(changed[4]))
    seen.add(fingerprint(changed[6]))
    put(tmp_path / "a.csv", CSV + "more,1\n")
    seen.add(fingerprint(source))
    assert len(seen) == 11
    assert all(len(value) == 64 for value in seen)


def test_sources_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"path: found an empty string, expected"):
        Source("")
    with pytest.raises(ConfigError, match=r"two different names\. List"):
        Source("a.csv", classes=("a", "a"))
    with pytest.raises(ConfigError, match="expected at least two different names"):
        Source("a.csv", classes=("a",))


def test_importing_is_fast() -> None:
    heavy = "{'datasets', 'torch', 'pandas'}"
    code = f"import sys, stages.corpus.ingest; print({heavy} & set(sys.modules))"
    assert run(code) == "set()\n"
