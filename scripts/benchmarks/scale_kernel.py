"""Kernel regression alone, from memory and from Parquet, beside the bare products of its sizes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from benchmarks.scale_corpora import NOISE, vectors
from benchmarks.watched import assay
from torch import Tensor

BLOCK = 4096
"""Rows at a time, as of a product at full speed."""
RIDGE_ROWS = 32_768
DUAL_ROWS = 10_000
"""Most rows for which the dual form is computed, too."""


def measured(work: Path, n: int, dim: int, seed: int) -> dict[str, Any]:
    """CPU-seconds of one core for `n` rows of `dim` numbers and two classes.

    `memory` has rows in float32 and the sums in float64; `parquet` is a run of assay on the same
    rows by all cores, its other stages beside.
    """
    torch.set_num_threads(1)
    rows = torch.from_numpy(_drawn(n, dim, seed))
    rng = torch.Generator().manual_seed(seed)
    level = rows @ torch.randn(dim, generator=rng)
    labels = (level + NOISE * level.std() * torch.randn(n, generator=rng) > 0).long()
    result: dict[str, Any] = {"kernel": n, "dim": dim, "bare": _bare(rows)}
    result["memory"] = _from_memory(rows, labels)
    del rows
    result["parquet"] = _from_parquet(work, n, dim, seed)
    bare_s = sum(result["bare"].values())
    result["memory_in_bare"] = round(sum(result["memory"]["cpu_s"].values()) / bare_s, 2)
    return result


def _drawn(n: int, dim: int, seed: int) -> np.ndarray:
    drawn = np.empty((n, dim), np.float32)
    decay = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    rng = np.random.default_rng(seed)
    for start in range(0, n, BLOCK):
        part = drawn[start : start + BLOCK]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= decay
    return drawn


def _blocks(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of unit length in float64, block by block."""
    for start in range(0, len(rows), BLOCK):
        at = slice(start, start + BLOCK)
        yield at, torch.nn.functional.normalize(rows[at].double(), dim=1)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    done = work()
    return round(time.process_time() - start, 4), done


def _bare(rows: Tensor) -> dict[str, float]:
    """CPU-seconds of F'F and F U in float64, of one block over and over."""
    n, dim = rows.shape
    block, basis = rows[:BLOCK].double(), torch.eye(dim, dtype=torch.float64)
    total, part = torch.zeros(dim, dim, dtype=torch.float64), torch.empty_like(block)
    times = n / len(block)

    def products() -> None:
        for _ in range(max(1, round(times))):
            total.addmm_(block.T, block)

    def in_basis() -> None:
        for _ in range(max(1, round(times))):
            torch.mm(block, basis, out=part)

    products_s, in_basis_s = _timed(products)[0], _timed(in_basis)[0]
    scale = times / max(1, round(times))
    return {"F'F": round(products_s * scale, 4), "F U": round(in_basis_s * scale, 4)}


def _from_memory(rows: Tensor, labels: Tensor) -> dict[str, Any]:
    """CPU-seconds of each part; where there are few rows, the distance to the dual form."""
    from stages.reading.supervision import one_hot
    from stages.surrogate.kernel import RIDGE_GRID
    from stages.surrogate.primal import add_products, decompose, out_of_sample, squared_errors

    n, dim = rows.shape
    targets = one_hot(labels, 2) - 0.5
    sums = torch.zeros(dim, dim, dtype=torch.float64)
    moment = torch.zeros(dim, 2, dtype=torch.float64)

    def summed() -> None:
        for at, block in _blocks(rows):
            add_products(sums, block)
            moment.addmm_(block.T, targets[at])

    sums_s, _ = _timed(summed)
    lower = sums.tril()
    products = lower + lower.tril(-1).T
    mean_diagonal = float(products.diagonal().sum()) / n
    fit_s, fit = _timed(lambda: decompose(products, moment))
    chosen = torch.linspace(0, n - 1, min(n, RIDGE_ROWS)).long().unique()
    dampings = [ridge * mean_diagonal for ridge in RIDGE_GRID]

    def errors() -> Tensor:
        total = torch.zeros(len(RIDGE_GRID), dtype=torch.float64)
        for part in torch.split(chosen, BLOCK):
            block = torch.nn.functional.normalize(rows[part].double(), dim=1)
            total += squared_errors(fit, block @ fit.basis, targets[part], dampings)
        return total

    ridge_s, tried = _timed(errors)
    damping = dampings[int(tried.argmin())]

    def predicted() -> Tensor:
        found = [
            out_of_sample(fit, block @ fit.basis, targets[at], damping).outputs
            for at, block in _blocks(rows)
        ]
        return torch.cat(found)

    predicted_s, outputs = _timed(predicted)
    cpu_s = {"sums": sums_s, "fit": fit_s, "ridge": ridge_s, "predictions": predicted_s}
    result: dict[str, Any] = {"cpu_s": cpu_s, "ridge": damping / mean_diagonal}
    if n <= DUAL_ROWS:
        result["dual"] = _against_dual(rows, targets, outputs, damping)
    return result


def _against_dual(rows: Tensor, targets: Tensor, outputs: Tensor, damping: float) -> dict[str, Any]:
    """The largest difference of leave-one-out outputs from those of the dual form, and its time."""
    from stages.surrogate.kernel import auto_ridge, closed_form_loo, solve

    unit = torch.cat([block for _, block in _blocks(rows)])
    kernel = unit @ unit.T

    def dual() -> Tensor:
        auto_ridge(kernel, targets)
        return closed_form_loo(targets, solve(kernel, targets, damping))

    cpu_s, expected = _timed(dual)
    return {"cpu_s": cpu_s, "largest_difference": float((outputs - expected).abs().max())}


def _from_parquet(work: Path, n: int, dim: int, seed: int) -> dict[str, Any]:
    """A run of assay over the vectors, through flags."""
    import shutil

    folder = work / f"vectors-{n}-{dim}-{seed}"
    vectors(folder, n, dim, seed)
    run = work / f"run-kernel-{n}-{dim}"
    shutil.rmtree(run, ignore_errors=True)
    columns = {"id": "id", "text": None, "features": "vector", "label": "label"}
    raw = {
        "run": str(run),
        "corpus": {"path": str(folder / "corpus"), **columns},
        "queries": {"path": str(folder / "query.parquet"), **columns},
        "stages": {"kernel_regression": {"kernel": ["features"]}, "label_issues": {}},
    }
    config = run.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return assay(config)
