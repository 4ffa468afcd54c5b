"""Files of others, spoiled in thousands of ways: a sentence each time, no file, no code run.

An audit hook sees every file that Python opens to write and every process that it starts; what
DuckDB writes shows in the folders.
"""

import contextlib
import copy
import csv
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import small_config
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pipeline import api
from pipeline.api import open_run
from pipeline.config import read_config
from pipeline.on_terminal import exit_code, print_rows
from pipeline.status import run_status
from pipeline.terminal import shown
from stages.corpus.review import read_decisions, read_review
from stages.stage import DataError
from storage.manifest import open_sealed, parse_manifest, sealed_json
from storage.schema import CorruptError
from storage.table import Store

pytestmark = pytest.mark.slow
FUZZ = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")),
)
EVIL = [
    "../../made",
    "/tmp/made",
    "x') TO 'made.csv'; --",
    "'; COPY (SELECT 1) TO 'made.csv'; --",
    "!!python/object/apply:os.system ['touch made']",
    "=cmd|' /C calc'!A0",
    "\x1b]0;title\x07",
    "\ud800",
    "\x00",
    "package:os/..",
    "a" * 5000,
    "${HOME}",
    "*",
    "",
]
ODD = st.sampled_from(
    [None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), [], {}, [[]], {"a": {}}, *EVIL]
) | st.text(max_size=12)
_WATCHED: list[Path] = []
_SEEN: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        _SEEN.append(f"{event} {arguments!r}")
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        is_written = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if is_written and not any(path.startswith(f"{p}{os.sep}") for p in _WATCHED):
            _SEEN.append(f"open {path}")


sys.addaudithook(_watch)


@contextlib.contextmanager
def nothing_done(*allowed: Path) -> Iterator[None]:
    """Within it nothing starts a process, or opens a file to write but in the allowed folders."""
    _SEEN.clear()
    _WATCHED[:] = [*(path.resolve() for path in allowed), Path("/dev"), Path.home() / ".cache"]
    try:
        yield
    finally:
        _WATCHED.clear()
    assert not _SEEN


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Within it an error must be one that ends a command with a sentence."""
    try:
        yield
    except Exception as error:
        if exit_code(error) is None or not str(error).strip():
            raise


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value in a tree of mappings and lists."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in inner:
            found += places(part, (*path, key))
    return found


@st.composite
def spoiled(draw: Any, whole: dict[str, Any]) -> dict[str, Any]:
    """A tree with one to three values replaced, keys renamed, or values taken out."""
    tree = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        ways = places(tree)
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        place: Any = tree
        for key in way:
            place = place[key]
        change = draw(st.sampled_from(["value", "value", "name", "gone"]))
        if change == "value":
            # A copy: what is spoiled further must not change what is drawn the next time.
            place[last] = copy.deepcopy(draw(ODD))
        elif change == "name" and isinstance(place, dict):
            place[str(draw(ODD))] = place.pop(last)
        elif isinstance(place, dict | list):
            del place[last]
    return tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def raw(folder: Path, reader: dict[str, Any]) -> dict[str, Any]:
    config = small_config(folder, {**reader, "head": "probe", "trust_remote_code": False})
    config["corpus"]["flip_labels"] = {"fraction": 0.1}
    return config


@FUZZ
@given(data=st.data())
def test_configurations(data: st.DataObject, raw: dict[str, Any], folder: Path) -> None:
    path = folder / "spoiled.yaml"
    tree = data.draw(spoiled(raw))
    with contextlib.suppress(yaml.YAMLError):
        path.write_text(yaml.safe_dump(tree), encoding="utf-8", errors="replace")
        with nothing_done(), told():
            read_config(path)


SIGNS = st.text("&*a:{}[],-?!|>%@`#'\"\n <~0.1\t\\x=", max_size=60)


@FUZZ
@given(text=SIGNS | st.text(max_size=40), data=st.data())
def test_texts_of_configurations(
    text: str, data: st.DataObject, raw: dict[str, Any], folder: Path
) -> None:
    path = folder / "spoiled.yaml"
    whole = yaml.safe_dump(raw)
    at = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(at, min(len(whole), at + 20)))
    spoilt = data.draw(st.sampled_from([text, whole[:at] + text + whole[stop:]]))
    path.write_bytes(spoilt.encode(errors="surrogatepass"))
    with nothing_done(), told():
        read_config(path)


CELLS = st.sampled_from(["accept", "fix", "drop", " Fix", "a", "b", "=1", "'=1", *EVIL])
CELL = (CELLS | st.text(max_size=8)).map(lambda text: text.encode(errors="replace").decode())


@FUZZ
@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL), max_size=6),
    head=st.sampled_from(
        ["source_id,decision,new_label", "example_id,decision,new_label", "a,b,c"]
    ),
    quotes=st.booleans(),
    task=st.sampled_from(["classification", "regression", "completion"]),
    tail=st.binary(max_size=6),
    ending=st.sampled_from([".csv", ".csv", ".csv", ".jsonl", ".json", ".parquet"]),
)
def test_reviews(
    rows: list[tuple[str, ...]],
    head: str,
    quotes: bool,
    task: Any,
    tail: bytes,
    ending: str,
    folder: Path,
) -> None:
    path = folder / f"review{ending}"
    quoted = [['"' + c.replace('"', '""') + '"' if quotes else c for c in row] for row in rows]
    text = "\n".join([head, *map(",".join, quoted)])
    path.write_bytes(text.encode() + b"\n" + tail)
    with nothing_done():
        for read in (
            lambda: read_review(str(path), task, ("a", "b", "=1")),
            lambda: read_decisions(str(path)),
        ):
            with contextlib.suppress(DataError):
                read()


@pytest.fixture(scope="module")
def run(unbroken: Any, folder: Path) -> Path:
    shutil.copytree(unbroken.folder, folder / "run")
    return folder / "run"


@FUZZ
@given(data=st.data())
def test_manifests(data: st.DataObject, run: Path) -> None:
    key = open_sealed((run / "run.json").read_bytes())["tables"]["corpus"]["text"]["manifest"]
    whole = open_sealed((run / "store" / "text" / f"{key}.json").read_bytes())
    text = sealed_json(data.draw(spoiled(whole)))
    with nothing_done():
        try:
            manifest = parse_manifest(text, "url", "text", key)
        except CorruptError:
            return
    store = Store(str(run / "store"))
    for shard in manifest.shards:
        url = Path(store.absolute_url(manifest.table, shard.key))
        assert url.parent == run / "store" / "text"


@FUZZ
@given(data=st.data())
def test_run_folders(data: st.DataObject, run: Path) -> None:
    good = (run / "run.json").read_bytes()
    before = sorted(str(path) for path in run.parent.rglob("*"))
    record = data.draw(spoiled(open_sealed(good)))
    catalog = (run / "catalog.duckdb").read_bytes()
    try:
        (run / "run.json").write_text(sealed_json(record))
        if data.draw(st.booleans()):
            (run / "catalog.duckdb").write_bytes(data.draw(st.binary(max_size=99)))
        with nothing_done(run):
            for read in (
                lambda: open_run(run, is_shut_in=True).sql("FROM runs").fetchall(),
                lambda: open_run(run).sql("FROM examples LIMIT 3").fetchall(),
                lambda: run_status(run),
            ):
                with told():
                    read()
    finally:
        (run / "run.json").write_bytes(good)
        (run / "catalog.duckdb").write_bytes(catalog)
    left = {Path(path).name for path in {str(p) for p in run.parent.rglob("*")} - set(before)}
    assert left <= {"run.lock", ".catalog.json", "hashed", *(f"{t}.json" for t in _tables(good))}


def _tables(record: bytes) -> set[str]:
    tables = json.loads(record)["tables"].values()
    return {table for states in tables for table in states}


STRANGE = st.sampled_from(
    [
        *(None, True, 0, -1, 2**63, 1e300, [], [1], {"a": 1}),
        *("good", "bad", " good", "GOOD", "nan", "1.0", "'", '"', "a,b\n"),
        *("\u200b", "\u202e abc", "\x9b31m", "</s>", "[SEP]", "[MASK] x", *EVIL),
    ]
) | st.text(max_size=10)
TEXT = STRANGE | st.sampled_from(["a good film", "a bad plot", "not so dull", "the same text"])
LABEL = st.sampled_from(["good", "bad"]) | STRANGE
DECISION = st.sampled_from(["accept", "fix", "drop", "drop"]) | CELL
NAME = st.sampled_from(["text", "label", "uid"]) | st.text(max_size=6)


def cells(rows: list[dict[str, Any]], ending: str, path: Path) -> None:
    """Writes rows as a source has them: JSON values, or their texts in a CSV."""
    if ending == ".csv":
        names = list(rows[0])
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            writer = csv.writer(file)
            writer.writerows([names, *([row[name] for name in names] for row in rows)])
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")


@settings(FUZZ, max_examples=max(1, FUZZ.max_examples // 16))
@given(data=st.data())
def test_whole_runs_over_strange_cells(
    data: st.DataObject, folder: Path, reader: dict[str, Any], monkeypatch_module: Any
) -> None:
    """`run`, what people look at, and `apply`: each works, or ends with a sentence."""
    place = folder / "whole"
    shutil.rmtree(place, ignore_errors=True)
    (place / "given").mkdir(parents=True)
    monkeypatch_module.setenv("ASSAY_MAPS", str(place / "maps"))
    ending = data.draw(st.sampled_from([".jsonl", ".csv"]))
    extra = data.draw(NAME)
    names = ("text", "label", "uid", extra)
    drawn = data.draw(st.lists(st.tuples(TEXT, LABEL, STRANGE, STRANGE), min_size=1, max_size=8))
    rows = [dict(zip(names, row, strict=True)) for row in drawn]
    # So that most cases come to an end: rows that are as they should be.
    plain = [dict.fromkeys(names, ""), dict.fromkeys(names, "")]
    for n in range(data.draw(st.sampled_from([0, 8, 8, 8]))):
        rows.append(plain[n % 2] | {"text": f"film {n}", "label": ["good", "bad"][n % 2], "uid": n})
    source = place / "given" / f"rows{ending}"
    cells(rows, ending, source)
    corpus: dict[str, Any] = {"path": str(source), "text": "text", "label": "label"}
    if data.draw(st.booleans()):
        corpus["id"] = "uid"
    config = {
        "run": str(place / "run"),
        "model": {**reader, "head": "probe"},
        "corpus": corpus,
        "queries": {**corpus},
        "ray": {"engine": "in_process"},
        "stages": {"label_issues": {}, "text_length": {}, "near_duplicates": {}},
    }
    with nothing_done(place / "run", place / "maps"), told():
        done = api.run(config)
        event("came to its end")
        str(done.flag(top=3))
        shown(lambda: print_rows(done.sql("FROM rejected"), False))
        shown(lambda: print_rows(done.flag(top=9), False))
    review = place / "given" / "review.csv"
    ids = [str(row["uid"]) for row in rows] + ["0", "1", "zz"]
    decisions = data.draw(
        st.lists(st.tuples(st.sampled_from(ids), DECISION, LABEL), min_size=1, max_size=4)
    )
    head = {"source_id": "", "decision": "", "new_label": ""}
    made = [dict(zip(head, row, strict=True)) for row in decisions]
    cells(made, ".csv", review)
    with nothing_done(place / "run", place / "second", place / "maps"), told():
        api.apply(place / "run", review, to=place / "second")
        event("was applied")


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch
