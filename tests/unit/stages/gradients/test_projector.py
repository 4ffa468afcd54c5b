import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.gradients.projection import Projection
from stages.gradients.projector import Projector
from stages.model.layers import trained_layers
from stages.model.seeded import gaussian
from stages.model.spec import Trained
from stages.stage import ModelError


class Toy(nn.Module):
    """Two layers per token, a masked mean, and a head."""

    def __init__(self, hidden: int = 5) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.first = nn.Linear(4, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 2)
        self.requires_grad_(False)

    def tokens(self, ids: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(self.table(ids))))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        real = mask.unsqueeze(-1).float()
        return self.head((torch.tanh(self.tokens(ids)) * real).sum(1) / real.sum(1))


class Twice(Toy):
    """The second layer used twice."""

    def tokens(self, ids: Tensor) -> Tensor:
        return self.second(torch.tanh(super().tokens(ids)))


IDS = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def projector_of(
    network: nn.Module, layers: dict[str, nn.Module] | None = None, **projection: Any
) -> Projector:
    """Of all layers, and by default without any projection."""
    chosen = {"inputs": None, "outputs": None, "principal": 0, "dim": None, **projection}
    return Projector(network, layers or trained_layers(network, Trained()), Projection(**chosen))


def features(network: nn.Module, projector: Projector, ids: Tensor = IDS) -> Tensor:
    return projector.features(lambda: network(ids, MASK)[:, 0], MASK)[0][:, 0]


def by_loop(network: nn.Module, weights: list[Tensor]) -> Tensor:
    rows = []
    for weight in weights:
        weight.requires_grad_()
    for row, length in enumerate(MASK.sum(1).tolist()):
        logit = network(IDS[row : row + 1, :length], MASK[row : row + 1, :length])[0, 0]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(logit, weights)]))
    for weight in weights:
        weight.requires_grad_(False)
    return torch.stack(rows)


def weights_of(network: Toy) -> list[Tensor]:
    return [network.first.weight, network.second.weight, network.head.weight]


def calibrated(projector: Projector, network: nn.Module) -> Projector:
    """With the principal directions of three rows of its own."""
    projector.calibrate(lambda: network(IDS.flip(1), MASK)[:, 0], MASK)
    return projector


@pytest.mark.parametrize("network_class", [Toy, Twice])
def test_identity_is_the_gradient(network_class: type[Toy]) -> None:
    network = network_class()
    expected = by_loop(network, weights_of(network))
    found = features(network, projector_of(network))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_weight_of_two_layers_counts_once() -> None:
    network = Twice()
    other = nn.Linear(5, 5)
    other.weight = network.second.weight
    network.other = other
    network.tokens = lambda ids: other(torch.tanh(Toy.tokens(network, ids)))  # type: ignore[method-assign]
    network.requires_grad_(False)
    expected = by_loop(network, weights_of(network))
    found = features(network, projector_of(network))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_a_weight_shared_with_a_table_counts_both_uses(padding: int | None) -> None:
    network = Toy()
    network.table.padding_idx = padding
    network.first = nn.Linear(4, 7, bias=False)
    network.first.weight = network.table.weight
    network.second = nn.Linear(7, 5).requires_grad_(False)
    expected = by_loop(network, weights_of(network))
    torch.testing.assert_close(features(network, projector_of(network)), expected)
    # Projected, it is the projection of that sum: the layer's words are (outputs, inputs).
    projector = projector_of(network, {"first": network.first}, inputs=2, outputs=3, seed=5)
    left, right = gaussian(5, "first/left", 7, 3), gaussian(5, "first/right", 4, 2)
    block = left.T @ expected[:, :28].view(3, 7, 4) @ right
    torch.testing.assert_close(features(network, projector), block.flatten(1))


def test_several_numbers_a_row_are_several_gradients() -> None:
    network = Toy()
    projector = projector_of(network, inputs=3, outputs=3, dim=9)
    both, numbers = projector.features(lambda: network(IDS, MASK), MASK)
    torch.testing.assert_close(numbers, network(IDS, MASK))
    for column in range(2):
        alone, number = projector.features(lambda c=column: network(IDS, MASK)[:, c], MASK)
        torch.testing.assert_close(both[:, column], alone[:, 0])
        torch.testing.assert_close(number[:, 0], numbers[:, column])


def test_a_layer_that_is_not_run_has_no_gradient() -> None:
    network = Toy()
    network.unused = nn.Linear(2, 2).requires_grad_(False)
    found = features(network, projector_of(network))
    assert found.shape == (3, 59)
    assert not found[:, 55:].any()
    assert features(network, calibrated(projector_of(network, principal=1), network)).equal(found)


@pytest.mark.parametrize("principal", [0, 1])
def test_projections_are_those_of_the_gradient(principal: int) -> None:
    network = Toy()
    projector = projector_of(
        network, inputs=3, outputs=3, principal=principal, dim=11, seed=4, final="dense"
    )
    if principal:
        calibrated(projector, network)
    sides = {layer.name: layer for layer in projector.sketch.layers.values()}
    exact = by_loop(network, weights_of(network))
    expected = torch.zeros(3, 11)
    for (name, layer), gradient in zip(sides.items(), exact.split([20, 25, 10], 1), strict=True):
        assert layer.right is not None
        if not principal:
            assert layer.right.equal(gaussian(4, f"{name}/right", layer.shape.inputs, 3))
        block = gradient.view(3, *reversed(layer.shape)) @ layer.right
        assert (layer.left is None) == (name == "head")
        block = block if layer.left is None else layer.left.T @ block
        expected += block.flatten(1) @ gaussian(4, f"{name}/dense", block[0].numel(), 11)
    torch.testing.assert_close(features(network, projector), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("final", ["sparse", "dense"])
def test_layers_are_joined_by_the_sketch(final: str) -> None:
    network = Toy()
    exact = features(network, projector_of(network))
    mixed = projector_of(network, dim=9, final=final)
    layers = mixed.sketch.layers
    parts = exact.split([layer.size for layer in layers.values()], 1)
    expected = mixed.sketch.join(dict(zip(layers, parts, strict=True)), len(exact))
    torch.testing.assert_close(features(network, mixed), expected)


def test_padding_contributes_exactly_nothing() -> None:
    network = Toy()
    projector = projector_of(network, inputs=3, outputs=3)
    # Rewards padded tokens too: without the mask they would have gradients.
    measure = lambda ids: lambda: network.tokens(ids).sum((1, 2))  # noqa: E731
    other = torch.where(MASK, IDS, 3)
    found, again = (projector.features(measure(ids), MASK)[0] for ids in (IDS, other))
    assert found.equal(again)
    assert found.any()


@pytest.mark.parametrize(
    "projection",
    [{}, {"inputs": 3, "outputs": 3}, {"inputs": 3, "outputs": 3, "principal": 1}],
)
def test_a_layer_does_not_depend_on_the_others(projection: dict[str, int]) -> None:
    network = Toy()
    every = projector_of(network, **projection, seed=1)
    layers = {"second": network.second}
    alone = projector_of(network, layers, **projection, seed=1)
    backwards = projector_of(network, dict(reversed(every.modules.items())), **projection, seed=1)
    for projector in (every, alone, backwards):
        calibrated(projector, network)
    parts = {part["name"]: part for part in every.sketch.blocks}
    start, size = parts["second"]["start"], parts["second"]["size"]
    assert size == alone.sketch.dim
    found = features(network, every)
    torch.testing.assert_close(features(network, alone), found[:, start : start + size])
    flipped = features(network, backwards)
    for part in backwards.sketch.blocks:
        start, size = parts[part["name"]]["start"], part["size"]
        torch.testing.assert_close(
            flipped[:, part["start"] : part["start"] + size], found[:, start : start + size]
        )


@pytest.mark.parametrize("final", ["sparse", "dense"])
def test_mixed_blocks_add_up_over_layers(final: str) -> None:
    network = Toy()
    sizes = {"inputs": 3, "outputs": 3, "dim": 5, "final": final, "seed": 1}
    every = projector_of(network, **sizes)
    parts = [
        features(network, projector_of(network, {name: layer}, **sizes))
        for name, layer in every.modules.items()
    ]
    assert every.sketch.blocks == [{"name": "all", "start": 0, "size": 5}]
    torch.testing.assert_close(features(network, every), sum(parts))


@pytest.mark.parametrize(
    "projection",
    [
        pytest.param(
            {"inputs": 3, "outputs": 3, "principal": 0, "dim": None}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"inputs": 3, "outputs": 3, "principal": 1, "dim": None}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"inputs": 3, "outputs": 2, "principal": 4, "dim": None}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"inputs": 3, "outputs": 3, "principal": 1, "dim": 7, "final": "dense"},
            marks=pytest.mark.slow,
        ),
        {"inputs": 3, "outputs": 3, "principal": 1, "dim": 7, "final": "sparse"},
        pytest.param({"dim": 7, "final": "dense"}, marks=pytest.mark.slow),
        pytest.param({"dim": 7, "final": "sparse"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_inner_products_are_unbiased(projection: dict[str, Any]) -> None:
    network = Toy()
    exact = features(network, projector_of(network)).double()
    drawn = []
    for seed in range(150):
        projector = calibrated(projector_of(network, **projection, seed=seed), network)
        vectors = features(network, projector).double()
        drawn.append(vectors @ vectors.T)
    kernels = torch.stack(drawn)
    stderr = kernels.std(0) / math.sqrt(len(kernels))
    expected = exact @ exact.T
    # Six distinct entries: the largest of as many normal deviates is under 4 but for 1 in 2,600.
    assert ((kernels.mean(0) - expected).abs() <= 4 * stderr + 1e-6 * expected.abs()).all()
    # The test would notice a bias of half of a norm.
    assert (4 * stderr.diagonal() <= 0.5 * expected.diagonal()).all()


def test_calibration_keeps_what_the_batch_spans() -> None:
    # One row of one token: each side of each layer is one direction, and one is kept.
    network = Toy(hidden=12)
    ids, mask = torch.tensor([[2]]), torch.tensor([[True]])
    exact = projector_of(network)
    short = projector_of(network, inputs=3, outputs=3, principal=1)
    short.calibrate(lambda: network(ids, mask)[:, 0], mask)
    norms = [p.features(lambda: network(ids, mask)[:, 0], mask)[0].norm() for p in (exact, short)]
    torch.testing.assert_close(norms[0], norms[1])


@pytest.mark.parametrize(
    ("projection", "length"),
    [
        ({"inputs": 3, "outputs": 3, "dim": None}, 15),
        ({"inputs": 3, "outputs": 3, "dim": 14}, 14),
        ({"inputs": 3, "outputs": 3, "dim": 16}, 15),
        ({"inputs": 2, "outputs": 4, "dim": None}, 12),
        ({"inputs": None, "outputs": None, "dim": None}, 30),
        ({"inputs": None, "outputs": 1, "dim": None}, 9),
    ],
    ids=str,
)
def test_nothing_is_projected_upward(projection: dict[str, Any], length: int) -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    projector = projector_of(network, **projection)
    assert projector.sketch.dim == length
    assert sum(part["size"] for part in projector.sketch.blocks) == length
    found, _ = projector.features(lambda: network(torch.ones(2, 4))[:, 0], MASK[:2])
    assert found.shape == (2, 1, length)


def test_the_network_is_left_as_it_was() -> None:
    network = Toy()
    projector = calibrated(projector_of(network, inputs=3, outputs=3, principal=1), network)
    features(network, projector)
    with pytest.raises(ZeroDivisionError):
        projector.features(lambda: network(IDS, MASK)[:, 0] / (1 // 0), MASK)
    assert not any(layer._forward_hooks for layer in projector.modules.values())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_conv1d_is_the_other_way_round() -> None:
    torch.manual_seed(1)
    mixed = nn.Sequential(Conv1D(4, 3), nn.Tanh(), nn.Linear(4, 2)).requires_grad_(False)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), mixed[2]).requires_grad_(False)
    plain[0].weight.copy_(mixed[0].weight.T)
    plain[0].bias.copy_(mixed[0].bias)
    rows = torch.randn(3, 3)
    for projection in ({}, {"inputs": 2, "outputs": 2}):
        found, expected = (
            projector_of(n, **projection).features(lambda n=n: n(rows)[:, 0], MASK)[0]
            for n in (mixed, plain)
        )
        torch.testing.assert_close(found, expected)


def test_flattened_tokens_are_refused() -> None:
    network = Toy()
    projector = projector_of(network)
    with pytest.raises(ModelError, match=r"layer first returned shape \(9, 5\)"):
        projector.features(lambda: network.tokens(IDS.flatten()).sum(1)[:3], MASK)
