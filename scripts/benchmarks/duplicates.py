"""Near duplicates and outliers: cost at a million rows, and how many are found.

Cost: sentences of six to 25 words by a Markov chain of order one over the words of real sets; a
twentieth of them are copies of others in which one word was dropped, changed, added or reversed.
`assay` is asked for each size in a process of its own with one thread, the peers datasketch and
rensa up to `--peers` rows. Long texts (`--long`) are twelve such sentences each, every hundredth
with 15 % of the words of another one's beginning in place of its own. Found: of the planted pairs
whose Jaccard similarity is 0.7 or more, those in one cluster; in real sets, of all pairs of rows
that reach 0.7 by comparing all, the share, and pairs to read. Outliers: rows of other corpora, and
messages of an editor in 12 languages where it is installed (`--messages`), mixed into real sets;
precision and recall of the flags, and the area under the ROC curve beside the mean distance to ten
neighbours and the leverage. Chats: prompts with several answers (`same_prompts.py`).

ALL holds the labelled sets, each a folder with train.parquet.
"""

import argparse
import gettext
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.environment import MODEL, OURS, ROOT, environment
from benchmarks.same_prompts import of_chats

PEERS = ("datasketch==2.0.0", "rensa==0.5.0", "numpy", "scipy", "pyarrow")
SOURCES = ("sst2", "subj", "cola", "trec", "tweeteval_hate", "tweeteval_emotion", "tweeteval_emoji")
LEAST, LONGEST, SHARE, THRESHOLD = 6, 26, 20, 0.7
FROM, TOGETHER, REPLACED, GROUP = 200_000, 12, 0.15, 50_000
"""Of long texts: the sentences they are made of, how many each has, the share of a copy's words
that are another's, and rows that are written at a time."""
SEEDS = 5
"""Draws of outliers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder per data set")
    parser.add_argument("--sizes", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--long", nargs="*", type=int, default=[100_000], help="sizes")
    parser.add_argument("--peers", type=int, default=100_000, help="most rows that peers are given")
    parser.add_argument("--real", nargs="*", default=["trec", "subj", "cola", "tweeteval_emoji"])
    parser.add_argument("--show", type=int, default=3, help="pairs of each real set to read")
    parser.add_argument("--chats", type=int, default=400, help="copies with another answer")
    parser.add_argument("--outliers", nargs="*", default=["tweeteval_hate", "subj"])
    parser.add_argument("--foreign", nargs="*", default=["gsm8k", "trec", "gpteacher_toolformer"])
    parser.add_argument("--messages", default="/usr/share/vim/vim90/lang", help="vim's catalogs")
    parser.add_argument("--rows", type=int, default=2000, help="of a set with outliers")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the case."""
    data, work = Path(arguments.data).resolve(), Path(arguments.work).resolve() / "duplicates"
    work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"threshold": THRESHOLD}
    for n in arguments.sizes:
        result[str(n)] = of_size(n, data, work, arguments.peers)
        print(json.dumps({n: result[str(n)]}), file=sys.stderr, flush=True)
    for n in arguments.long:
        result[f"{n} long"] = of_long(n, data, work)
        print(json.dumps({f"{n} long": result[f"{n} long"]}), file=sys.stderr, flush=True)
    for name in arguments.real:
        result[name] = of_real(name, data, work, arguments.show)
        print(json.dumps({name: result[name]}, indent=1), file=sys.stderr, flush=True)
    if arguments.chats:
        result["chats"] = of_chats(data, work, arguments.chats, arguments.show)
        print(json.dumps({"chats": result["chats"]}, indent=1), file=sys.stderr, flush=True)
    if arguments.outliers:
        result["outliers"] = of_outliers(arguments, data)
    return result


def texts_of(path: Path) -> list[str]:
    """The texts or prompts of a data set."""
    table = pq.read_table(path / "train.parquet")
    found: list[str] = table["text" if "text" in table.column_names else "prompt"].to_pylist()
    return found


def contest(name: str, path: Path) -> dict[str, Any]:
    """What one contestant found in the texts of a file, and what it took."""
    is_ours = name == "assay"
    python = Path(sys.executable) if is_ours else environment("peers-near", PEERS)
    script = ROOT / "scripts" / "benchmarks" / "duplicates_contestant.py"
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": OURS if is_ours else ""}
    # -P: beside the script lie files with the names of our rooms.
    done = subprocess.run(
        [python, "-P", script, name, path],
        env=settings,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def of_size(n: int, data: Path, work: Path, most_of_peers: int) -> dict[str, Any]:
    """Cost of all contestants at `n` texts, and the share of planted pairs that was found."""
    rng = np.random.default_rng(0)
    texts, pairs = sentences(n, data, rng)
    path = work / f"{n}.parquet"
    pq.write_table(pa.table({"id": np.arange(n), "text": texts}), path, row_group_size=50_000)
    near = [(a, b) for a, b in pairs.tolist() if jaccard(texts[a], texts[b]) >= THRESHOLD]
    found = {"assay": recalled(path, near)}
    for peer in ("datasketch", "rensa"):
        if n <= most_of_peers:
            found[peer] = contest(peer, path)
            found[peer].pop("clusters")
    return found


def recalled(path: Path, near: list[tuple[int, int]]) -> dict[str, Any]:
    """What `assay` took for the texts of a file, and how many of the pairs `near` it found."""
    found = contest("assay", path)
    clusters = found.pop("clusters")
    is_found = [clusters.get(str(a), a) == clusters.get(str(b), b) for a, b in near]
    return {**found, "planted": len(near), "found": sum(is_found)}


def of_long(n: int, data: Path, work: Path) -> dict[str, Any]:
    """Cost at `n` long texts, and how many of the planted copies were found."""
    rng = np.random.default_rng(0)
    drawn = np.array(sentences(FROM, data, rng)[0], object)
    path, near, n_characters = work / f"long-{n}.parquet", [], 0
    with pq.ParquetWriter(path, pa.schema({"id": pa.int64(), "text": pa.string()})) as writer:
        for first in range(0, n, GROUP):
            count = min(GROUP, n - first)
            texts = [" ".join(drawn[row]) for row in rng.integers(0, FROM, (count, TOGETHER))]
            for at in range(0, count - 2, 100):
                words, others = texts[at].split(" "), texts[at + 2].split(" ")
                changed = int(len(words) * REPLACED)
                texts[at + 1] = " ".join(words[changed:] + others[:changed])
                if jaccard(texts[at], texts[at + 1]) >= THRESHOLD:
                    near.append((first + at, first + at + 1))
            ids = np.arange(first, first + count)
            writer.write_table(pa.table({"id": ids, "text": texts}))
            n_characters += sum(map(len, texts))
    return {"characters": n_characters / n, **recalled(path, near)}


def sentences(n: int, data: Path, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """`n` sentences, and the pairs of an original and its changed copy, which stands later."""
    words = [words for name in SOURCES for text in texts_of(data / name) if (words := text.split())]
    flat = np.array([word for one in words for word in [*one, "\n"]])
    vocabulary, codes = np.unique(flat, return_inverse=True)
    order, end = np.argsort(codes, kind="stable"), codes[-1]
    starts = np.searchsorted(codes[order], np.arange(len(vocabulary) + 1))
    made, at = np.zeros((n, LONGEST), np.int64), rng.integers(0, len(codes) - 1, n)
    for place in range(LONGEST):
        word = codes[(at + 1) % len(codes)]
        while (is_end := word == end).any():
            at[is_end] = rng.integers(0, len(codes) - 1, int(is_end.sum()))
            word = codes[(at + 1) % len(codes)]
        made[:, place] = word
        drawn = rng.random(n) * (starts[word + 1] - starts[word])
        at = order[starts[word] + drawn.astype(np.int64)]
    lengths = rng.integers(LEAST, LONGEST, n)
    rows = [vocabulary[row[:length]].tolist() for row, length in zip(made, lengths, strict=True)]
    first = rng.integers(0, n // 2, n // SHARE)
    second = n // 2 + rng.permutation(n - n // 2)[: n // SHARE]
    for one, other in zip(first, second, strict=True):
        changed, place = list(rows[one]), int(rng.integers(len(rows[one])))
        word = str(vocabulary[rng.integers(len(vocabulary))])
        changed[place : place + 1] = [[], [word], [word, changed[place]], [changed[place][::-1]]][
            int(rng.integers(4))
        ]
        rows[other] = changed
    return [" ".join(row) for row in rows], np.stack([first, second], 1)


def pieces(texts: list[str]) -> list[set[str]]:
    """The shingles of each text, by sets of strings."""
    from stages.reading.shingles import letters_of

    bare = letters_of(texts).to_pylist()
    return [{text[at : at + 5].ljust(5, "\0") for at in range(len(text))} for text in bare]


def jaccard(one: str, other: str) -> float:
    """The similarity of two texts with a letter."""
    first, second = pieces([one, other])
    return len(first & second) / max(1, len(first | second))


def of_real(name: str, data: Path, work: Path, n_shown: int) -> dict[str, Any]:
    """The share of all pairs that reach the threshold that are in one cluster; pairs to read."""
    from scipy.sparse import csr_matrix

    texts = texts_of(data / name)
    path = work / f"{name}.parquet"
    pq.write_table(pa.table({"id": np.arange(len(texts)), "text": texts}), path)
    found = contest("assay", path)
    clusters = {int(row): cluster for row, cluster in found.pop("clusters").items()}
    sets, numbers = pieces(texts), {}
    columns = [numbers.setdefault(piece, len(numbers)) for own in sets for piece in own]
    sizes = np.array([len(own) for own in sets])
    shape = (len(sets), len(numbers))
    ends = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape)
    near = []
    for start in range(0, len(sets), 200):
        both = (matrix[start : start + 200] @ matrix.T).tocoo()
        one, other = both.row + start, both.col
        is_near = both.data >= THRESHOLD * (sizes[one] + sizes[other] - both.data)
        is_near &= one < other
        alike = both.data[is_near] / (sizes[one] + sizes[other] - both.data)[is_near]
        near += zip(one[is_near].tolist(), other[is_near].tolist(), alike.tolist(), strict=True)
    is_found = [clusters.get(one, one) == clusters.get(other, other) for one, other, _ in near]
    shown = np.random.default_rng(0).permutation(len(near))[:n_shown].tolist()
    read = [(round(near[at][2], 2), texts[near[at][0]], texts[near[at][1]]) for at in shown]
    return {
        **found,
        "rows": len(texts),
        "all_pairs": len(near),
        "recall": float(np.mean(is_found)),
        "read": read,
    }


def of_outliers(arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Flags of rows that were mixed into real sets, at one and five in a hundred."""
    sources = {name: texts_of(data / name) for name in {*arguments.outliers, *arguments.foreign}}
    if messages := messages_of(Path(arguments.messages)):
        sources["messages"] = messages
    vectors = {name: embedded(texts, arguments.rows) for name, texts in sorted(sources.items())}
    result: dict[str, Any] = {}
    for name in arguments.outliers:
        clean = vectors[name]
        result[name] = {"flagged_of_clean": float(flagged(clean)[0].mean())}
        for other in sorted({*sources} - {*arguments.outliers}):
            for share in (0.01, 0.05):
                draws = [mixed_in(clean, vectors[other], share, seed) for seed in range(SEEDS)]
                means = np.mean([list(draw.values()) for draw in draws], 0).round(3)
                result[name][f"{other} {share}"] = dict(zip(draws[0], means.tolist(), strict=True))
        print(json.dumps({name: result[name]}, indent=1), file=sys.stderr, flush=True)
    return result


def messages_of(folder: Path) -> list[str]:
    """Translated messages of at least 30 characters, without placeholders."""
    found = []
    for path in sorted(folder.glob("*/LC_MESSAGES/vim.mo")):
        try:
            with path.open("rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        except UnicodeDecodeError:
            continue
        own = [text for key, text in catalog.items() if key != text and isinstance(text, str)]
        own = [text for text in own if 30 < len(text) < 160 and "%" not in text]
        found += [own[at] for at in np.random.default_rng(0).permutation(len(own))[:15]]
    return found


def embedded(texts: list[str], most: int) -> np.ndarray:
    """Embeddings of `most` texts, drawn at random."""
    from benchmarks.memory import MemoryInputs, run, text_table

    from stages.features.embedding import Embedding
    from stages.model.spec import ModelSpec
    from stages.reading.vectors import matrix_of

    chosen = np.random.default_rng(0).permutation(len(texts))[:most]
    inputs = MemoryInputs(text=text_table([texts[at] for at in chosen]))
    return matrix_of(run(Embedding(ModelSpec(MODEL)), inputs)["vector"])


def flagged(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The decisions and distances of the stage."""
    from benchmarks.memory import MemoryInputs

    from stages.predictions.outliers import Outliers
    from stages.reading.vectors import vector_rows

    ids = pa.table({"id": np.arange(len(vectors)), "role": ["example"] * len(vectors)})
    table = pa.Table.from_batches([vector_rows(ids, np.arange(len(vectors)), vectors)])

    stage = Outliers()
    inputs = MemoryInputs(**{stage.features: table})
    inputs.opened = stage.open(inputs)
    ((_, rows),) = stage.compute(inputs)
    is_outlier = rows["is_outlier"].to_numpy(zero_copy_only=False)
    return is_outlier, rows["distance"].to_numpy()


def mixed_in(clean: np.ndarray, other: np.ndarray, share: float, seed: int) -> dict[str, float]:
    """Precision and recall of the flags, and the area of three scores."""
    chosen = np.random.default_rng(seed).permutation(len(other))[: round(share * len(clean))]
    vectors = np.concatenate([clean, other[chosen]])
    is_planted = np.arange(len(vectors)) >= len(clean)
    is_outlier, distances = flagged(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    centred = unit - unit.mean(0)
    covariance = centred.T @ centred / len(unit)
    ridge = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return {
        "precision": float(is_planted[is_outlier].mean()) if is_outlier.any() else 0.0,
        "recall": float(is_outlier[is_planted].mean()),
        "area": area(distances, is_planted),
        "area_neighbours": area(-np.sort(cosines, 1)[:, -10:].mean(1), is_planted),
        "area_leverage": area(
            (centred @ np.linalg.inv(covariance + ridge) * centred).sum(1), is_planted
        ),
    }


def area(scores: np.ndarray, is_planted: np.ndarray) -> float:
    """The area under the ROC curve; without ties."""
    ranks, n = np.argsort(np.argsort(scores)) + 1, int(is_planted.sum())
    return float((ranks[is_planted].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))
