"""Per-example gradients of a language model against plain forward and backward passes.

Both pass the same batches of the same model in one process, in turns: the stage `gradient` from
texts to projected vectors, and the mean loss of a batch with `backward()`, which leaves the summed
gradient of the same weights, of adapters of A and of B, as a training step would. Plain passes
read logits where answers are, as the stage does. Calibration and loading are apart.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from benchmarks.memory import MemoryInputs

ARMS = {"lora": {"lora": {"rank": 16}}, "last_blocks": {"last_blocks": 4}}
LONGEST, TOKEN_BUDGET = 384, 1024
RESET = "5"
"""What sets VmHWM back to what is resident now, in /proc/self/clear_refs."""


class Chats(MemoryInputs):
    """Inputs of a stage over a corpus of prompts and completions."""

    def details(self, name: str) -> dict[str, Any]:
        """The form of the text, and the task."""
        return {"format": "prompt_completion", "task": "completion", "classes": []}


def against_plain(
    model: Path, rows: Sequence[tuple[str, str]], n_rounds: int
) -> dict[str, dict[str, Any]]:
    """Of each arm, rows per CPU-second by the stage and by plain passes, and their memory."""
    ids = pa.array(range(len(rows)), pa.int64())
    text = pa.table(
        {
            "id": ids,
            "role": ["example"] * len(rows),
            "text": [prompt for prompt, _ in rows],
            "text_b": [answer for _, answer in rows],
        }
    )
    label = pa.table({"id": ids, "role": text["role"], "label": pa.nulls(len(rows), pa.int64())})
    return {name: _of_arm(model, trained, text, label, n_rounds) for name, trained in ARMS.items()}


def _of_arm(
    model: Path, trained: dict[str, Any], text: pa.Table, label: pa.Table, n_rounds: int
) -> dict[str, Any]:
    from pipeline.config import parse_stage
    from stages.model.batches import batches
    from stages.model.layers import trained_layers

    raw = {"path": str(model), "head": "completion", "max_length": LONGEST, "train": trained}
    stage = parse_stage("gradient", {"model": raw}, None, "bench")
    inputs = Chats(text=text, label=label)
    start = time.process_time()
    inputs.opened = stage.open(inputs)
    opened_s = time.process_time() - start
    measurement = inputs.opened.measurement
    network = measurement.network
    if "lora" in trained:
        weights = [p for name, p in network.named_parameters() if ".lora_" in name]
    else:
        weights = [layer.weight for layer in trained_layers(network, stage.model.train).values()]
    asked = [(parameter, parameter.requires_grad) for parameter in network.parameters()]

    def ours() -> int:
        return sum(batch.num_rows for name, batch in stage.compute(inputs) if name == "gradient")

    def plain() -> int:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        tokens = measurement.tokenise(text)
        for rows in batches(tokens.lengths, TOKEN_BUDGET):
            (-measurement.outputs(measurement.batch(tokens, rows)).mean()).backward()
            for weight in weights:
                weight.grad = None
        for parameter, was in asked:
            parameter.requires_grad_(was)
        return int((np.asarray(measurement.has_target(tokens))).sum())

    found: dict[str, Any] = {
        "open_cpu_s": round(opened_s, 1),
        "tokens_per_row": round(float(measurement.tokenise(text).lengths.mean()), 1),
        "weights": sum(weight.numel() for weight in weights),
        "rounds": [],
    }
    for turn in range(n_rounds):
        contestants: list[tuple[str, Callable[[], int]]] = [("assay", ours), ("plain", plain)]
        one: dict[str, Any] = {}
        for name, passes in contestants[:: -1 if turn % 2 else 1]:
            before, began = reset_peak(), time.process_time()
            n = passes()
            seconds = time.process_time() - began
            one[name] = {
                "rows": n,
                "rows_per_cpu_s": round(n / seconds, 4),
                "added_bytes": peak_bytes() - before,
            }
        one["ratio"] = round(one["assay"]["rows_per_cpu_s"] / one["plain"]["rows_per_cpu_s"], 3)
        found["rounds"].append(one)
    found["ratio"] = round(float(np.median([one["ratio"] for one in found["rounds"]])), 3)
    return found


def reset_peak() -> int:
    """Bytes that are resident now, from which the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text(RESET)
    return peak_bytes()


def peak_bytes() -> int:
    """The most bytes that were resident since."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
