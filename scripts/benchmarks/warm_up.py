"""The warm-up of LESS: LoRA trained on a few rows by a Trainer, with a checkpoint an epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
import yaml

from pipeline.api import record_checkpoints
from stages.model.batches import Tokens
from stages.model.networks import IGNORED


def warmed(
    path: Path, tokens: Tokens, rows: np.ndarray, folder: Path, epochs: int, longest: int
) -> dict[str, Any]:
    """The stages that choose by LESS after a training on `rows` of the tokens, in `folder`.

    As in the source but for its size: LoRA on all linear layers, a rate that warms up and decays.
    """
    out = folder / "checkpoints.yaml"
    if not out.is_file():
        torch.manual_seed(0)
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        lora = peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear")
        asked = transformers.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=epochs,
            save_strategy="epoch",
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=2e-4,
            warmup_steps=1,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
        )
        callback = record_checkpoints(
            out, str(path), method="less", head="completion", max_length=longest
        )
        transformers.Trainer(
            model=peft.get_peft_model(network, lora),
            args=asked,
            train_dataset=[_row(tokens, row) for row in rows.tolist()],
            data_collator=_padded,
            callbacks=[callback],
        ).train()
    stages: dict[str, Any] = yaml.safe_load(out.read_text())["stages"]
    return stages


def _row(tokens: Tokens, row: int) -> dict[str, list[int]]:
    """A row as a Trainer has it: the label of a token is the token itself, where it counts."""
    columns = tokens.columns
    labels = [IGNORED, *columns["targets"][row][:-1]]
    return {"input_ids": list(columns["input_ids"][row]), "labels": labels}


def _padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["labels"]) for row in rows)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    mask = torch.tensor(
        [[1] * len(row["labels"]) + [0] * (longest - len(row["labels"])) for row in rows]
    )
    return {
        "input_ids": filled("input_ids", 0),
        "labels": filled("labels", IGNORED),
        "attention_mask": mask,
    }
