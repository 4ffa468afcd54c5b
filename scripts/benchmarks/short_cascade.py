"""Flags where only the rows that cheap features doubt get expensive ones."""

import argparse
from typing import Any

import numpy as np
from benchmarks.short_rows import Drawn, Rows, fitted, score

SHARES = (0.05, 0.1, 0.2)
"""Parts of the rows that a cascade doubts."""


def measured_cascade(drawn: Drawn, arguments: argparse.Namespace) -> dict[str, Any]:
    """Flags of NTK rows that cheap features doubt, against those of NTK rows of all.

    `among_doubted` is the share of planted labels in the doubted part; `recall` that of the
    planted labels among as many rows as were planted, at the top of the order in which doubted rows
    come first. A regression on the doubted rows' NTK alone is `alone`, one beside as many other
    rows `beside`. `overlap` is with as many rows at the top of the full NTK order.
    """
    ntk = drawn.features["ntk"]
    n, n_planted = len(drawn.given), int(drawn.is_planted.sum())
    of_all = score(fitted(ntk, drawn.given, drawn.n_classes), drawn.given)
    found: dict[str, Any] = {"all": _top(of_all, of_all, drawn.is_planted)}
    rng = np.random.default_rng(0)
    for name in ("hidden_states", "lower_layers", "embedding"):
        rows = drawn.features[name]
        cheap = score(fitted(rows, drawn.given, drawn.n_classes), drawn.given)
        order = np.argsort(cheap, kind="stable")
        found[name] = {"cheap": _top(cheap, of_all, drawn.is_planted)}
        for share in SHARES:
            doubted, rest = np.split(order, [round(share * n)])
            others = rng.choice(rest, min(len(rest), max(len(doubted), 600)), replace=False)
            one: dict[str, Any] = {
                "among_doubted": round(float(drawn.is_planted[doubted].sum() / n_planted), 4),
                "oracle": _top(_first(cheap, doubted, of_all[doubted]), of_all, drawn.is_planted),
            }
            for form, taken in (
                ("alone", doubted),
                ("beside", np.concatenate([doubted, others])),
            ):
                part = Rows(ntk.examples[taken], ntk.queries)
                fit = fitted(part, drawn.given[taken], drawn.n_classes)
                scores = score(fit, drawn.given[taken])[: len(doubted)]
                merged = _first(cheap, doubted, scores)
                mean = _first(cheap, doubted, scores + cheap[doubted])
                one[form] = _top(merged, of_all, drawn.is_planted)
                one[f"{form}, mean of both"] = _top(mean, of_all, drawn.is_planted)
            found[name][str(share)] = one
    return found


def _first(cheap: np.ndarray, doubted: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """An order of all rows in which the doubted come first, by `scores`, and the rest as before."""
    merged = cheap + 10.0
    merged[doubted] = scores
    return merged


def _top(scores: np.ndarray, full: np.ndarray, is_planted: np.ndarray) -> dict[str, float]:
    from stages.metrics.ranks import auc

    n = int(is_planted.sum())
    top, expected = np.argsort(scores)[:n], np.argsort(full)[:n]
    return {
        "auc": round(auc(-scores, is_planted), 4),
        "recall": round(float(is_planted[top].mean()), 4),
        "overlap": round(len(np.intersect1d(top, expected)) / n, 4),
    }
