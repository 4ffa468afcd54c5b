"""Values of a kernel regression's examples add up to its outputs, whatever its kernel."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

from stages.pairs.kernel_representer import KernelRepresenter
from stages.predictions.kernel_regression import KernelRegression
from stages.reading.supervision import one_hot
from stages.stage import DataError, Part
from stages.surrogate.default_kernel import NTK
from stages.surrogate.kernel import gram

N, M = 40, 5
DUAL = "kernel_regression.kernel_dual"


def features(seed: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    length = torch.rand(N + M, 1, generator=generator) + 0.1
    return 7 * seed * length * torch.randn(N + M, dim, generator=generator)


def regressed(memory: Any, sharded: Any, rows: Any, task: str, **fields: Any) -> Any:
    """Inputs with the regression's own tables; example 3 has no label, 5 no row in `other`."""
    x = {"ntk": features(1, 6), "other": features(2, 9)}
    known = torch.arange(N) % 3 if task == "classification" else 9 + 2 * x["ntk"][:N, 0].double()
    ids = np.concatenate([np.arange(N), 1000 + np.arange(M)])
    answers = [*known.tolist(), *[None] * M]
    column = "label" if task == "classification" else "target"
    label = pa.table(
        {"id": ids, "role": ["example"] * N + ["query"] * M, column: pa.array(answers)}
    )
    tables = {name: rows(found[:N], found[N:]) for name, found in x.items()}
    tables["other"] = tables["other"].filter(pc.not_equal(tables["other"]["id"], 5))
    tables["label"] = label.filter(pc.not_equal(label["id"], 3))
    classes = ["a", "b", "c"] if task == "classification" else []
    told = {"label": {"task": task, "classes": classes}}
    whole = sharded(tables, told)
    whole.part = Part("", 0)
    stage = KernelRegression(**fields)
    written = memory.run(whole, stage)
    tables |= {"kernel_regression": written, DUAL: whole.written["kernel_dual"]}
    told["kernel_regression"] = dict(stage.details(whole))
    return sharded(tables, told, whole=("kernel_regression", DUAL)), x, known


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kernel", [("ntk",), ("ntk", "other")])
def test_values_add_up_to_the_output_less_the_offset(
    task: str, normalize: bool, kernel: tuple[str, ...], memory: Any, sharded: Any, rows: Any
) -> None:
    fields: dict[str, Any] = {"kernel": kernel, "normalize": normalize}
    inputs, x, known = regressed(memory, sharded, rows, task, **fields, ridge=0.3)
    found = inputs.run(KernelRepresenter(**fields, top_k=None)).to_pandas()
    kept = [i for i in range(N) if i != 3 and (len(kernel) == 1 or i != 5)]
    assert sorted(found["example_id"].unique()) == kept
    assert inputs.facts[0] == {"n_examples": len(kept)}
    scores = found.pivot(index="query_id", columns="example_id", values="score").to_numpy()

    outputs = inputs.tables["kernel_regression"]
    outputs = outputs.filter(pc.equal(outputs["role"], "query")).sort_by("id")
    logits = np.array(outputs["logits"].to_pylist())
    targets = one_hot(known, 3) if task == "classification" else known[:, None]
    targets = targets[kept]
    offset = float(targets.mean())
    expected = logits.max(1) - offset
    scale = np.abs(scores).sum(1).max()
    np.testing.assert_allclose(scores.sum(1), expected, rtol=0, atol=1e-6 * scale)

    among, to = gram([(x[name][kept], x[name][N:]) for name in kernel], normalize)
    damped = among + 0.3 * among.diagonal().mean() * torch.eye(len(kept), dtype=torch.float64)
    alpha = torch.linalg.solve(damped, targets - offset)
    values = alpha[:, logits.argmax(1)].T * to
    np.testing.assert_allclose(scores, values, rtol=0, atol=2e-6 * float(values.abs().max()))
    own = found.pivot(index="query_id", columns="example_id", values="global_score").to_numpy()
    np.testing.assert_allclose(own, alpha.abs().amax(1)[None].expand(M, -1), rtol=1e-9)
    np.testing.assert_allclose(
        found["global_score"] * found["local_score"], found["score"], rtol=1e-14
    )


def test_each_class_has_weights_by_its_own_kernel(memory: Any, sharded: Any, rows: Any) -> None:
    inputs, x, known = regressed(
        memory, sharded, rows, "classification", kernel=NTK, per_class=True, ridge=0.3
    )
    kept = [i for i in range(N) if i != 3]
    dual = np.array(inputs.tables[DUAL]["dual"].to_pylist())
    for c in range(3):
        own = x["ntk"][:, 2 * c : 2 * c + 2]
        among, _ = gram([(own[kept], own[N:])], True)
        damped = among + 0.3 * torch.eye(len(kept), dtype=torch.float64)
        target = one_hot(known, 3)[kept, c] - 1 / 3
        np.testing.assert_allclose(dual[:, c], torch.linalg.solve(damped, target), atol=1e-10)


def test_what_cannot_be_computed_is_refused(memory: Any, sharded: Any, rows: Any) -> None:
    inputs, _, _ = regressed(memory, sharded, rows, "classification", kernel=NTK)
    inputs.tables["ntk"] = inputs.tables["ntk"].filter(pc.less(inputs.tables["ntk"]["id"], 999))
    with pytest.raises(DataError, match="ntk: found no query in all of these tables"):
        inputs.run(KernelRepresenter(NTK))
