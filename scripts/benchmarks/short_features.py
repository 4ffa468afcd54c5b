"""Which features flags should use, how short they may be, and whether cheap ones may go first.

MiniLM frozen; ALL holds the folders sst2, trec (6 classes), tweeteval_hate and tweeteval_emoji (20
classes), each with train.parquet and validation.parquet: columns id, text, label. Of each, draws
of training rows with planted wrong labels: `even`, a tenth of the rows moved to any other class;
`similar`, a fifth of the rows moved to the class whose words are most like. Features by
`assay run` in this process, one thread. Then in memory, by the closed forms of kernel regression:

- `flags`: the area under the ROC curve of planted labels by the order of `label_score`, and the
  kernel's accuracy on validation rows, of full vectors and of short ones: products with the leading
  directions of F'F (rows of unit length, not centred), scaled to unit length again or not, random
  sketches, and the leading directions of a sample of rows.
- `values`: Spearman's correlation of Shapley values by short vectors with those by full ones,
  beside that of two seeds of the full ones.
- `cascade`: flags where only the rows that cheap features doubt get expensive ones.

Draw 0 is for choosing, draw 1 for what was chosen.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from benchmarks.planted import FLIPS
from benchmarks.short_cascade import measured_cascade
from benchmarks.short_rows import FEATURES, Drawn, Rows, fitted, judged, read, shortened, unit

DATASETS = ("sst2", "trec", "tweeteval_hate", "tweeteval_emoji")
DIRECTIONS = (64, 128, 256, 512, 1024)
FORMS = ("cut", "unit", "sketch", "sampled")
"""Products with the leading directions as they are, of unit length, and with others of unit length:
a random matrix, and the leading directions of some rows."""
SAMPLE = 1000
"""Rows whose directions stand for those of all rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder per data set")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--rows", type=int, default=3000, help="training rows of each draw")
    parser.add_argument("--queries", type=int, default=500, help="validation rows at most")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--flips", nargs="+", default=list(FLIPS), choices=list(FLIPS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--features", nargs="+", default=list(FEATURES), choices=FEATURES)
    parser.add_argument("--directions", type=int, nargs="+", default=list(DIRECTIONS))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--rounds", type=int, default=12, help="of `values`")
    parser.add_argument("--value-queries", type=int, default=200, help="of `values`, at most")
    parser.add_argument("--utilities", nargs="+", default=["accuracy", "cross_entropy", "margin"])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every part on every draw."""
    torch.set_num_threads(1)
    found = []
    for name in arguments.datasets:
        for draw in arguments.draws:
            for flips in arguments.flips:
                start = time.time()
                drawn = read(arguments, name, draw, flips)
                one: dict[str, Any] = {"set": name, "draw": draw, "flips": flips}
                one["cpu_s_per_row"] = drawn.cpu_s_per_row
                for part in arguments.parts:
                    one[part] = PARTS[part](drawn, arguments)
                one["seconds"] = round(time.time() - start, 1)
                found.append(one)
                print(json.dumps(one), file=sys.stderr, flush=True)
    return {"rows": arguments.rows, "queries": arguments.queries, "found": found}


def measured_flags(drawn: Drawn, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every length of every feature table."""
    found: dict[str, Any] = {}
    rng = torch.Generator().manual_seed(0)
    for name in arguments.features:
        rows = drawn.features[name]
        dim = rows.examples.shape[1]
        full = fitted(rows, drawn.given, drawn.n_classes)
        of_all = found[name] = {"dim": dim, "full": judged(full, drawn)}
        sample = rows.examples[torch.randperm(len(rows.examples), generator=rng)[:SAMPLE]]
        for k in [k for k in arguments.directions if k < dim]:
            kept = float(full.values[:k].sum() / full.values.sum())
            of_all[str(k)] = {"kept": round(kept, 4)}
            for form in arguments.forms:
                if form == "sampled":
                    basis = torch.linalg.svd(sample, full_matrices=False)[2].T[:, :k]
                elif form == "sketch":
                    basis = sketch(dim, k, rng)
                short = (
                    shortened(full, k, form == "unit")
                    if form in ("cut", "unit")
                    else Rows(*(unit(part @ basis) for part in rows))
                )
                fit = fitted(short, drawn.given, drawn.n_classes)
                of_all[str(k)][form] = judged(fit, drawn)
    return found


def sketch(dim: int, k: int, rng: torch.Generator) -> torch.Tensor:
    """A random matrix that adds each number, with a random sign, to one of `k`."""
    place = torch.randperm(dim, generator=rng) % k
    signs = torch.randint(0, 2, (dim,), generator=rng, dtype=torch.float64) * 2 - 1
    return torch.zeros(dim, k, dtype=torch.float64).index_put_((torch.arange(dim), place), signs)


def measured_values(drawn: Drawn, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rank correlations with the values by full vectors, and areas under ROC curves, by utility.

    Of rows of unit length before they are cut, from the same coalitions.
    """
    from stages.metrics.ranks import auc, spearman

    found: dict[str, Any] = {}
    for name in arguments.features:
        rows = drawn.features[name]
        full = fitted(rows, drawn.given, drawn.n_classes)
        tried = {"full": values(rows, drawn, arguments, seed=0)}
        tried["full, other seed"] = values(rows, drawn, arguments, seed=1)
        for k in [k for k in arguments.directions if k < rows.examples.shape[1]]:
            tried[str(k)] = values(shortened(full, k, is_unit=False), drawn, arguments, seed=0)
        found[name] = {
            form: {
                utility: {
                    "spearman": round(spearman(ours, tried["full"][utility]), 4),
                    "auc": round(auc(-ours, drawn.is_planted), 4),
                }
                for utility, ours in valued.items()
            }
            for form, valued in tried.items()
        }
    return found


def values(
    rows: Rows, drawn: Drawn, arguments: argparse.Namespace, seed: int
) -> dict[str, np.ndarray]:
    """Shapley values of the examples for each utility, as `freeshap` has them."""
    from stages.game.game import Game
    from stages.game.least_squares import RecursiveLeastSquares
    from stages.game.prefix_cholesky import PrefixCholesky
    from stages.game.utility import Judge
    from stages.game.utility import fitted as columns
    from stages.reading.supervision import one_hot
    from stages.surrogate.kernel import auto_ridge
    from stages.values.freeshap import FreeShap

    examples, answers = rows.examples, drawn.answers[: arguments.value_queries]
    queries = rows.queries[: len(answers)]
    targets = one_hot(drawn.given, drawn.n_classes) - 1 / drawn.n_classes
    some = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(examples))[:2048]))
    ridge = auto_ridge(examples[some] @ examples[some].T, targets[some])[0]
    damping = ridge * float(examples.square().sum(1).mean())
    judge, goal = Judge(answers, drawn.n_classes), columns(targets)
    signs, dim = judge.signs(), examples.shape[1]
    if dim < len(examples) / 4:
        signed = queries * signs[:, None]
        game = Game(
            len(examples),
            lambda: RecursiveLeastSquares(lambda at: examples[at], signed, goal, damping),
            judge,
            dim,
        )
    else:
        kernel, to_queries = examples @ examples.T, examples @ queries.T * signs
        game = Game(len(examples), lambda: PrefixCholesky(kernel, to_queries, goal, damping), judge)
    utilities = tuple(arguments.utilities)
    stage = FreeShap(rounds=arguments.rounds, seed=seed, utilities=utilities)
    played = stage.play(game)
    return {name: played.value[0, at].numpy() for at, name in enumerate(utilities)}


PARTS = {"flags": measured_flags, "values": measured_values, "cascade": measured_cascade}
