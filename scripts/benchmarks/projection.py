"""What projecting gradients costs in exactness, against the exact kernel.

all-MiniLM-L6-v2 with a probe that is fitted on the training rows; the kernel of the stage `ntk`
(one class logit, all linear weights) for several lengths of its projections, and without any. Per
setting: on the first rows, the correlation of the entries off the diagonal and the relative
Frobenius error of the kernel, as it is and for gradients of unit length; and on all rows, the
accuracy of kernel regression (unit length, automatic ridge, as a run does it) on the validation
queries, beside that of the exact kernel.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.environment import MODEL

GRID = (
    *("16x16+0:2048", "16x16+0:null", "16x16+4:2048", "16x16+4:null", "32x32+0:8192"),
    *("32x32+0:null", "32x32+4:4096", "32x32+4:8192", "32x32+4:null", "48x24+0:8192"),
    *("48x24+4:2048", "48x24+4:4096", "48x24+4:8192", "48x24+4:null", "64x64+4:8192"),
)


class Setting(NamedTuple):
    """Fields of `stages.gradients.projection.Projection`."""

    inputs: int | None
    outputs: int | None
    principal: int
    dim: int | None


class Corpus(NamedTuple):
    """Examples, then queries; the first `n` are the examples."""

    texts: list[str]
    labels: np.ndarray
    n: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with train and validation.parquet")
    parser.add_argument("--rows", type=int, default=1000, help="examples of the regression")
    parser.add_argument("--queries", type=int, default=872)
    parser.add_argument("--kernel-rows", type=int, default=256, help="rows of the kernel's errors")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the random matrices")
    parser.add_argument(
        "--settings",
        nargs="+",
        type=setting,
        default=[setting(one) for one in GRID],
        help="inputs x outputs + principal : dim, such as 48x24+4:8192 or 32x32+0:null",
    )


def setting(text: str) -> Setting:
    """`inputs x outputs + principal : dim`, each of which may be null."""
    parts = text.replace("x", ":").replace("+", ":").split(":")
    inputs, outputs, principal, dim = (None if p == "null" else int(p) for p in parts)
    return Setting(inputs, outputs, principal or 0, dim)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the case."""
    from benchmarks.by_autograd import load
    from benchmarks.contestant import Rows
    from benchmarks.exact_kernel import exact_kernel

    from stages.model.hub import resolve
    from stages.model.spec import ModelSpec

    corpus = read(Path(arguments.data), arguments.rows, arguments.queries)
    head = fit_probe(corpus)
    folder = Path(arguments.work).resolve() / "projection"
    folder.mkdir(parents=True, exist_ok=True)
    model = str(resolve(ModelSpec(MODEL)))
    np.savez(folder / "head.npz", weight=np.stack(head["weight"].to_numpy()), bias=head["bias"])
    network = load({"model": model, "head": str(folder / "head.npz")})
    shapes = [
        (module.in_features, module.out_features)
        for module in network.modules()
        if hasattr(module, "in_features")
    ]
    say(f"exact kernel of {len(corpus.texts)} rows with {corpus.n}")
    exact = exact_kernel(network, Rows(token_ids(model, corpus.texts), corpus.labels), corpus.n)
    few = corpus._replace(texts=corpus.texts[:8], labels=corpus.labels[:8])
    gradients = projected(few, head, Setting(None, None, 0, None), 0).astype(np.float64)
    check = np.abs(gradients @ gradients.T - exact.products[:8, :8].numpy()).max()
    expected = regression(exact, corpus)
    found = []
    for one in arguments.settings:
        say(" ".join(f"{name} {value}" for name, value in one._asdict().items()))
        seeds = [
            judged(corpus, head, one, seed, exact, expected, arguments.kernel_rows)
            for seed in range(arguments.seeds)
        ]
        mean = {name: statistics.fmean(seed[name] for seed in seeds) for name in seeds[0]}
        found.append({**one._asdict(), **mean})
    size = 4 * sum(n_in * n_out for n_in, n_out in shapes)
    result = {
        "rows": corpus.n,
        "queries": len(corpus.texts) - corpus.n,
        "kernel_rows": min(arguments.kernel_rows, corpus.n),
        "seeds": arguments.seeds,
        "exact": {
            "row_bytes": size,
            "accuracy": right(expected, corpus),
            # From the stage's own gradients without projection, on 8 rows.
            "relative_error": float(check / np.abs(exact.products[:8, :8].numpy()).max()),
        },
        "settings": found,
    }
    print(markdown(result), file=sys.stderr)
    return result


def read(data: Path, n_examples: int, n_queries: int) -> Corpus:
    """The first rows of both files."""
    examples = pq.read_table(data / "train.parquet").slice(0, n_examples)
    queries = pq.read_table(data / "validation.parquet").slice(0, n_queries)
    table = pa.concat_tables([t.select(["text", "label"]) for t in (examples, queries)])
    return Corpus(table["text"].to_pylist(), table["label"].to_numpy(), examples.num_rows)


def token_ids(model: str, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, special tokens included."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    return ids


def fit_probe(corpus: Corpus) -> pa.Table:
    """The table `probe`, fitted on the examples."""
    from benchmarks.memory import MemoryInputs, label_table, run, text_table

    from stages.features.embedding import Embedding
    from stages.model.spec import ModelSpec
    from stages.predictions.probe import Probe

    examples = text_table(corpus.texts[: corpus.n])
    embedding = run(Embedding(ModelSpec(MODEL)), MemoryInputs(text=examples))
    label = label_table(corpus.labels[: corpus.n])
    return run(Probe(), MemoryInputs(embedding=embedding, label=label)).sort_by("class")


def projected(corpus: Corpus, probe: pa.Table, one: Setting, seed: int) -> np.ndarray:
    """Features of all rows by the stage `ntk`, shape (rows, dim), float32."""
    from benchmarks.memory import MemoryInputs, run, text_table

    from stages.features.ntk import Ntk
    from stages.gradients.projection import Projection
    from stages.model.spec import ModelSpec
    from stages.reading.vectors import matrix_of

    stage = Ntk(
        ModelSpec(MODEL), projection=Projection(**one._asdict(), seed=seed), dtype="float32"
    )
    return matrix_of(run(stage, MemoryInputs(text=text_table(corpus.texts), probe=probe))["vector"])


def judged(
    corpus: Corpus,
    probe: pa.Table,
    one: Setting,
    seed: int,
    exact: Any,
    expected: np.ndarray,
    kernel_rows: int,
) -> dict[str, float]:
    """How near one draw's kernel, and its predictions, are to the exact ones."""
    import torch
    from benchmarks.exact_kernel import kernel_of

    features = torch.from_numpy(np.array(projected(corpus, probe, one, seed)))
    found = kernel_of(iter(features.split(4096, dim=1)), corpus.n)
    k = min(kernel_rows, corpus.n)
    predicted = regression(found, corpus)
    result = {"row_bytes": 4 * features.shape[1]}
    for name, ours, theirs in (
        ("", found.products, exact.products),
        ("cosine_", found.cosines(), exact.cosines()),
    ):
        a, b = ours[:k, :k].numpy(), theirs[:k, :k].numpy()
        off = ~np.eye(k, dtype=bool)
        result[f"{name}correlation"] = float(np.corrcoef(a[off], b[off])[0, 1])
        result[f"{name}frobenius"] = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    result["accuracy"] = right(predicted, corpus)
    result["agreement"] = float((predicted == expected).mean())
    return result


def regression(kernel: Any, corpus: Corpus) -> np.ndarray:
    """The class that kernel regression predicts for each query."""
    import torch

    from stages.reading.supervision import one_hot
    from stages.surrogate.kernel import auto_ridge, mean_diagonal, solve

    cosines = kernel.cosines()
    examples, queries = cosines[: corpus.n], cosines[corpus.n :]
    targets = one_hot(torch.from_numpy(corpus.labels[: corpus.n].copy()), 2) - 0.5
    ridge, _ = auto_ridge(examples, targets)
    solution = solve(examples, targets, ridge * mean_diagonal(examples))
    predicted: np.ndarray = (queries @ solution.dual).argmax(1).numpy()
    return predicted


def right(predicted: np.ndarray, corpus: Corpus) -> float:
    """Share of the queries whose predicted class is their label."""
    return float((predicted == corpus.labels[corpus.n :]).mean())


def say(what: str) -> None:
    """One line of progress."""
    print(what, file=sys.stderr, flush=True)


def markdown(result: dict[str, Any]) -> str:
    """The settings as a table."""
    exact = result["exact"]
    lines = [
        "| inputs x outputs | principal | dim | bytes a row, float32 | correlation "
        "| relative error | correlation, unit length | accuracy | same prediction |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        f"| exact | | | {exact['row_bytes']:,} | 1 | 0 | 1 | {exact['accuracy']:.4f} | 1 |",
    ]
    for one in result["settings"]:
        lines.append(
            f"| {one['inputs']} x {one['outputs']} | {one['principal']} | {one['dim'] or 'null'} "
            f"| {one['row_bytes']:,.0f} | {one['correlation']:.4f} | {one['frobenius']:.4f} "
            f"| {one['cosine_correlation']:.4f} | {one['accuracy']:.4f} | {one['agreement']:.3f} |"
        )
    return "\n".join(lines)
