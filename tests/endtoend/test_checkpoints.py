"""A Trainer's checkpoints, from its callback to scores over all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import transformers
import yaml
from runs import write_lines
from tiny_models import word_model

from pipeline.api import record_checkpoints, run

WORDS = "red blue green the house sky sea is of what colour and has a long road".split()
N, LONGEST = 12, 12


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("is_lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_scores_add_up_over_the_checkpoints_of_a_training(tmp_path: Path, is_lora: bool) -> None:
    base = word_model(tmp_path / "model", WORDS, n_positions=LONGEST)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    if is_lora:
        lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        network = peft.get_peft_model(network, lora)
    drawn = np.random.default_rng(0)
    texts = [" ".join(drawn.choice(WORDS, 6)) for _ in range(N)]
    trained = [{**(t := tokenizer(text)), "labels": t["input_ids"]} for text in texts]
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
        train_dataset=trained,
        processing_class=tokenizer,
        callbacks=[
            record_checkpoints(
                tmp_path / "checkpoints.yaml", str(base), head="completion", max_length=LONGEST
            )
        ],
    )
    trainer.train()
    stages = yaml.safe_load((tmp_path / "checkpoints.yaml").read_text())["stages"]
    # Two are kept; the rate falls from 0.3 to 0 in three steps.
    assert stages["tracin"]["gradients"] == ["step_2", "step_3"]
    assert stages["tracin"]["rates"] == pytest.approx([0.2, 0.1])
    rows = write_lines(tmp_path / "rows.jsonl", [{"id": i, "text": t} for i, t in enumerate(texts)])
    done = run(
        {
            "run": str(tmp_path / "run"),
            "model": {"path": str(base), "head": "completion", "max_length": LONGEST},
            "corpus": {"path": rows, "task": "completion", "text": "text", "id": "id"},
            "queries": {"path": rows, "text": "text", "id": "id"},
            "ray": {"engine": "in_process"},
            "stages": {**stages, "tracin": {**stages["tracin"], "top_k": None}},
        }
    )
    scores = done.sql(
        "SELECT query_id, example_id, score FROM attributions ORDER BY ALL"
    ).fetchnumpy()
    wanted = np.zeros((N, N))
    for name, rate in zip(stages["tracin"]["gradients"], stages["tracin"]["rates"], strict=True):
        matrix = {
            role: np.stack(
                [
                    np.array(vector)
                    for (vector,) in done.sql(
                        f"SELECT vector FROM gradients WHERE method = '{name}' AND role = '{role}' "
                        "ORDER BY id"
                    ).fetchall()
                ]
            )
            for role in ("query", "example")
        }
        wanted += rate * matrix["query"] @ matrix["example"].T
    np.testing.assert_allclose(scores["score"].reshape(N, N), wanted, rtol=1e-4, atol=1e-6)
