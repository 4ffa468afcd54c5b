"""Corpora of any size, written in bounded memory: real texts with dropped words, and vectors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.planted import planted

BINARY = ("sst2", "mr", "subj", "cola", "tweeteval_hate")
SOURCES = (*BINARY, "trec", "tweeteval_emotion", "tweeteval_emoji")
DROPPED = 2
"""Words that a sampled text loses."""
LEAST = 4
"""Words that a text has at least, to be sampled."""
ROWS_PER_FILE, ROWS_PER_GROUP = 200_000, 50_000
QUERIES = 872
NOISE = 0.2
"""Standard deviation of what is added to a row's level, which is of unit variance."""


def real(source: Path, folder: Path, most: int | None, queries: int, flips: str, seed: int) -> None:
    """Rows of one real set with planted wrong labels; the right one is the column `truth`.

    The rows keep their order; `most` takes that many, drawn at random.
    """
    train = pq.read_table(source / "train.parquet", columns=["id", "text", "label"])
    if most is not None and most < train.num_rows:
        chosen = np.random.default_rng(seed).permutation(train.num_rows)[:most]
        train = train.take(np.sort(chosen))
    truth = train["label"].to_numpy()
    given = planted(truth, train["text"].to_pylist(), int(truth.max()) + 1, flips, seed)
    train = train.append_column("truth", pa.array(truth)).set_column(2, "label", pa.array(given))
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    pq.write_table(train, folder / "corpus/part-00000.parquet", row_group_size=ROWS_PER_GROUP)
    validation = pq.read_table(source / "validation.parquet", columns=["id", "text", "label"])
    chosen = np.random.default_rng(seed).permutation(validation.num_rows)[:queries]
    pq.write_table(validation.take(np.sort(chosen)), folder / "query.parquet")


def sampled(data: Path, folder: Path, n: int, labels: str, seed: int) -> None:
    """`n` texts drawn with replacement from the training rows of real sets, two words dropped.

    `labels` is `binary`, the label that a text has in a set of two classes, or `source`, the set
    itself. Each row says where it comes from (`set`, `row`) and which words it lost (`dropped`).
    The queries are validation rows of the same sets as they are.
    """
    names = BINARY if labels == "binary" else SOURCES

    def pool(split: str) -> tuple[list[list[str]], np.ndarray, np.ndarray, np.ndarray]:
        words, label, of_set, row = [], [], [], []
        for index, name in enumerate(names):
            table = pq.read_table(data / name / f"{split}.parquet", columns=["id", "text", "label"])
            texts = [text.split() for text in table["text"].to_pylist()]
            kept = [at for at, text in enumerate(texts) if len(text) >= LEAST]
            words += [texts[at] for at in kept]
            own = table["label"].to_numpy()[kept]
            label.append(own if labels == "binary" else np.full(len(kept), index))
            of_set.append(np.full(len(kept), index))
            row.append(table["id"].to_numpy()[kept])
        return words, np.concatenate(label), np.concatenate(of_set), np.concatenate(row)

    words, label, of_set, row = pool("train")
    lengths = np.array([len(text) for text in words])
    set_names = np.array(names)

    def rows(start: int, count: int) -> pa.Table:
        rng = np.random.default_rng([seed, start])
        at = rng.integers(0, len(words), count)
        first = rng.integers(0, lengths[at])
        second = (first + rng.integers(1, lengths[at])) % lengths[at]
        texts, dropped = [], []
        for index, one, other in zip(at.tolist(), first.tolist(), second.tolist(), strict=True):
            text = words[index]
            texts.append(" ".join(w for k, w in enumerate(text) if k != one and k != other))
            dropped.append([text[one], text[other]])
        return pa.table(
            {
                "id": np.arange(start, start + count),
                "text": texts,
                "label": label[at],
                "set": set_names[of_set[at]],
                "row": row[at],
                "dropped": dropped,
            }
        )

    _write(folder / "corpus", n, rows)
    words, label, of_set, row = pool("validation")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(words))[:QUERIES])
    queries = {
        "id": chosen,
        "text": [" ".join(words[at]) for at in chosen],
        "label": label[chosen],
        "set": set_names[of_set[chosen]],
        "row": row[chosen],
    }
    pq.write_table(pa.table(queries), folder / "query.parquet")


def vectors(folder: Path, n: int, dim: int, seed: int) -> None:
    """`n` vectors of `dim` numbers with two classes by a noisy linear teacher, in float32.

    The k-th number has a standard deviation of k^-1/2.
    """
    decay = np.arange(1, dim + 1) ** -0.5
    teacher = np.random.default_rng([seed, 1]).standard_normal(dim)
    teacher /= np.linalg.norm(teacher * decay)

    def rows(start: int, count: int) -> pa.Table:
        rng = np.random.default_rng([seed, 2, start])
        drawn = rng.standard_normal((count, dim)) * decay
        level = drawn @ teacher + NOISE * rng.standard_normal(count)
        flat = pa.array(drawn.astype(np.float32).reshape(-1))
        return pa.table(
            {
                "id": np.arange(start, start + count),
                "vector": pa.FixedSizeListArray.from_arrays(flat, dim),
                "label": (level > 0).astype(np.int64),
            }
        )

    _write(folder / "corpus", n, rows)
    pq.write_table(rows(n, QUERIES), folder / "query.parquet")


def _write(folder: Path, n: int, rows: Callable[[int, int], pa.Table]) -> None:
    """Files of at most 200,000 rows, of which one row group at a time is in memory.

    The last file of a folder that was written to its end is there, hence the folder is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, n, ROWS_PER_FILE)
    if (folder / f"part-{len(starts) - 1:05d}.parquet").exists():
        return
    for number, start in enumerate(starts):
        stop, writer = min(n, start + ROWS_PER_FILE), None
        name = folder / f"part-{number:05d}.parquet"
        for at in range(start, stop, ROWS_PER_GROUP):
            table = rows(at, min(ROWS_PER_GROUP, stop - at))
            if writer is None:
                writer = pq.ParquetWriter(name.with_suffix(".tmp"), table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        name.with_suffix(".tmp").rename(name)
