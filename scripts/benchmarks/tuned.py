"""A causal language model after a short fine-tuning of its last blocks on completions."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from benchmarks.language_model import TOKEN_BUDGET, FormInputs, text_table

EPOCHS, BATCH, RATE = 2, 8, 1e-4


def tuned(model: dict[str, Any], rows: pa.Table, folder: Path) -> Path:
    """The folder of the model that the completions of these rows were taught, by Adam."""
    from pipeline.config import parse_stage
    from stages.model.learners import text_learner
    from stages.model.measurement import load_measurement

    spec = parse_stage("prediction", {"model": model}, None, "bench").model
    measurement = load_measurement(spec, FormInputs("prompt_completion"))
    tokens = measurement.tokenise(text_table(rows["prompt"], rows["completion"]))
    learner = text_learner(measurement, tokens, spec.train.last_blocks, [], TOKEN_BUDGET)
    optimiser = torch.optim.Adam(learner.body, lr=RATE)
    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for batch in np.array_split(rng.permutation(rows.num_rows), rows.num_rows // BATCH):
            optimiser.zero_grad()
            (-learner.network(**learner.batch(batch)).mean()).backward()
            optimiser.step()
    shutil.copytree(model["path"], folder)
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trunk: Any = measurement.network.trunk
    whole.base_model.load_state_dict(trunk.state_dict())
    whole.save_pretrained(folder)
    return folder
