"""Draws which examples three methods name for one prediction in the plane, three classes.

    .venv/bin/python scripts/toy.py [PICTURE]      by default scripts/pictures/toy.png

A probe on points of the plane, one of which, of a wrong label, lies deep in another class. Support
spectrum, representer points and influence, each the same number of examples.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from pipeline import open_run
from pipeline.config import parse_config
from pipeline.run import execute_run

CENTRES = np.array([[0.0, 1.3], [-1.3, -0.9], [1.3, -0.9]])
QUERY = np.array([[-0.15, 0.75]])
COLOURS = ("tab:blue", "tab:orange", "tab:green")


def main(picture: Path) -> None:
    """Makes the points, asks the methods, and draws."""
    with tempfile.TemporaryDirectory() as folder:
        points, labels, run = asked(Path(folder))
        spectrum = examples(run, "SELECT example_id FROM support WHERE contrast = -1 ORDER BY rank")
        n = len(spectrum)
        named = {f"support spectrum ({n} examples)": spectrum}
        for method, title in (
            ("representer", "representer points"),
            ("head_influence", "influence"),
        ):
            named[f"{title}, the {n} most helpful"] = examples(
                run,
                f"SELECT example_id FROM attributions WHERE method = '{method}' "
                f"ORDER BY score DESC, example_id LIMIT {n}",
            )
    figure = Figure(figsize=(11, 4), dpi=110)
    for axes, (title, at) in zip(figure.subplots(1, 3), named.items(), strict=True):
        drawn(axes, points, labels, at, title)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    print(picture)


def asked(folder: Path) -> tuple[np.ndarray, np.ndarray, Any]:
    """The points, their labels, and the finished run."""
    drawn = np.random.default_rng(4)
    labels = np.repeat(np.arange(3), 40)
    points = CENTRES[labels] + 0.62 * drawn.standard_normal((120, 2))
    points[0] = CENTRES[1] + [-0.3, -0.4]  # labelled 0, and deep among those of 1
    for role, rows, digits in (("train", points, labels), ("query", QUERY, np.zeros(1, int))):
        np.save(folder / f"{role}.npy", rows.astype(np.float32))
        table = pa.table({"id": np.arange(len(rows)), "label": digits.astype(np.int64)})
        pq.write_table(table, folder / f"{role}.parquet")
    sources = {
        role: {"path": str(folder / f"{role}.parquet"), "text": None, "label": "label", "id": "id"}
        | {"features": str(folder / f"{role}.npy")}
        for role in ("train", "query")
    }
    read = {"embedding": "features"}
    raw = {
        "run": str(folder / "run"),
        "corpus": sources["train"] | {"classes": ["blue", "orange", "green"]},
        "queries": sources["query"],
        "ray": {"engine": "in_process"},
        "stages": {
            "probe": {**read, "regularization": 0.001},
            "prediction": read,
            "support": {"features": "features", "contrasts": []},
            "representer": read,
            "head_influence": read,
        },
    }
    return points, labels, open_run(execute_run(parse_config(raw, "toy")).path)


def examples(run: Any, statement: str) -> list[int]:
    """The ids that a statement gives, in its order."""
    return [int(row[0]) for row in run.sql(statement).fetchall()]


def drawn(axes: Any, points: np.ndarray, labels: np.ndarray, at: list[int], title: str) -> None:
    """One panel: all points, those that are named with a ring and their rank, and the query."""
    for label, colour in enumerate(COLOURS):
        own = points[labels == label]
        axes.scatter(own[:, 0], own[:, 1], s=14, color=colour, alpha=0.55, linewidths=0)
    for rank, one in enumerate(at, start=1):
        axes.scatter(*points[one], s=90, facecolors="none", edgecolors="black")
        axes.annotate(str(rank), points[one], (5, 4), textcoords="offset points", fontsize=7)
    axes.scatter(*QUERY[0], marker="*", s=170, color="red", zorder=3)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("scripts/pictures/toy.png"))
