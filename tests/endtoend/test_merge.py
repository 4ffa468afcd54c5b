"""Stages of a few lines that report facts, write two tables or merge, executed without a model."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline import open_run
from pipeline.config import parse_config
from pipeline.corpus import read_corpus
from pipeline.errors import TaskError
from pipeline.plan import make_plan
from pipeline.progress import Progress
from pipeline.run import execute_run
from pipeline.settings import Run
from stages.capabilities import Merges
from stages.features.curvature import Curvature
from stages.features.ntk import NTK
from stages.gradients.blocks import Block, read_curvature
from stages.stage import DataError, Split, Stage
from stages.tables import DIAGNOSTICS, PREDICTION
from storage.schema import TableSpec
from storage.table import Store

TALLY = TableSpec("tally", pa.schema([("word", pa.string()), ("n", pa.int64())]), ("word",))
LENGTHS = TableSpec("length", pa.schema([("id", pa.int64()), ("n", pa.int64())]), ("id",))


@dataclass(frozen=True)
class Length(Stage):
    """The length of every text, with diagnostics beside it; texts of `bad` words are left out."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[tuple[TableSpec, ...]] = (LENGTHS, DIAGNOSTICS)

    def compute(self, inputs: Any) -> Iterator[tuple[str, pa.RecordBatch]]:
        text = inputs.table("text")
        n = pa.array([len(t.split()) for t in text["text"].to_pylist()], pa.int64())
        is_bad = pc.match_substring(text["text"], "bad").combine_chunks()
        columns = [
            text["id"].combine_chunks(),
            text["role"].combine_chunks(),
            n,
            pc.if_else(is_bad, None, 0.5),
            pc.if_else(is_bad, None, n.cast(pa.float64())),
            pc.if_else(is_bad, "not finite", "ok"),
        ]
        n_bad = pc.sum(is_bad.cast(pa.int64())).as_py()
        inputs.tell(n_not_finite=n_bad)
        if n_bad:
            inputs.tell("halved the batch", is_exact_bytes=False)
        yield DIAGNOSTICS.name, pa.RecordBatch.from_arrays(columns, schema=DIAGNOSTICS.schema)
        rows = pa.table({"id": text["id"], "n": n}).filter(pc.invert(is_bad))
        yield from ((LENGTHS.name, batch) for batch in rows.to_batches())

    def details(self, inputs: Any) -> Mapping[str, Any]:
        return {"unit": "word"}


@dataclass(frozen=True)
class Tally(Merges):
    """How often each word occurs in the examples that have a length."""

    source: str = "lengths"
    broken_at: int = -1
    """The merge of so many parts fails."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    writes: ClassVar[tuple[TableSpec, ...]] = (TALLY,)
    outside_key: ClassVar[frozenset[str]] = frozenset({"broken_at"})

    @property
    def reads(self) -> tuple[str, ...]:
        return ("text", self.source)

    def open(self, inputs: Any) -> str:
        return "opened"

    def compute(self, inputs: Any) -> Iterator[tuple[str, pa.RecordBatch]]:
        assert inputs.opened == "opened"
        assert inputs.part.role == "example"
        text, known = inputs.table("text"), inputs.table(self.source)["id"].to_pylist()
        inputs.tell(n_left_out=text.num_rows - len(known))
        rows = zip(text["id"].to_pylist(), text["text"].to_pylist(), strict=True)
        words = [word for i, t in rows if i in known for word in t.split()]
        yield from _counted([(word, 1) for word in words])

    def merge(
        self, parts: Mapping[str, Sequence[pa.Table]]
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        if len(parts["tally"]) == self.broken_at:
            raise DataError("found a broken merge")
        rows = [row for part in parts["tally"] for row in part.to_pylist()]
        yield from _counted([(row["word"], row["n"]) for row in rows])

    def details(self, inputs: Any) -> Mapping[str, Any]:
        return {"unit": "word"}


@dataclass(frozen=True)
class Logits(Stage):
    """Gradients of two logits in half precision, where a text is not bad, and predictions."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[tuple[TableSpec, ...]] = (NTK,)

    def compute(self, inputs: Any) -> Iterator[tuple[str, pa.RecordBatch]]:
        text = inputs.table("text").select(["id", "role", "text"])
        text = text.filter(pc.invert(pc.match_substring(text["text"], "bad")))
        if text.num_rows:
            yield NTK.name, _with_vectors(text, gradients_of(text["id"].to_pylist()), "vector")

    def details(self, inputs: Any) -> Mapping[str, Any]:
        return {"blocks": [block._asdict() for block in BLOCKS]}


@dataclass(frozen=True)
class Guesses(Stage):
    """Logits of every text."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    reads: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[tuple[TableSpec, ...]] = (PREDICTION,)

    def compute(self, inputs: Any) -> Iterator[tuple[str, pa.RecordBatch]]:
        text = inputs.table("text").select(["id", "role", "text"])
        sources = pa.array(["model"] * text.num_rows)
        text = text.append_column("source", sources)
        yield PREDICTION.name, _with_vectors(text, logits_of(text["id"].to_pylist()), "logits")


BLOCKS = (Block("second", 0, 2), Block("first", 2, 3))


def gradients_of(ids: list[int]) -> np.ndarray:
    """Two classes' gradients of five numbers, one after the other, for each id."""
    rows = [np.random.default_rng(i).normal(size=10) for i in ids]
    return np.array(rows).astype(np.float16)


def logits_of(ids: list[int]) -> np.ndarray:
    return np.array([np.random.default_rng([i, 1]).normal(size=2) for i in ids]).astype(np.float32)


def _with_vectors(rows: pa.Table, matrix: np.ndarray, name: str) -> pa.RecordBatch:
    cells = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    batch = rows.drop_columns(["text"]).append_column(name, cells).combine_chunks().to_batches()
    return batch[0]


def _counted(pairs: list[tuple[str, int]]) -> Iterator[tuple[str, pa.RecordBatch]]:
    counts: dict[str, int] = {}
    for word, n in pairs:
        counts[word] = counts.get(word, 0) + n
    if counts:
        rows = [{"word": word, "n": n} for word, n in counts.items()]
        yield TALLY.name, pa.RecordBatch.from_pylist(rows, schema=TALLY.schema)


class Listening(Progress):
    """Keeps what each stage had to say, and the keys of the tasks that were done."""

    def __init__(self) -> None:
        self.told: dict[str, list[str]] = {}
        self.done: dict[str, int] = {}

    def advanced(self, node: Any, records: Any) -> None:
        self.done[node.instance] = self.done.get(node.instance, 0) + 1

    def finished(self, node: Any, seconds: float, notices: Sequence[str] = ()) -> None:
        self.told[node.instance] = list(notices)


N_EXAMPLES, SHARD = 60, 3
BAD = {0, 1, 2, 31}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A run over `n` examples and four queries, in a store that all of them share.

    The first shard has no row that is not bad.
    """

    def run(name: str, n: int = N_EXAMPLES, **fields: Any) -> Run:
        rows = [
            {
                "id": i,
                "text": f"w{i % 7} w{i % 3} {'bad' if i in BAD else 'good'}",
                "label": "ab"[i % 2],
            }
            for i in range(n)
        ]
        for file, given in (("corpus", rows), ("queries", rows[2:6])):
            text = "".join(json.dumps(row) + "\n" for row in given)
            (tmp_path / f"{name}-{file}.jsonl").write_text(text)
        raw = {
            "run": str(tmp_path / name),
            "store": str(tmp_path / "store"),
            "corpus": {"path": str(tmp_path / f"{name}-corpus.jsonl"), "id": "id"},
            "queries": {"path": str(tmp_path / f"{name}-queries.jsonl"), "id": "id"},
            "shard_size": SHARD,
            "ray": {"engine": "in_process"},
            "stages": {"label_issues": {}},
        }
        stages = {"lengths": Length(), "words": Tally(**fields)}
        return dataclasses.replace(parse_config(raw, "test"), stages=stages)

    return run


def tally(n: int) -> dict[str, int]:
    words: dict[str, int] = {}
    for i in range(n):
        for word in (f"w{i % 7}", f"w{i % 3}", "good") if i not in BAD else ():
            words[word] = words.get(word, 0) + 1
    return words


def manifest(run: Run, table: str) -> Any:
    folder = open_run(run.run).folder
    (entry,) = (e for e in folder.entries(folder.store()) if e.manifest.table == table)
    return entry.manifest


def test_a_tree_gives_what_one_loop_gives(make: Any) -> None:
    run, heard = make("one"), Listening()
    execute_run(run, heard)
    opened = open_run(run.run)
    assert dict(opened.sql("SELECT word, n FROM tables.tally").fetchall()) == tally(N_EXAMPLES)
    # Twenty leaves, three nodes, one root; no task for the queries.
    assert heard.done["words"] == 24
    found = manifest(run, "tally")
    assert [(s.role, s.index) for s in found.shards] == [("", 0)]
    assert len(list((Path(run.store_url) / "tally").glob("*.parquet"))) == 24
    # Facts go up the tree with the sums: of the first shard, of another one, and of all.
    told = {"n_left_out": len(BAD), "n_not_finite": 0, "notices": {}}
    assert found.details == {"unit": "word", **told}
    assert heard.told["words"] == [
        "rows left out, as one of the tables that are read lacks them: 4"
    ]


def test_notices_and_counts_are_in_the_manifest_and_told_once(make: Any, tmp_path: Path) -> None:
    run, heard = make("one"), Listening()
    execute_run(run, heard)
    for table in ("length", "diagnostics"):
        found = manifest(run, table)
        details = found.details
        # Rows 0 to 2 and 31 of the examples, row 2 of the queries; in three shards.
        assert (details["unit"], details["n_not_finite"]) == ("word", 5)
        assert details["notices"] == {"halved the batch": 3}
        keys = {s.key for s in found.shards if (s.role, s.index) in BAD_SHARDS}
        assert set(details["inexact_shards"]) == keys
        assert not {"is_exact_bytes"} & set(details)
    assert heard.told["lengths"] == [
        "halved the batch (in 3 tasks)",
        "rows without features, as a number was not finite or too large for the stored type: 5; "
        "see the view `diagnostics`",
        "shards that may differ from another run's in last bits: 3",
    ]
    status = "SELECT role, count(*) FROM diagnostics WHERE status <> 'ok' GROUP BY 1 ORDER BY 1"
    assert open_run(run.run).sql(status).fetchall() == [("example", 4), ("query", 1)]

    # An interrupted run tells of the shards of before, too; one with nothing to do is silent.
    store = Path(run.store_url)
    for table in ("length", "diagnostics"):
        for path in (store / table).glob("*.json"):
            path.unlink()
        (store / table / f"{sorted(details['inexact_shards'])[0]}.parquet").unlink()
    again = Listening()
    execute_run(make("two"), again)
    assert again.done == {"lengths": 1}
    assert again.told == {"lengths": heard.told["lengths"], "words": []}


BAD_SHARDS = {("example", 0), ("example", 10), ("query", 0)}


def test_an_instance_stands_for_the_first_table_of_its_stage(make: Any) -> None:
    """`words` reads `lengths`, whose stage writes diagnostics as well."""
    run = make("one")
    execute_run(run)
    assert manifest(run, "tally").inputs["lengths"] == manifest(run, "length").key


def test_appended_shards_compute_the_way_to_the_root(make: Any, tmp_path: Path) -> None:
    execute_run(make("one"))
    before = {p: p.read_bytes() for p in (tmp_path / "store/tally").glob("*.parquet")}
    heard, run = Listening(), make("two", N_EXAMPLES + 4)
    execute_run(run, heard)
    # Leaves 20 and 21, the node over leaves 16 to 21, the root.
    assert heard.done == {"lengths": 2, "words": 4}
    assert {p: p.read_bytes() for p in before} == before
    found = open_run(run.run).sql("SELECT word, n FROM tables.tally").fetchall()
    assert dict(found) == tally(N_EXAMPLES + 4)


def test_a_run_that_fails_in_a_merge_goes_on_there(make: Any, tmp_path: Path) -> None:
    run = make("one", broken_at=4)
    with pytest.raises(TaskError, match=r"words, merge 2 of level 1: DataError: found a broken"):
        execute_run(run)
    store = tmp_path / "store/tally"
    early = {p: p.stat().st_mtime_ns for p in store.glob("*.parquet")}
    assert len(early) == 22
    # A leaf below a node that is there is not asked for again.
    stored = Store(run.store_url)
    words = make_plan(run, read_corpus(run, stored), stored).nodes[-1]
    (leaf,) = (p for p in early if p.stem == words.tasks[20].parts[3])
    leaf.unlink()
    early.pop(leaf)
    heard = Listening()
    execute_run(make("two"), heard)
    assert heard.done == {"words": 2}
    assert {p: p.stat().st_mtime_ns for p in early} == early
    assert not leaf.exists()


def test_partial_results_below_a_finished_node_may_be_gone(make: Any, tmp_path: Path) -> None:
    run = make("one")
    execute_run(run)
    store = tmp_path / "store/tally"
    whole = store / f"{manifest(run, 'tally').shards[0].key}.parquet"
    expected = whole.read_bytes()
    for path in store.glob("*.parquet"):
        if path != whole:
            path.unlink()
    heard = Listening()
    execute_run(make("two"), heard)
    assert heard.done == {}
    # Without the root, everything is computed again, to the same bytes.
    whole.unlink()
    execute_run(make("three"), heard)
    assert heard.done == {"words": 24}
    assert whole.read_bytes() == expected


def test_gauss_newton_of_half_precision_gradients_with_rows_missing(make: Any) -> None:
    own = Curvature(kind="gauss_newton", ntk="logits", predictions="guesses")
    stages = {"logits": Logits(), "guesses": Guesses(), "curvature": own}
    run, heard = dataclasses.replace(make("one"), stages=stages), Listening()
    execute_run(run, heard)
    found = manifest(run, "curvature")
    assert manifest(run, "ntk").dtype == "float16"
    assert found.details["n_left_out"] == len(BAD)
    assert heard.told["curvature"] == [
        "rows left out, as one of the tables that are read lacks them: 4"
    ]
    matrices = read_curvature(Store(run.store_url).read_table(found))
    ids = [i for i in range(N_EXAMPLES) if i not in BAD]
    g = gradients_of(ids).astype(np.float64).reshape(len(ids), 2, 5)
    logits = logits_of(ids).astype(np.float64)
    for name, start, size in BLOCKS:
        expected = np.zeros((size, size))
        for jacobian, row in zip(g[:, :, start : start + size], logits, strict=True):
            # Of two classes: p (1 - p) times the outer product of the difference.
            p = 1 / (1 + np.exp(row[1] - row[0]))
            expected += p * (1 - p) * np.outer(*[jacobian[0] - jacobian[1]] * 2) / len(ids)
        np.testing.assert_allclose(matrices[name], expected, rtol=0, atol=1e-14)
