"""Trainings against plain loops over the whole model, values against enumerated retrained sets.

In float64. Adam divides by the square root of a mean of squared gradients: where a gradient is as
small as its own rounding, the step is that rounding's sign. So the tolerance of what a training of
a deep model gives is 1e-6, against steps of 1e-3; of a head on vectors it is 1e-10.
"""

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, label_table
from torch import Tensor, nn

from stages.game.trainings import marginals
from stages.model.learners import load_start, text_learner, vector_learner
from stages.model.measurement import Measurement
from stages.model.seeded import permutations
from stages.model.spec import ModelSpec, Prompt
from stages.model.training import Learner, Training, outputs, prefix_outputs, train
from stages.stage import ModelError, Part
from stages.tables import OUTCOME
from stages.values.retrain import Retrain

UTILITIES = ("accuracy", "cross_entropy", "margin")
LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1])
HOW = Training(epochs=3, batch_size=2, learning_rate=1e-3, head_learning_rate=2e-2)
ONCE = Training(kind="one_pass", learning_rate=1e-3, head_learning_rate=2e-2)
BUDGET = 20


class PlainAdam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self, weights: list[Tensor], rates: list[float]) -> None:
        self.weights, self.rates, self.t = weights, rates, 0
        self.m = [torch.zeros_like(w) for w in weights]
        self.v = [torch.zeros_like(w) for w in weights]

    def step(self, loss: Tensor) -> None:
        self.t += 1
        found = torch.autograd.grad(loss, self.weights, materialize_grads=True)
        with torch.no_grad():
            for w, g, m, v, rate in zip(
                self.weights, found, self.m, self.v, self.rates, strict=True
            ):
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.999 * v + 0.001 * g * g)
                m_hat, v_hat = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
                w -= rate * m_hat / (v_hat.sqrt() + 1e-8)


class PlainDescent(PlainAdam):
    def step(self, loss: Tensor) -> None:
        found = torch.autograd.grad(loss, self.weights, materialize_grads=True)
        with torch.no_grad():
            for w, g, rate in zip(self.weights, found, self.rates, strict=True):
                w -= rate * g


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    of_label = torch.stack([row[label] for row, label in zip(logits, labels, strict=True)])
    return (logits.exp().sum(1).log() - of_label).mean()


def tune_plainly(
    logits: Callable[[list[int]], Tensor], steps: list[list[int]], optimiser: PlainAdam
) -> None:
    for rows in steps:
        optimiser.step(plain_loss(logits(rows), LABELS[rows]))


def steps_of(order: list[int], how: Training) -> list[list[int]]:
    """What a step sees: `epochs` times the rows in order, cut into batches."""
    one = [order[at : at + how.batch_size] for at in range(0, len(order), how.batch_size)]
    return one * how.epochs


def vectors(n: int = 7, dim: int = 5, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, dtype=torch.float64, generator=g)


def plain_head(rows: Tensor, steps: list[list[int]], kind: type[PlainAdam] = PlainAdam) -> Tensor:
    """Outputs for all rows of a linear head of 3 classes after these steps from zero."""
    weight = torch.zeros(3, rows.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    tune_plainly(lambda at: rows[at] @ weight.T + bias, steps, kind([weight, bias], [2e-2, 2e-2]))
    return (rows @ weight.T + bias).detach()


def everything(n: int) -> np.ndarray:
    return np.arange(n)


def test_a_head_alone_equals_a_plain_loop() -> None:
    rows, order = vectors(), [4, 0, 6, 2, 1]
    made = vector_learner(rows, 3)
    train(made, LABELS, np.array(order), HOW)
    expected = plain_head(rows, steps_of(order, HOW))
    found = outputs(made, everything(7), BUDGET).T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert found.abs().max() > 0.1


def test_a_training_forgets_the_one_before() -> None:
    rows = vectors()
    made = vector_learner(rows, 3)
    train(made, LABELS, np.array([1, 2, 3]), HOW)
    first = outputs(made, everything(7), BUDGET)
    train(made, LABELS, np.array([5, 0, 4, 6]), HOW)
    assert not torch.equal(outputs(made, everything(7), BUDGET), first)
    train(made, LABELS, np.array([1, 2, 3]), HOW)
    assert torch.equal(outputs(made, everything(7), BUDGET), first)


def test_one_pass_equals_a_plain_loop_that_is_looked_at() -> None:
    rows, order, sizes = vectors(), np.array([4, 0, 6, 2, 1, 3, 5]), (2, 5, 7)
    made = vector_learner(rows, 3)
    each = prefix_outputs(made, LABELS, order, order[::-1], sizes, everything(7), ONCE, BUDGET)
    for size, found in zip(sizes, each, strict=True):
        steps = [[int(row)] for row in order[:size]]
        expected = plain_head(rows, steps, PlainDescent)
        torch.testing.assert_close(found.T, expected, rtol=0, atol=1e-10)


PROMPTS = {
    "bert": ("MaskedLM", "{text} it was {mask} ."),
    "gpt2": ("CausalLM", "{text} it was"),
    "llama": ("CausalLM", "{text} it was"),
}
BLOCKS = {
    "encoder": "trunk.encoder.layer",
    "random": "trunk.encoder.layer",
    "checkpoint": "classifier.bert.encoder.layer",
    "bert": "model.bert.encoder.layer",
    "gpt2": "trunk.h",
    "llama": "trunk.layers",
}
BELOW = ("trunk.embeddings.", "trunk.wte", "trunk.wpe", "trunk.embed_tokens.")
BELOW += ("classifier.bert.embeddings.", "model.bert.embeddings.")


@pytest.fixture
def start(
    encoder_folder: Path, checkpoint_folder: Path, saved: Any, text: pa.Table, memory: Any
) -> Callable[[str], tuple[Measurement, list[nn.Parameter]]]:
    """A model of 2 blocks and 3 classes before training, in float64, and its fresh head."""

    def load(kind: str) -> tuple[Measurement, list[nn.Parameter]]:
        if kind == "encoder":
            model = ModelSpec(str(encoder_folder))
        elif kind == "random":
            model = ModelSpec(str(encoder_folder), head="random", num_labels=3, seed=1)
        elif kind == "checkpoint":
            model = ModelSpec(str(checkpoint_folder), head="checkpoint")
        else:
            task, template = PROMPTS[kind]
            prompt = Prompt(template, ("good", "bad", "not"))
            model = ModelSpec(str(saved(kind, task)), head="label_words", prompt=prompt)
        measurement, fresh = load_start(memory({"text": text}), model, 3)
        measurement.network.double()
        return measurement, fresh

    return load


def tuned_by_name(network: nn.Module, kind: str, last_blocks: int | str) -> dict[str, Tensor]:
    """All weights of the last blocks and above, by the names that these architectures give."""
    if last_blocks == "all":
        return dict(network.named_parameters())
    lower = tuple(f"{BLOCKS[kind]}.{at}." for at in range(2 - int(last_blocks)))
    return {n: w for n, w in network.named_parameters() if not n.startswith((*lower, *BELOW))}


@pytest.mark.parametrize("how", [HOW, ONCE], ids=lambda how: how.kind)
@pytest.mark.parametrize("last_blocks", [0, 1, 2, "all"])
@pytest.mark.parametrize("kind", list(BLOCKS))
def test_upper_blocks_equal_a_plain_loop_over_the_whole_model(
    start: Any, text: pa.Table, kind: str, last_blocks: int, how: Training
) -> None:
    measurement, fresh = start(kind)
    whole = copy.deepcopy(measurement.network).requires_grad_(True)
    tokens, order = measurement.tokenise(text), [4, 0, 6, 2, 1]
    made = text_learner(measurement, tokens, last_blocks, fresh, BUDGET)
    joining = np.array(order)
    (found,) = prefix_outputs(
        *(made, LABELS, joining, joining, (len(order),), everything(7), how, BUDGET)
    )

    own = tuned_by_name(whole, kind, last_blocks)
    is_fresh = kind in ("encoder", "random")
    rates = [2e-2 if is_fresh and name.startswith("head.") else 1e-3 for name in own]
    if how.kind == "anew":
        optimiser, steps = PlainAdam(list(own.values()), rates), steps_of(order, how)
    else:
        optimiser, steps = PlainDescent(list(own.values()), rates), [[row] for row in order]

    def logits(rows: list[int]) -> Tensor:
        return whole(**measurement.batch(tokens, np.array(rows)))

    with torch.no_grad():
        before = logits(list(range(7)))
    tune_plainly(logits, steps, optimiser)
    expected = logits(list(range(7))).detach()
    torch.testing.assert_close(found.T, expected, rtol=0, atol=1e-6)
    assert (expected - before).abs().max() > 1e-3
    assert sum(w.numel() for w in own.values()) == sum(w.numel() for w in made.start)


@pytest.mark.parametrize("last_blocks", [0, 1])
@pytest.mark.parametrize("kind", list(BLOCKS))
def test_stored_hidden_states_equal_a_whole_pass(
    start: Any, text: pa.Table, kind: str, last_blocks: int
) -> None:
    measurement, fresh = start(kind)
    if kind == "encoder":
        for weights in fresh:
            weights.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    tokens = measurement.tokenise(text)
    whole = copy.deepcopy(measurement.network)
    expected = whole(**measurement.batch(tokens, everything(7)))
    for budget in (1, BUDGET, 1000):
        made = text_learner(measurement, tokens, last_blocks, fresh, budget)
        found = outputs(made, everything(7), budget).T
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        measurement.network = copy.deepcopy(whole)


class TwoRoles(MemoryInputs):
    """Rows of two roles in no order of ids; some examples have no label."""

    def __init__(self, text: pa.Table) -> None:
        self.labels = {30: 0, 10: 1, 60: None, 20: 1, 70: 0, 50: 2, 40: None}
        roles = ["example"] * 5 + ["query"] * 2
        given: dict[str, dict[int, int | None]] = {"example": {}, "query": {}}
        for row, role in zip(text["id"].to_pylist(), roles, strict=True):
            given[role][row] = self.labels[row]
        tables = {
            "text": text.set_column(1, "role", pa.array(roles)),
            "label": label_table(given),
        }
        super().__init__(tables, {"label": {"classes": ["a", "b", "c"]}}, part=Part("", 1))


def test_the_stage_trains_on_each_text_with_its_own_label(
    encoder_folder: Path, text: pa.Table
) -> None:
    """In float32, by plain gradient steps, whose rounding does not grow: hence 1e-5."""
    model = ModelSpec(str(encoder_folder))
    stage, inputs = Retrain(model, last_blocks=1, training=ONCE, every=4), TwoRoles(text)
    inputs.opened = stage.open(inputs)
    (rows,) = [batch.to_pylist() for name, batch in stage.compute(inputs) if name == OUTCOME.name]
    assert [(row["size"], row["query_id"]) for row in rows] == [(4, 50), (4, 40)]

    measurement, _ = load_start(inputs, model, 3)
    whole = measurement.network.double().requires_grad_(True)
    by_id = {row["id"]: row for row in text.to_pylist()}

    def logits(ids: list[int]) -> Tensor:
        tokens = measurement.tokenise(pa.Table.from_pylist([by_id[i] for i in ids], text.schema))
        return whole(**measurement.batch(tokens, everything(len(ids))))

    own = tuned_by_name(whole, "encoder", 1)
    rates = [2e-2 if name.startswith("head.") else 1e-3 for name in own]
    optimiser = PlainDescent(list(own.values()), rates)
    for at in next(permutations(4, 1, 0, 1)).tolist():
        example = [10, 20, 30, 70][at]
        optimiser.step(plain_loss(logits([example]), torch.tensor([inputs.labels[example]])))
    found = torch.tensor([row["logits"] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, logits([50, 40]).detach(), rtol=0, atol=1e-5)
    assert found.abs().max() > 1e-2


def test_a_head_of_other_classes_is_refused(
    checkpoint_folder: Path, text: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(checkpoint_folder), head="checkpoint")
    with pytest.raises(ModelError, match="found a head of 3 outputs"):
        load_start(memory({"text": text}), model, 2)


def worth(said: Tensor, labels: Tensor) -> np.ndarray:
    """Accuracy, log of the label's share and margin, query by query; (classes, queries).

    Classes that no member has are equal, and share the accuracy where they are the largest.
    """
    total = np.zeros(3)
    for logits, label in zip(said.T.tolist(), labels.tolist(), strict=True):
        others = [x for c, x in enumerate(logits) if c != label]
        own = logits[label]
        total += [
            (own >= max(logits) - 1e-9) / sum(x >= max(logits) - 1e-9 for x in logits),
            own - math.log(sum(math.exp(x) for x in logits)),
            own - max(others),
        ]
    return total / len(labels)


def enumerated(n: int, value: dict[frozenset[int], np.ndarray]) -> np.ndarray:
    """sum over S without i of |S|! (n - |S| - 1)! / n! (U(S and i) - U(S)); (utilities, n)."""
    columns = []
    for i in range(n):
        column = np.zeros(3)
        for subset, found in value.items():
            if i not in subset:
                share = math.factorial(len(subset)) * math.factorial(n - len(subset) - 1)
                column += share / math.factorial(n) * (value[subset | {i}] - found)
        columns.append(column)
    return np.array(columns).T


def mean_over_all_permutations(made: Learner, n: int, m: int, visits: np.ndarray) -> np.ndarray:
    sizes, queries = tuple(range(1, n + 1)), n + np.arange(m)
    units = []
    for order in map(np.array, itertools.permutations(range(n))):
        each = prefix_outputs(made, LABELS, order, visits, sizes, queries, HOW, BUDGET)
        units.append(marginals(torch.stack(list(each)), LABELS[n:], order, sizes, UTILITIES))
    return torch.stack(units).mean(0).numpy()


def subsets(n: int) -> list[tuple[int, ...]]:
    return [s for size in range(1, n + 1) for s in itertools.combinations(range(n), size)]


NONE = np.array([1 / 3, -math.log(3), 0])


def test_all_permutations_of_a_head_give_the_enumerated_shapley_value() -> None:
    n, rows, visits = 4, vectors(), np.array([2, 0, 3, 1])
    value = {frozenset[int](): NONE}
    for members in subsets(n):
        seen = [int(row) for row in visits if row in members]
        said = plain_head(rows, steps_of(seen, HOW))
        value[frozenset(members)] = worth(said[n:].T, LABELS[n:])
    found = mean_over_all_permutations(vector_learner(rows, 3), n, 3, visits)
    np.testing.assert_allclose(found, enumerated(n, value), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.sum(1), value[frozenset(range(n))] - NONE, rtol=0, atol=1e-9)


def test_all_permutations_of_a_block_give_the_enumerated_shapley_value(
    start: Any, text: pa.Table
) -> None:
    """Each set trained by itself, on the model as it was loaded."""
    n, visits = 3, np.array([1, 2, 0])
    value = {frozenset[int](): NONE}
    for members in subsets(n):
        measurement, fresh = start("encoder")
        alone = text_learner(measurement, measurement.tokenise(text), "all", fresh, BUDGET)
        own = tuned_by_name(measurement.network, "encoder", 1)
        kept = [w for w in alone.body if any(w is other for other in own.values())]
        alone = Learner(
            *(alone.network, alone.batch, alone.lengths, tuple(kept), alone.head),
            start=tuple(w.detach().clone() for w in (*kept, *alone.head)),
        )
        train(alone, LABELS, np.array([row for row in visits if row in members]), HOW)
        value[frozenset(members)] = worth(outputs(alone, np.arange(n, 7), BUDGET), LABELS[n:])
    measurement, fresh = start("encoder")
    made = text_learner(measurement, measurement.tokenise(text), 1, fresh, BUDGET)
    found = mean_over_all_permutations(made, n, 4, visits)
    np.testing.assert_allclose(found, enumerated(n, value), rtol=0, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_blocks_shrink_the_values_of_an_additive_game_towards_their_mean(every: int) -> None:
    """phi becomes a phi + (1 - a) mean(phi), a = (n - s) / (s (n - 1)); exact without interaction.

    The margin of one query is additive if the outputs are sums over members.
    """
    n, labels = 6, torch.tensor([0])
    phi = torch.tensor([0.5, -2.0, 1.0, 4.0, 0.25, -0.75], dtype=torch.float64)
    sizes = (*range(every, n, every), n)
    units = []
    for order in map(np.array, itertools.permutations(range(n))):
        margin = torch.stack([phi[torch.from_numpy(order[:size])].sum() for size in sizes])
        said = torch.stack([margin / 2, -margin / 2], dim=1)[:, :, None]
        units.append(marginals(said, labels, order, sizes, ("margin",))[0])
    share = (n - every) / (every * (n - 1))
    expected = share * phi + (1 - share) * phi.mean()
    # The margin of two classes is their difference, also where it is negative.
    torch.testing.assert_close(torch.stack(units).mean(0), expected, rtol=0, atol=1e-12)


def test_permutations_are_those_of_freeshap() -> None:
    drawn = [order.tolist() for order in permutations(6, 2, 3, 5)]
    generator = np.random.default_rng([3, 5])
    assert drawn == [generator.permutation(6).tolist() for _ in range(2)]
