from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stages.projection import Projector, block_sizes, gaussian, linear_layers
from stages.stage import ConfigError, ModelError


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


def features(network: nn.Module, projector: Projector, ids: Tensor = IDS) -> Tensor:
    return projector.features(lambda: network(ids, MASK)[:, 0], MASK)


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


@pytest.mark.parametrize("network_class", [Toy, Twice])
def test_identity_is_the_gradient(network_class: type[Toy]) -> None:
    network = network_class()
    expected = by_loop(network, [network.first.weight, network.second.weight, network.head.weight])
    found = features(network, Projector(linear_layers(network)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_weight_of_two_layers_counts_once() -> None:
    network = Twice()
    other = nn.Linear(5, 5)
    other.weight = network.second.weight
    network.other = other
    network.tokens = lambda ids: other(torch.tanh(Toy.tokens(network, ids)))  # type: ignore[method-assign]
    expected = by_loop(network, [network.first.weight, network.second.weight, network.head.weight])
    found = features(network, Projector(linear_layers(network)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_projections_are_those_of_the_gradient() -> None:
    network = Toy()
    projector = Projector(linear_layers(network), layer_projection=3, projection_dim=11, seed=4)
    exact = by_loop(network, [network.first.weight, network.second.weight, network.head.weight])
    first, second, head = exact.split([20, 25, 10], 1)
    expected = torch.zeros(3, 11)
    for name, gradient, n_in in [("first", first, 4), ("second", second, 5), ("head", head, 5)]:
        block = gradient.view(3, -1, n_in) @ gaussian(4, f"{name}/right", n_in, 3)
        if name != "head":
            block = gaussian(4, f"{name}/left", 5, 3).T @ block
        block = block.flatten(1)
        expected += block @ gaussian(4, f"{name}/dense", block.shape[1], 11)
    torch.testing.assert_close(features(network, projector), expected, rtol=1e-5, atol=1e-6)


def test_padding_contributes_exactly_nothing() -> None:
    network = Toy()
    projector = Projector(linear_layers(network), layer_projection=3)
    # Rewards padded tokens too: without the mask they would have gradients.
    measure = lambda ids: lambda: network.tokens(ids).sum((1, 2))  # noqa: E731
    other = torch.where(MASK, IDS, 3)
    assert projector.features(measure(IDS), MASK).equal(projector.features(measure(other), MASK))


@pytest.mark.parametrize("projection", [{"layer_projection": 3}, {}])
def test_a_layer_does_not_depend_on_the_others(projection: dict[str, int]) -> None:
    network = Toy()
    layers = linear_layers(network)
    every = features(network, Projector(layers, **projection, seed=1))
    alone = Projector({"second": layers["second"]}, **projection, seed=1)
    start = block_sizes([(4, 5)], projection.get("layer_projection"), None)[1]
    torch.testing.assert_close(features(network, alone), every[:, start : start + alone.dim])


def test_dense_blocks_add_up_over_layers() -> None:
    network = Toy()
    layers = linear_layers(network)
    parts = [
        features(network, Projector({name: layer}, 3, 5, seed=1)) for name, layer in layers.items()
    ]
    torch.testing.assert_close(features(network, Projector(layers, 3, 5, seed=1)), sum(parts))


def test_gaussians_follow_seed_and_name() -> None:
    drawn = gaussian(0, "a", 400, 100)
    assert drawn.equal(gaussian(0, "a", 400, 100))
    assert not drawn.equal(gaussian(1, "a", 400, 100))
    assert not drawn.equal(gaussian(0, "b", 400, 100))
    # 40,000 entries: the mean of squares is within 4 * sqrt(2 / 40,000) of its expectation.
    assert (drawn.square().mean() * 100).item() == pytest.approx(1.0, abs=0.03)


def test_nothing_is_projected_upward() -> None:
    assert block_sizes([(4, 5), (5, 2)], 3, None) == ([9, 6], 15)
    assert block_sizes([(4, 5), (5, 2)], 3, 14) == ([9, 6], 14)
    assert block_sizes([(4, 5), (5, 2)], 3, 16) == ([9, 6], 15)
    assert block_sizes([(4, 5), (5, 2)], None, None) == ([20, 10], 30)


def test_the_network_is_left_as_it_was() -> None:
    network = Toy()
    features(network, Projector(linear_layers(network)))
    assert not any(layer._forward_hooks for layer in linear_layers(network).values())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("bad", [{"layer_projection": 0}, {"projection_dim": -1}])
def test_lengths_must_be_positive(bad: dict[str, int]) -> None:
    name = next(iter(bad))
    with pytest.raises(ConfigError, match=f"found {name}: {bad[name]}"):
        Projector(linear_layers(Toy()), **bad)


def test_foreign_layers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"found 1 Conv1D and 1 nn\.Linear"):
        linear_layers(nn.Sequential(nn.Linear(2, 2), Conv1D(2, 2)))
    with pytest.raises(ModelError, match=r"found 0 Conv1D and 0 nn\.Linear"):
        linear_layers(nn.Sequential(nn.Tanh()))
    network = Toy()
    network.head.weight = network.table.weight
    with pytest.raises(ModelError, match="weight of head shared with an embedding table"):
        linear_layers(network)


def test_flattened_tokens_are_refused() -> None:
    network = Toy()
    projector = Projector(linear_layers(network))
    with pytest.raises(ModelError, match=r"layer first returned shape \(9, 5\)"):
        projector.features(lambda: network.tokens(IDS.flatten()).sum(1)[:3], MASK)
