"""One contestant of `duplicates.py`, in a process of its own: pairs of nearly the same texts.

    python duplicates_contestant.py NAME FILE

FILE is Parquet with a column `text`. Prints CPU-seconds, the memory that was added at the peak, and
how many pairs (`datasketch`, `rensa`: candidates) or rows (`assay`) were found.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

THRESHOLD, HASHES, BANDS = 0.7, 96, 24


def pieces(text: str) -> list[bytes]:
    """Five characters from each one on, as the peers take them."""
    lower = " ".join(text.lower().split())
    return [lower[at : at + 5].encode() for at in range(max(1, len(lower) - 4))]


def by_datasketch(texts: list[str]) -> int:
    """Candidates of `MinHashLSH` with as many hashes."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(params=(BANDS, HASHES // BANDS), num_perm=HASHES)
    n_found = 0
    for number, sketch in enumerate(
        MinHash.generator((pieces(text) for text in texts), num_perm=HASHES)
    ):
        n_found += len(index.query(sketch))
        index.insert(number, sketch)
    return n_found


def by_rensa(texts: list[str]) -> int:
    """Candidates of `RMinHashLSH` with as many hashes."""
    import rensa

    sets = [[piece.decode() for piece in pieces(text)] for text in texts]
    sketches = rensa.RMinHash.from_token_sets(sets, HASHES, 0)
    index = rensa.RMinHashLSH(threshold=THRESHOLD, num_perm=HASHES, num_bands=BANDS)
    index.insert_many(sketches)
    return sum(len(found) - 1 for found in index.query_all(sketches)) // 2


def by_assay(path: str) -> tuple[int, dict[int, int]]:
    """Rows of the stage, and the cluster of each; the texts are read 1,000 at a time."""
    import pyarrow as pa
    from benchmarks.memory import MemoryInputs

    from stages.predictions.near_duplicates import NearDuplicates
    from stages.reading.vectors import evenly
    from stages.stage import Role, Tell

    file = pq.ParquetFile(path)

    class File(MemoryInputs):
        """The texts of a file, 1,000 a shard, and no query."""

        def by_shard(self, name: str, role: Role, most: int | None = None) -> Iterator[pa.Table]:
            """Shards of examples."""
            n_shards = -(-file.metadata.num_rows // 1000) if role == "example" else 0
            wanted = set(evenly(n_shards, most or n_shards).tolist())
            for at, batch in enumerate(file.iter_batches(1000, columns=["id", "text"])):
                if at in wanted:
                    table = pa.Table.from_batches([batch])
                    yield table.append_column("text_b", pa.nulls(len(table), pa.string()))

        @property
        def tell(self) -> Tell:
            """Shows it."""
            return shown

    def shown(notice: str | None = None, **facts: Any) -> None:
        """What the stage tells."""
        print(notice, file=sys.stderr)

    inputs = File()
    ((_, rows),) = NearDuplicates(similarity=THRESHOLD).compute(inputs)
    clusters = zip(rows["example_id"].to_pylist(), rows["cluster"].to_pylist(), strict=True)
    return rows.num_rows, dict(clusters)


def peak_kilobytes() -> int:
    """The most memory that the process has had; what `getrusage` says begins with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (peak,) = re.findall(r"VmHWM:\s+(\d+)", status)
    return int(peak)


def main() -> None:
    """Measures the contestant that the command line names."""
    name, path = sys.argv[1:]
    clusters: dict[int, int] = {}
    if name == "assay":
        # Imported before anything is measured.
        import stages.predictions.near_duplicates  # noqa: F401
    before = peak_kilobytes()
    start = time.process_time()
    if name == "assay":
        n_found, clusters = by_assay(path)
    else:
        texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
        n_found = by_datasketch(texts) if name == "datasketch" else by_rensa(texts)
    seconds = time.process_time() - start
    added = peak_kilobytes() - before
    told = {"cpu_s": round(seconds, 2), "added_bytes": added * 1024, "found": n_found}
    print(json.dumps({**told, "clusters": clusters}))


if __name__ == "__main__":
    main()
