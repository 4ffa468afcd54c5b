"""A corpus is read by the workers of a cluster, one of which dies; the memory of the driver."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus import read_corpus
from pipeline.engine import OnRay
from pipeline.ingest_calls import IngestCalls
from pipeline.progress import Progress
from pipeline.settings import RaySettings, Resources, Run
from stages.corpus.pieces import in_turn
from stages.corpus.source import Source
from stages.stage import DataError
from storage.table import Store

ROOT = Path(__file__).parents[2]


class Mortal:
    """Refuses no row; the first process that is asked about a row with some word dies of it."""

    learns_completions = False

    def __init__(self, grave: Path, word: str):
        self.grave, self.word = grave, word
        self.key = [["mortal", word]]

    def refusals(
        self, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> list[str | None]:
        if self.word in texts and not self.grave.exists():
            self.grave.touch()
            os._exit(1)
        return [None] * len(texts)


class Rows(Progress):
    """Keeps how many rows it heard of."""

    def __init__(self) -> None:
        self.heard: dict[str, list[tuple[int, int]]] = {}

    def counted(self, name: str, done: int, total: int) -> None:
        self.heard.setdefault(name, []).append((done, total))


@pytest.fixture
def ray_engine() -> Iterator[OnRay]:
    engine = OnRay(RaySettings())
    yield engine
    engine.close()


@pytest.mark.ray
@pytest.mark.system
def test_workers_give_what_one_process_gives_also_where_one_dies(
    tmp_path: Path, ray_engine: OnRay
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"id": i % 190, "text": f"text {i}", "label": i % 2} for i in range(200)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = Run(str(tmp_path / "run"), Source(str(path), id="id"), shard_size=16)
    wanted = read_corpus(given, Store(str(tmp_path / "here")))
    heard = Rows()
    calls = IngestCalls(lambda: ray_engine, Resources(workers=2), heard)
    mortal: Any = Mortal(tmp_path / "grave", "text 150")
    store = Store(str(tmp_path / "there"))
    found = read_corpus(given, store, readers=mortal, each=calls, piece_bytes=500)
    assert (tmp_path / "grave").exists()
    assert {t: m.key for t, m in found.tables.items()} == {
        t: m.key for t, m in wanted.tables.items()
    }

    def files(place: str) -> dict[str, bytes]:
        found = (tmp_path / place).rglob("*.parquet")
        return {str(f.relative_to(tmp_path / place)): f.read_bytes() for f in found}

    assert files("there") == files("here")
    assert heard.heard["reading rows"][0] == (0, 200)
    assert heard.heard["reading rows"][-1] == (200, 200)
    assert heard.heard["writing rows"][-1] == (190, 190)
    # What is wrong with a source is said as it is said here.
    path.write_text(path.read_text().replace('"id": 7,', '"id": [7],'))
    with pytest.raises(DataError) as error:
        read_corpus(given, store, each=calls, piece_bytes=500)
    with pytest.raises(DataError) as here:
        read_corpus(given, store, each=in_turn, piece_bytes=500)
    assert str(error.value).startswith(f"{path}: found [7] in the id column")
    assert str(here.value) == str(error.value)


MEMORY = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pipeline.corpus import read_corpus
from pipeline.corpus_shards import make_shards
from pipeline.settings import Run
from stages.corpus.source import Source
from storage.table import Store

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

def each(function, shared, items):
    # One worker, which keeps what it takes to itself.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for start in range(0, len(items), 4):
            some = items[start : start + 4]
            results = pool.map(function, [shared] * len(some), some)
            yield from ((start + at, result) for at, result in enumerate(results))

if __name__ == "__main__":
    folder, n = Path(sys.argv[1]), int(sys.argv[2])
    source = Source(str(folder / f"rows{n}.parquet"), id="id")
    run = Run(str(folder / "run"), source, shard_size=n // 20)
    read_corpus(run, Store(str(folder / f"store{n}")), each=each)
    print(peak())
"""


@pytest.mark.slow
@pytest.mark.system
def test_the_driver_holds_a_few_bytes_a_row(tmp_path: Path) -> None:
    """From 0.25 to 2.25 million rows its peak grows by at most 20 bytes a row."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    script = tmp_path / "script.py"
    script.write_text(MEMORY)
    peaks = []
    sizes = (250_000, 2_250_000)
    for n in sizes:
        numbers = np.random.default_rng(0).permutation(n)
        text = pa.array(np.char.add("a rather short text ", numbers.astype(str)))
        table = pa.table({"id": numbers, "text": text, "label": numbers % 2})
        pq.write_table(table, tmp_path / f"rows{n}.parquet", row_group_size=50_000)
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path), str(n)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    assert (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]) <= 20
    assert peaks[1] < 1.5e9
