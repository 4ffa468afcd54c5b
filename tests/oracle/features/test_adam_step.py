"""Steps of Adam on single rows, against the steps that torch's own optimiser takes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pytest
import torch
import transformers
from memory_inputs import MemoryInputs

from pipeline.errors import ConfigFileError
from pipeline.plan_checks import check_reads
from stages.features.adam_step import AdamStep
from stages.features.gradient import Gradient
from stages.features.less import Less
from stages.gradients import projector
from stages.gradients.projection import Projection
from stages.model.spec import Lora, ModelSpec, Trained
from stages.pairs.influence import Influence
from stages.pairs.tracin import TracIn
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, ModelError, Part
from stages.values.freeshap import STAGE as FreeShap

EXACT = Projection(inputs=None, outputs=None, principal=0, dim=None)
EXAMPLES, QUERIES = Part("example", 0), Part("query", 0)
RATE, WARM_UP = 0.02, 3
# peft asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")


def adam_of(network: Any) -> torch.optim.Optimizer:
    """AdamW as a Trainer makes it: matrices decay, and other weights come behind them."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.8, 0.95), eps=1e-7)


class Warm:
    """A model that was trained for three steps, its folder, and one row's step from there."""

    def __init__(self, folder: Path, base: Path, is_lora: bool) -> None:
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        network = load(base)
        if is_lora:
            is_transposed = "GPT2" in type(network).__name__
            lora = peft.LoraConfig(
                r=3, lora_alpha=6, fan_in_fan_out=is_transposed, target_modules="all-linear"
            )
            with torch.random.fork_rng():
                torch.manual_seed(1)
                network = peft.get_peft_model(network, lora)
        self._network = network.double().eval()
        optimiser = adam_of(self._network)
        for text in ("a bad film", "it was good", "a good film , it was")[:WARM_UP]:
            optimiser.zero_grad()
            self.loss(text).backward()
            optimiser.step()
        self._network.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)
        self._state = copy.deepcopy(optimiser.state_dict())
        torch.save(self._state, folder / "optimizer.pt")
        self._start = {n: p.detach().clone() for n, p in self._network.named_parameters()}
        self.model = ModelSpec(
            str(base if is_lora else folder),
            head="completion",
            adapter=str(folder) if is_lora else None,
            train=Trained() if is_lora else Trained(last_blocks=1),
        )

    def loss(self, text: str) -> Any:
        ids = self._tokenizer(text)["input_ids"] + [self._tokenizer.eos_token_id]
        encoded = torch.tensor([ids])
        return self._network(input_ids=encoded, labels=encoded).loss

    def step(self, text: str) -> dict[str, np.ndarray]:
        """What Adam would add to each weight for this row alone, over minus the rate."""
        optimiser = adam_of(self._network)
        optimiser.load_state_dict(copy.deepcopy(self._state))
        for group in optimiser.param_groups:
            group["weight_decay"] = 0.0
        optimiser.zero_grad()
        self.loss(text).backward()
        optimiser.step()
        moved = {}
        with torch.no_grad():
            for name, weight in self._network.named_parameters():
                moved[name] = ((self._start[name] - weight) / RATE).numpy()
                weight.copy_(self._start[name])
        return moved


def rows_of(text: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Five examples and two queries, of one text each."""
    roles = pa.array(["example"] * 5 + ["query"] * 2)
    text = text.sort_by("id").set_column(1, "role", roles)
    text = text.set_column(3, "text_b", pa.nulls(7, pa.string()))
    return text, text.select(["id", "role"])


@pytest.fixture
def inputs(text: pa.Table) -> MemoryInputs:
    text, label = rows_of(text)
    return MemoryInputs({"text": text, "label": label}, {"label": {"task": "completion"}})


def found(
    inputs: MemoryInputs, stage: AdamStep | Gradient, part: Part = EXAMPLES
) -> dict[str, np.ndarray]:
    """The vectors, by layer."""
    inputs.part = part
    vectors = matrix_of(inputs.run(stage, part)["vector"])
    blocks = inputs.opened.details()["blocks"]
    return {b["name"]: vectors[:, b["start"] : b["start"] + b["size"]] for b in blocks}


@pytest.mark.parametrize(
    ("kind", "is_lora"),
    [
        ("llama", True),
        pytest.param("gpt2", True, marks=pytest.mark.slow),
        pytest.param("llama", False, marks=pytest.mark.slow),
        ("gpt2", False),
    ],
)
def test_a_step_is_what_adam_adds_to_the_weights(
    kind: str,
    is_lora: bool,
    saved: Callable[..., Path],
    inputs: MemoryInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warm = Warm(tmp_path / "warm", saved(kind, "CausalLM"), is_lora)
    stage = AdamStep(warm.model, projection=EXACT)
    steps = found(inputs, stage)
    texts = inputs.table("text", "example")["text"].to_pylist()
    wanted = [warm.step(text) for text in texts]
    assert len(steps) == (28 if kind == "llama" else 16) if is_lora else len(steps) >= 4
    for name, block in steps.items():
        tail = "lm_head.weight" if name == "head" else f"{name.removeprefix('trunk.')}.weight"
        (own,) = [n for n in wanted[0] if f".{n}".endswith(f".{tail}")]
        for row, moved in zip(block, wanted, strict=True):
            whole = moved[own].T if kind == "gpt2" and not is_lora else moved[own]
            error = abs(row - whole.flatten()).max()
            assert error <= 1e-4 * abs(whole).max(), name
    plain = found(inputs, Gradient(warm.model, projection=EXACT))
    assert all(abs(plain[name] - block).max() > 0.1 for name, block in steps.items())
    # Rows are taken a few at a time.
    monkeypatch.setattr(projector, "NUMBERS", 1)
    one_by_one = found(inputs, AdamStep(warm.model, projection=EXACT, checkpointing=True))
    for name, block in steps.items():
        np.testing.assert_allclose(one_by_one[name], block, atol=1e-4)
    # Queries are judged by their loss alone.
    queries, known = (
        found(inputs, kind_of(warm.model, projection=EXACT), QUERIES)
        for kind_of in (AdamStep, Gradient)
    )
    assert all((queries[name] == known[name]).all() for name in known)


def test_steps_are_projected_and_not_projections_stepped(
    saved: Callable[..., Path], inputs: MemoryInputs, tmp_path: Path
) -> None:
    warm = Warm(tmp_path / "warm", saved("llama", "CausalLM"), is_lora=True)
    whole = found(inputs, AdamStep(warm.model, projection=EXACT))
    few = Projection(inputs=6, outputs=4, principal=1, dim=None)
    short = found(inputs, AdamStep(warm.model, projection=few))
    layers = {layer.name: layer for layer in inputs.opened.projector.sketch.layers.values()}
    for name, block in whole.items():
        layer = layers[name]
        wanted = block.reshape(len(block), layer.shape.outputs, layer.shape.inputs)
        if layer.left is not None:
            wanted = layer.left.numpy().T @ wanted
        if layer.right is not None:
            wanted = wanted @ layer.right.numpy()
        wanted = wanted.reshape(len(block), -1)
        np.testing.assert_allclose(short[name], wanted, rtol=0, atol=1e-4 * abs(wanted).max())


def test_checkpoints_that_are_not_adams_are_refused(
    saved: Callable[..., Path], inputs: MemoryInputs, tmp_path: Path
) -> None:
    base = saved("llama", "CausalLM")
    place = tmp_path / "warm"
    warm = Warm(place, base, is_lora=True)
    state = torch.load(place / "optimizer.pt")
    stage = AdamStep(warm.model)
    sgd = {**state, "state": {at: {"momentum_buffer": None} for at in state["state"]}}
    few = {**state, "param_groups": [{**state["param_groups"][0], "params": [0, 1]}]}
    first = {**state["state"][0], "exp_avg": torch.zeros(2, 2)}
    other = {**state, "state": {**state["state"], 0: first}}
    for wrong, said in (
        (sgd, "found momentum_buffer, expected exp_avg"),
        (few, "found 2 weights in 1 groups, expected the 28"),
        (other, r"found a weight of \(2, 2\), expected"),
    ):
        torch.save(wrong, place / "optimizer.pt")
        with pytest.raises(ModelError, match=said):
            inputs.run(stage, EXAMPLES)
    (place / "optimizer.pt").unlink()
    with pytest.raises(ModelError, match=r"found no optimizer\.pt, expected the moments"):
        _ = stage.key_files
    with pytest.raises(ConfigError, match="adapters that are fresh"):
        AdamStep(ModelSpec(str(base), head="completion", train=Trained(lora=Lora())))


def test_the_cosine_of_joined_steps_is_the_score() -> None:
    drawn = np.random.default_rng(0)
    ids = {"a": [3, 5, 9, 20], "b": [3, 9, 20, 21]}
    roles = {3: "example", 5: "example", 9: "example", 20: "query", 21: "query"}
    vectors = {name: drawn.standard_normal((4, 6)).astype(np.float32) * 10 for name in ids}
    tables = {
        name: pa.table(
            {
                "id": ids[name],
                "role": [roles[i] for i in ids[name]],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(own.flatten()), 6),
            }
        )
        for name, own in vectors.items()
    }
    inputs = MemoryInputs(tables)
    table = inputs.run(Less(("a", "b"), rates=(0.3, 0.1)))
    assert table["id"].to_pylist() == [3, 9, 20]
    assert table["role"].to_pylist() == ["example", "example", "query"]
    joined = matrix_of(table["vector"])
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, rtol=1e-6)

    def cosine(name: str, example: int) -> float:
        one, other = (vectors[name][ids[name].index(i)] for i in (example, 20))
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    for at, example in enumerate((3, 9)):
        wanted = (0.3 * cosine("a", example) + 0.1 * cosine("b", example)) / 0.4
        assert joined[at] @ joined[2] == pytest.approx(wanted, abs=1e-6)
    for wrong in ({"steps": ()}, {"steps": ("a", "a")}, {"rates": (1.0, 2.0)}, {"rates": (0.0,)}):
        with pytest.raises(ConfigError):
            Less(**wrong)
    with pytest.raises(ConfigError, match="found a, which writes gradient"):
        Less(("a",)).check_reads({"a": Gradient(ModelSpec("owner/name"))})


def test_steps_have_no_kernel() -> None:
    model = ModelSpec("owner/name")
    steps = AdamStep(model)
    for stage in (FreeShap(kernel=("adam_step",)), Influence(gradient="adam_step")):
        with pytest.raises(ConfigFileError, match="an instance of adam_step with one map"):
            check_reads("own", stage, {"adam_step": steps})
    check_reads("own", TracIn(gradients=("adam_step",)), {"adam_step": steps})
