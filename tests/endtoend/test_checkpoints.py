"""A Trainer's checkpoints, from its callback to scores over all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
import yaml
from runs import write_lines
from tiny_models import word_model

from pipeline.api import draw_by_weight, record_checkpoints, run
from stages.stage import ConfigError

WORDS = "red blue green the house sky sea is of what colour and has a long road".split()
N, LONGEST = 12, 12


# peft asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def trained(tmp_path: Path, is_lora: bool, **asked: Any) -> tuple[dict[str, Any], list[str]]:
    """The stages that the callback writes in a training of three steps, and its texts."""
    base = word_model(tmp_path / "model", WORDS, n_positions=LONGEST)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    if is_lora:
        lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        network = peft.get_peft_model(network, lora)
    drawn = np.random.default_rng(0)
    texts = [" ".join(drawn.choice(WORDS, 6)) for _ in range(N)]
    rows = [{**(t := tokenizer(text)), "labels": t["input_ids"]} for text in texts]
    trainer = transformers.Trainer(
        model=network,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=3,
            save_steps=1,
            save_total_limit=2,
            learning_rate=0.3,
            per_device_train_batch_size=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[
            record_checkpoints(
                tmp_path / "checkpoints.yaml",
                str(base),
                head="completion",
                max_length=LONGEST,
                **asked,
            )
        ],
    )
    trainer.train()
    return yaml.safe_load((tmp_path / "checkpoints.yaml").read_text())["stages"], texts


def run_of(tmp_path: Path, texts: list[str], stages: dict[str, Any]) -> Any:
    """A run with these stages, whose rows and queries are the texts."""
    rows = write_lines(tmp_path / "rows.jsonl", [{"id": i, "text": t} for i, t in enumerate(texts)])
    model = {"path": str(tmp_path / "model"), "head": "completion", "max_length": LONGEST}
    return run(
        {
            "run": str(tmp_path / "run"),
            "model": model,
            "corpus": {"path": rows, "task": "completion", "text": "text", "id": "id"},
            "queries": {"path": rows, "text": "text", "id": "id"},
            "ray": {"engine": "in_process"},
            "stages": stages,
        }
    )


def vectors(done: Any, view: str, name: str) -> dict[str, np.ndarray]:
    """The vectors of an instance, by role, in the order of their ids."""
    return {
        role: np.array(
            done.sql(
                f"SELECT vector FROM {view} WHERE method = '{name}' AND role = '{role}' ORDER BY id"
            )
            .df()["vector"]
            .tolist()
        )
        for role in ("query", "example")
    }


@pytest.mark.parametrize("is_lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_scores_add_up_over_the_checkpoints_of_a_training(tmp_path: Path, is_lora: bool) -> None:
    stages, texts = trained(tmp_path, is_lora)
    # Two are kept; the rate falls from 0.3 to 0 in three steps.
    assert stages["tracin"]["gradients"] == ["step_2", "step_3"]
    assert stages["tracin"]["rates"] == pytest.approx([0.2, 0.1])
    done = run_of(tmp_path, texts, {**stages, "tracin": {**stages["tracin"], "top_k": None}})
    scores = done.sql(
        "SELECT query_id, example_id, score FROM attributions ORDER BY ALL"
    ).fetchnumpy()
    wanted = np.zeros((N, N))
    for name, rate in zip(stages["tracin"]["gradients"], stages["tracin"]["rates"], strict=True):
        matrix = vectors(done, "gradients", name)
        wanted += rate * matrix["query"] @ matrix["example"].T
    np.testing.assert_allclose(scores["score"].reshape(N, N), wanted, rtol=1e-4, atol=1e-6)


def test_a_training_is_the_warm_up_of_less(tmp_path: Path) -> None:
    stages, texts = trained(tmp_path, is_lora=True, method="less")
    assert stages["less"] == {"steps": ["step_2", "step_3"], "rates": pytest.approx([0.2, 0.1])}
    similarity = {"similarity": {"features": "less", "top_k": None}}
    done = run_of(tmp_path, texts, {**stages, **similarity})
    scores = done.sql("SELECT score FROM attributions ORDER BY query_id, example_id").fetchnumpy()
    wanted = np.zeros((N, N))
    for name, rate in zip(("step_2", "step_3"), (0.2, 0.1), strict=True):
        unit = {
            role: own / np.linalg.norm(own, axis=1, keepdims=True)
            for role, own in vectors(done, "adam_steps", name).items()
        }
        wanted += rate / 0.3 * unit["query"] @ unit["example"].T
    np.testing.assert_allclose(scores["score"].reshape(N, N), wanted, atol=1e-5)
    nearest = done.select(keep=4, by="query_relevance")
    similarity_of = dict(done.sql("SELECT example_id, similarity FROM query_relevance").fetchall())
    assert len(nearest.fetchall()) == 4
    np.testing.assert_allclose(list(similarity_of.values()), wanted.max(0), atol=1e-5)
    kept = vectors(done, "adam_steps", "step_3")
    # Other moments in the same place are other rows.
    (warm,) = tmp_path.glob("out/checkpoint-3/optimizer.pt")
    state = torch.load(warm)
    for own in state["state"].values():
        own["exp_avg_sq"] *= 4
    torch.save(state, warm)
    again = run_of(tmp_path, texts, {**stages, **similarity})
    moved = vectors(again, "adam_steps", "step_3")
    assert (moved["query"] == kept["query"]).all()
    assert abs(moved["example"]).max() < 0.8 * abs(kept["example"]).max()


class Counted(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Rows, and how often each was asked for."""

    def __init__(self, rows: list[Any]):
        self.rows, self.times = rows, np.zeros(len(rows), int)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Any:
        self.times[at] += 1
        return self.rows[at]


def test_a_trainer_draws_rows_by_weight(tmp_path: Path) -> None:
    base = word_model(tmp_path / "model", WORDS, n_positions=LONGEST)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    rows = [{**(t := tokenizer(" ".join(WORDS[:4]))), "labels": t["input_ids"]} for _ in range(4)]
    counted = Counted(rows)
    trainer = transformers.Trainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(base),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            num_train_epochs=50,
            per_device_train_batch_size=4,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=counted,
    )
    draw_by_weight(trainer, [0.0, 0.4, 1.2, 2.4])
    trainer.train()
    assert counted.times.sum() == 200
    assert counted.times[0] == 0
    # Means of 20, 60 and 120, within four standard deviations.
    assert abs(counted.times[1:] - [20, 60, 120]).max() <= 4 * 120**0.5
    for weights in ([1.0] * 3, [1.0, -1.0, 1.0, 1.0], [0.0] * 4, [1.0, float("nan"), 1.0, 1.0]):
        with pytest.raises(ConfigError, match="draw_by_weight: found"):
            draw_by_weight(trainer, weights)
