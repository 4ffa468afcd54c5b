"""Curvature against explicit loops, and the tree of merges against the flat sum.

Sums of n products in float64 are off by at most n 1e-16 of the sum of their sizes: 1e-12 is far
above that for the few hundred rows here, relative to the largest entry.
"""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.merge_tree import grow
from pipeline.node import Task
from stages.features.curvature import Curvature, fisher_sums, gauss_newton_sums
from stages.gradients.blocks import CURVATURE, Block, blocks_of, read_curvature
from stages.reading.outer_products import add, read_sums, to_rows
from stages.stage import DataError, Part
from storage.manifest import Recipe

BLOCKS = (Block("late", 0, 3), Block("early", 3, 5), Block("head", 8, 1))
TOLD = {"blocks": [block._asdict() for block in BLOCKS]}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def vectors(ids: list[int], matrix: Tensor, role: str = "example") -> pa.Table:
    """Rows of a feature table in the precision of `matrix`."""
    cells = pa.FixedSizeListArray.from_arrays(pa.array(matrix.numpy().ravel()), matrix.shape[1])
    return pa.table({"id": pa.array(ids), "role": [role] * len(ids), "vector": cells})


def predictions(ids: list[int], logits: Tensor, source: str = "probe") -> pa.Table:
    cells = pa.FixedSizeListArray.from_arrays(pa.array(logits.numpy().ravel()), logits.shape[1])
    roles = ["example"] * len(ids)
    return pa.table(
        {"id": pa.array(ids), "role": roles, "source": [source] * len(ids), "logits": cells}
    )


def test_fisher_is_the_mean_outer_product(memory: Any) -> None:
    g = random(7, 9).float()
    table = memory({"gradient": vectors(list(range(7)), g)}, {"gradient": TOLD}).run(Curvature())
    found = read_curvature(table)
    assert set(found) == {"late", "early", "head"}
    for name, start, size in BLOCKS:
        expected = torch.zeros(size, size, dtype=torch.float64)
        total = torch.zeros(size, dtype=torch.float64)
        for row in g.double():
            for i in range(size):
                total[i] += row[start + i]
                for j in range(size):
                    expected[i, j] += row[start + i] * row[start + j] / 7
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-14)
        sums = read_sums(table)[name]
        assert sums.n_examples == 7
        torch.testing.assert_close(sums.total, total, rtol=0, atol=1e-14)
        assert torch.equal(found[name], found[name].T)


def test_gauss_newton_is_the_fisher_of_labels_drawn_from_the_model(memory: Any) -> None:
    n, n_classes = 6, 3
    g, logits = random(n, n_classes, 9, seed=1).float(), random(n, n_classes, seed=2).float()
    inputs = memory(
        {
            "ntk": vectors(list(range(n)), g.reshape(n, -1)),
            "prediction": predictions(list(range(n)), logits),
        },
        {"ntk": TOLD},
    )
    stage = Curvature(kind="gauss_newton")
    found = read_curvature(inputs.run(stage))
    p = torch.softmax(logits.double(), 1)
    for name, start, size in BLOCKS:
        expected = torch.zeros(size, size, dtype=torch.float64)
        for i in range(n):
            part = g[i, :, start : start + size].double()
            for drawn in range(n_classes):
                # The loss gradient, were `drawn` the label: sum_c p_c g_c - g_drawn.
                loss = torch.zeros(size, dtype=torch.float64)
                for c in range(n_classes):
                    loss += (p[i, c] - int(c == drawn)) * part[c]
                expected += p[i, drawn] * torch.outer(loss, loss) / n
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-14)
    assert stage.details(inputs)["n_left_out"] == 0


def test_gauss_newton_is_the_jacobian_form() -> None:
    # J'(diag(p) - pp')J, and for an added constant, of which softmax knows nothing, the same.
    n, n_classes = 4, 5
    g, logits = random(n, n_classes, 9), random(n, n_classes)
    expected = torch.zeros(9, 9, dtype=torch.float64)
    for jacobian, row in zip(g, torch.softmax(logits, 1), strict=True):
        expected += jacobian.T @ (torch.diag(row) - torch.outer(row, row)) @ jacobian
    (block,) = blocks_of({}, 9)
    for shifted in (logits, logits + 700):
        found = gauss_newton_sums(g, shifted, (block,))["all"]
        torch.testing.assert_close(found.products, expected, rtol=0, atol=1e-12)
        assert not found.total.any()


def test_a_model_that_is_certain_has_no_gauss_newton_curvature_and_a_fisher_matrix() -> None:
    g = random(3, 2, 4)
    certain = torch.tensor([[900.0, 0.0]] * 3, dtype=torch.float64)
    blocks = blocks_of({}, 4)
    assert not gauss_newton_sums(g, certain, blocks)["all"].products.any()
    assert fisher_sums(g[:, 0], blocks)["all"].products.diagonal().min() > 0


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_large_numbers_are_summed_in_double(kind: torch.dtype) -> None:
    g = (300 * random(50, 9)).to(kind)
    found = fisher_sums(g, BLOCKS)["early"].products
    expected = g[:, 3:8].double().T @ g[:, 3:8].double()
    assert expected.diagonal().min() > 65504
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    g, logits = random(20, 3, 9), random(20, 3)
    whole = fisher_sums(g[:, 0], BLOCKS), gauss_newton_sums(g, logits, BLOCKS)
    monkeypatch.setattr("stages.features.curvature.BATCH_NUMBERS", 12)
    cut = fisher_sums(g[:, 0], BLOCKS), gauss_newton_sums(g, logits, BLOCKS)
    for one, other in zip(whole, cut, strict=True):
        for name in one:
            for a, b in zip(one[name][1:], other[name][1:], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_only_examples_with_a_vector_and_a_prediction_count(memory: Any) -> None:
    g, logits = random(4, 2 * 9).float(), random(4, 2).float()
    inputs = memory(
        {
            "ntk": vectors([1, 2, 5, 6], g),
            "prediction": predictions([2, 3, 4, 6], logits),
        },
        {"ntk": TOLD},
    )
    stage = Curvature(kind="gauss_newton")
    found = read_sums(inputs.run(stage))["early"]
    assert found.n_examples == 2
    own = gauss_newton_sums(g[[1, 3]].reshape(2, 2, 9), logits[[0, 3]], BLOCKS)["early"]
    assert torch.equal(found.products, own.products)
    assert stage.details(inputs)["n_left_out"] == 4


def test_queries_do_not_count(memory: Any) -> None:
    g = random(5, 4).float()
    both = pa.concat_tables([vectors([1, 2, 3], g[:3]), vectors([1, 2], g[3:], "query")])
    table = memory({"gradient": both}).run(Curvature())
    assert table["block"].unique().to_pylist() == ["all"]
    assert table["n_examples"].unique().to_pylist() == [3]
    expected = g[:3].double().T @ g[:3].double() / 3
    torch.testing.assert_close(read_curvature(table)["all"], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["fisher", "gauss_newton"])
def test_a_shard_without_vectors_has_no_rows(memory: Any, kind: Any) -> None:
    # A shard all of whose rows were left out has no vectors of any length.
    empty = vectors([], torch.zeros(0, 9))
    empty = empty.set_column(2, "vector", pa.array([], pa.list_(pa.float32())))
    tables = {"gradient": empty, "ntk": empty, "prediction": predictions([1], random(1, 2))}
    stage = Curvature(kind=kind)
    inputs = memory(tables)
    assert list(stage.compute(inputs)) == []
    assert list(stage.merge({"curvature": [CURVATURE.schema.empty_table()] * 2})) == []
    with pytest.raises(DataError, match="found no rows, expected those of at least one example"):
        read_curvature(CURVATURE.schema.empty_table())


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([("a", 0, 3), ("b", 4, 5)], "found 2 blocks of 8 numbers"),
        ([("a", 0, 5), ("b", 3, 6)], r"\(a 0\+5, b 3\+6\)"),
        ([("a", 0, 3), ("a", 3, 6)], "of different names"),
        ([("a", 0, 9), ("b", 9, 0)], "make up a vector of length 9"),
    ],
)
def test_blocks_must_make_up_the_vector(told: list[tuple[str, int, int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        blocks_of({"blocks": [Block(*block)._asdict() for block in told]}, 9)


@pytest.mark.parametrize("details", [{}, {"ntk": {"blocks": []}}, {"ntk": TOLD}])
def test_gradients_of_one_logit_have_no_gauss_newton(memory: Any, details: Any) -> None:
    """A vector of nine numbers is not made of three classes' parts, whatever divides it."""
    tables = {"ntk": vectors([1], random(1, 9)), "prediction": predictions([1], random(1, 3))}
    with pytest.raises(DataError, match=r"vectors of length 9 and .*Name an instance of ntk with"):
        memory(tables, details).run(Curvature(kind="gauss_newton"))


@pytest.mark.parametrize("kind", ["fisher", "gauss_newton"])
def test_a_block_that_is_too_long_is_refused_before_its_matrix_is_made(
    memory: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.features.curvature.LONGEST_BLOCK", 4)
    tables = {"gradient": vectors([1], random(1, 9)), "ntk": vectors([1], random(1, 18))}
    tables["prediction"] = predictions([1], random(1, 2))
    inputs = memory(tables, {"gradient": TOLD, "ntk": TOLD})
    with pytest.raises(DataError, match="found the block early of 5 numbers, expected at most 4"):
        inputs.run(Curvature(kind=kind))


def test_outputs_of_a_kernel_are_no_logits(memory: Any) -> None:
    tables = {
        "ntk": vectors([1], random(1, 18)),
        "prediction": predictions([1], random(1, 2), "kernel"),
    }
    with pytest.raises(DataError, match="prediction: found predictions of kernel"):
        memory(tables, {"ntk": TOLD}).run(Curvature(kind="gauss_newton"))


def test_parts_over_other_blocks_do_not_add_up() -> None:
    g = random(3, 9)
    one = pa.Table.from_batches([to_rows(fisher_sums(g, BLOCKS))])
    other = pa.Table.from_batches([to_rows(fisher_sums(g, blocks_of({}, 9)))])
    with pytest.raises(DataError, match="expected the same blocks in every shard"):
        add([one, other])


def merged(parts: list[pa.Table]) -> pa.Table:
    """The root of the tree over `parts`, by the stage's own merge."""
    tasks = grow(
        [Task(Part("example", i), f"leaf {i}") for i in range(len(parts))], Recipe("s", 1, {})
    )
    done = {f"leaf {i}": part for i, part in enumerate(parts)}
    for task in tasks[len(parts) :]:
        batches = [b for _, b in Curvature().merge({"curvature": [done[k] for k in task.parts]})]
        rows = pa.Table.from_batches(batches) if batches else CURVATURE.schema.empty_table()
        done[task.key] = CURVATURE.check(rows)
    return done[tasks[-1].key]


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return float((one - other).abs().max()) <= tolerance * float(other.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=80),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 5),
)
def test_the_tree_of_any_cut_equals_the_flat_sum(cuts: list[int], scale: float, seed: int) -> None:
    g = scale * random(200, 9, seed=seed)
    bounds = [0, *sorted(cuts), 200]
    parts = []
    for start, stop in itertools.pairwise(bounds):
        rows = [to_rows(fisher_sums(g[start:stop], BLOCKS))] if start < stop else []
        parts.append(pa.Table.from_batches(rows, CURVATURE.schema))
    found, expected = read_sums(merged(parts)), fisher_sums(g, BLOCKS)
    for block in BLOCKS:
        sums = found[block.name]
        assert sums.n_examples == 200
        # The flat sum of the very parts, one after the other.
        flat = sum(read_sums(part)[block.name].products for part in parts if part.num_rows)
        assert close(sums.products, flat, 1e-12)
        # And the sum over the rows that knows no parts.
        assert close(sums.products, expected[block.name].products, 1e-10)
        own = expected[block.name].total
        assert float((sums.total - own).abs().max()) <= 1e-10 * 200 * scale


def test_rows_come_back_as_matrices_from_any_order() -> None:
    g = random(5, 9)
    sums = fisher_sums(g, BLOCKS)
    table = pa.Table.from_batches([to_rows(sums)])
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(9)))
    for found in (read_sums(table), read_sums(shuffled), read_sums(CURVATURE.check(shuffled))):
        for name, own in sums.items():
            assert torch.equal(found[name].products.tril(), own.products.tril())
            assert torch.equal(found[name].total, own.total)
