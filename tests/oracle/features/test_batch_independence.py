"""A row's features are its own: they do not depend on the rows that share its batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.features.gradient import Gradient
from stages.features.ntk import Ntk
from stages.model.spec import ModelSpec
from stages.reading.vectors import matrix_of

WORDS = "a the film plot is was good bad dull bright very not and but slow".split()


@pytest.fixture
def many() -> pa.Table:
    """Forty rows of 1 to 20 words, some of them pairs."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(1, 20))) for _ in range(40)]
    pairs = [t if n % 3 == 0 else None for n, t in enumerate(reversed(texts))]
    ids = draw.permutation(40)
    columns = {"id": ids, "role": ["example"] * 40, "text": texts}
    return pa.table({**columns, "text_b": pa.array(pairs, pa.string())})


@pytest.mark.parametrize("budget", [1, 8, 24, 64, 200, 100_000])
@pytest.mark.parametrize("kind", ["ntk", "gradient"])
def test_batches_change_nothing_but_rounding(
    checkpoint_folder: Path, many: pa.Table, memory: Any, kind: str, budget: int
) -> None:
    model = ModelSpec(str(checkpoint_folder), head="checkpoint", max_length=48)
    labels = pa.array([int(i) % 3 for i in many["id"].to_pylist()])
    label = pa.table({"id": many["id"], "role": many["role"], "label": labels})
    stage = Ntk if kind == "ntk" else Gradient

    def features(text: pa.Table, token_budget: int) -> np.ndarray:
        inputs = memory({"text": text, "label": label.take(pa.array(order(text, label)))})
        made = stage(model, dtype="float32", token_budget=token_budget)
        return np.array(matrix_of(inputs.run(made)["vector"]), np.float64)

    expected = features(many, 512)
    shuffled = many.take(pa.array(np.random.default_rng(budget).permutation(40)))
    found = features(shuffled, budget)
    size = np.linalg.norm(expected, axis=1)
    assert size.min() > 0
    assert (np.linalg.norm(found - expected, axis=1) / size).max() <= 1e-5


def order(text: pa.Table, label: pa.Table) -> list[int]:
    """Rows of the labels in the order of the text."""
    at = {row: n for n, row in enumerate(label["id"].to_pylist())}
    return [at[row] for row in text["id"].to_pylist()]
