from typing import Any

import pytest
import torch

from stages.gradients.projection import Projection
from stages.gradients.sketch import Sketch, principal_directions, with_principal
from stages.model.layers import Shape
from stages.model.seeded import gaussian

# A layer of 4 inputs and 5 outputs, one of 5 and 2.
LAYERS = {7: ("first", Shape(4, 5)), 3: ("second", Shape(5, 2))}


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def sketch_of(**projection: Any) -> Sketch:
    """By default without any projection."""
    chosen = {"inputs": None, "outputs": None, "principal": 0, "dim": None, **projection}
    return Sketch(LAYERS, Projection(**chosen), "cpu")


def joined(sketch: Sketch) -> torch.Tensor:
    """The map from the layers' numbers, one after the other, to those of a vector."""
    sizes = [layer.size for layer in sketch.layers.values()]
    columns = []
    for unit in torch.eye(sum(sizes)).unsqueeze(1):
        blocks = dict(zip(sketch.layers, unit.split(sizes, 1), strict=True))
        columns.append(sketch.join(blocks, 1)[0])
    return torch.stack(columns)


def test_blocks_lie_side_by_side_in_the_order_of_the_layers() -> None:
    sketch = sketch_of()
    assert joined(sketch).equal(torch.eye(30))
    assert sketch.blocks == [
        {"name": "first", "start": 0, "size": 20},
        {"name": "second", "start": 20, "size": 10},
    ]
    without = sketch.join({3: torch.ones(2, 2, 5)}, 2)
    assert without.equal(torch.cat([torch.zeros(2, 20), torch.ones(2, 10)], 1))


def test_a_hash_adds_every_number_to_one_place_with_a_sign() -> None:
    sketch = sketch_of(dim=9)
    table = joined(sketch)
    assert table.shape == (30, 9)
    assert (table.abs().sum(1) == 1).all()
    assert {-1.0, 0.0, 1.0} == set(table.flatten().tolist())
    assert sketch.blocks == [{"name": "all", "start": 0, "size": 9}]


def test_a_dense_matrix_is_that_of_each_layer() -> None:
    drawn = [
        gaussian(4, f"{name}/dense", size, 9) for name, size in {"first": 20, "second": 10}.items()
    ]
    torch.testing.assert_close(joined(sketch_of(dim=9, final="dense", seed=4)), torch.cat(drawn))


def test_a_side_that_is_short_enough_is_kept() -> None:
    first, second = sketch_of(inputs=4, outputs=3).layers.values()
    assert first.right is None
    assert second.left is None
    assert first.left.equal(gaussian(0, "first/left", 5, 3))
    assert second.right.equal(gaussian(0, "second/right", 5, 4))
    assert (first.size, second.size) == (12, 8)


def test_half_of_a_side_at_most_is_kept_exactly() -> None:
    sketch = sketch_of(inputs=3, outputs=3, principal=4)
    before = sketch.layers[7]
    inputs, deltas = torch.randn(20, 4), torch.randn(20, 5)
    sketch.keep(7, inputs, deltas)
    after = sketch.layers[7]
    (direction,) = principal_directions(inputs, 1, gaussian(0, "first/right/start", 4, 1)).T
    torch.testing.assert_close(after.right[:, 0], direction)
    torch.testing.assert_close(after.right[:, 1:].T @ direction, torch.zeros(2))
    assert after.size == before.size
    assert not after.left.equal(before.left)
    # What saw nothing keeps nothing.
    sketch.keep(7, torch.zeros(20, 4), torch.zeros(20, 5))
    assert sketch.layers[7].left.equal(after.left)


def test_principal_directions_are_kept_exactly() -> None:
    basis = torch.linalg.qr(torch.randn(12, 3))[0]
    projection = with_principal(gaussian(0, "side", 12, 7), basis)
    assert projection.shape == (12, 7)
    along, other = torch.randn(4, 3) @ basis.T, torch.randn(5, 12)
    torch.testing.assert_close((along @ projection) @ (other @ projection).T, along @ other.T)
    # And the rest is random: another drawing gives the rest other inner products.
    again = with_principal(gaussian(1, "side", 12, 7), basis)
    kernel = (other @ projection) @ (other @ projection).T
    assert not torch.allclose(kernel, (other @ again) @ (other @ again).T)


def test_principal_directions_are_those_of_the_singular_value_decomposition() -> None:
    left, right = (torch.linalg.qr(torch.randn(n, 9))[0] for n in (40, 9))
    rows = left * torch.tensor([9.0, 8, 7, 1, 1, 1, 1, 1, 1]) @ right.T
    found = principal_directions(rows, 3, torch.randn(9, 3))
    torch.testing.assert_close(found.T @ found, torch.eye(3))
    wanted = right[:, :3] @ right[:, :3].T
    # Six iterations shrink what is left of the others by (1/7)^12.
    torch.testing.assert_close(found @ found.T, wanted, rtol=0, atol=1e-5)
