"""The two engines of Shapley values on gradients of sentences: the same marginals and values.

Both are exact, so they differ by rounding alone: by the condition of K + damping I, at most
60 / 0.01, times 1e-16 in float64 and 6e-8 in float32. Hence 1e-9 and 1e-3 of a number's mean size.
Accuracy is a count, which float64 gets right and float32 nearly always.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stages.features.ntk import Ntk
from stages.gradients.projection import Projection
from stages.model.spec import ModelSpec
from stages.reading.vectors import matrix_of
from stages.stage import Part, Vectors
from stages.values.freeshap import FreeShap

DATA = Path(__file__).parents[3] / "configs" / "data"
FILES = {"example": ("sst2_train.parquet", 60), "query": ("sst2_validation.parquet", 40)}
UTILITIES = ("accuracy", "cross_entropy", "margin")


class Sentences:
    """Labels of sentences, and the gradients of a class logit at each."""

    def __init__(self, model: ModelSpec, memory: Any) -> None:
        self.part, self.opened = Part("", 0), None
        self._labels, self._vectors = {}, {}
        for role, (name, n) in FILES.items():
            rows = pq.read_table(DATA / name).slice(0, n)
            ids = pa.array(range(n))
            text = {"id": ids, "role": [role] * n, "text": rows["text"]}
            text["text_b"] = pa.nulls(n, pa.string())
            ntk = Ntk(model, projection=Projection(inputs=8, outputs=8, principal=2, dim=200))
            found = memory({"text": pa.table(text)}).run(ntk)
            self._vectors[role] = Vectors(found["id"].to_numpy(), matrix_of(found["vector"]))
            self._labels[role] = pa.table({"id": ids, "label": rows["label"].cast(pa.int64())})

    def table(self, name: str, role: str) -> pa.Table:
        return self._labels[role]

    def vectors(self, name: str, role: str) -> Vectors:
        return self._vectors[role]

    def details(self, name: str) -> dict[str, Any]:
        return {"classes": ["negative", "positive"]}


@pytest.fixture(scope="module")
def sentences(encoder_folder: Path, memory: Any) -> Sentences:
    return Sentences(ModelSpec(str(encoder_folder), head="random", num_labels=2), memory)


def totals(inputs: Sentences, stage: FreeShap) -> dict[str, np.ndarray]:
    """Sums of the marginals of a round, by utility."""
    inputs.opened = stage.open(inputs)
    rows = pa.Table.from_batches(b for name, b in stage.compute(inputs) if name == "shapley_round")
    return {
        utility: rows.filter(pc.equal(rows["utility"], utility))["total"].to_numpy()
        for utility in UTILITIES
    }


@pytest.mark.parametrize("ridge", [1.0, 0.01])
@pytest.mark.parametrize("units", [1, 8])
def test_engines_agree_on_gradients_of_sentences(
    sentences: Sentences, units: int, ridge: float
) -> None:
    """The marginals along one permutation, and the values of eight."""
    fields: Any = {
        "sampling": "uniform",
        "utilities": UTILITIES,
        "units_per_round": units,
        "ridge": ridge,
    }
    expected = totals(sentences, FreeShap(**fields, engine="prefix_cholesky"))
    for precision, most in (("float64", 1e-9), ("float32", 1e-3)):
        found = totals(sentences, FreeShap(**fields, engine="least_squares", precision=precision))
        for utility in UTILITIES:
            off = np.abs(found[utility] - expected[utility])
            size = np.abs(expected[utility]).mean()
            assert size > 0
            if utility == "accuracy" and precision == "float32":
                assert (off > 1e-12).mean() < 0.1
            else:
                assert off.max() <= most * size, (precision, utility)
