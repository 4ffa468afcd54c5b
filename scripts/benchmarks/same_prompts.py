"""Chats whose prompt stands in a corpus with another answer, too: planted ones, and others.

Rows of word problems, role play and tool calls, each once, and copies of some of them: the prompt
with other case, spacing or line ends, and an answer in which a number is another one, or else that
of another row of the set. Told are how many copies are found, with the row that they were made of,
and all other rows that are. Then, without copies but with all six sets of `answers`, how many rows
have nearly the same prompt as one with another answer: Jaccard similarity from 0.7 to less than 1,
shared instructions aside.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from benchmarks.answers import TASKS, read
from benchmarks.finished import run_config

CHATS = ("gsm8k", "gpteacher_roleplay", "gpteacher_toolformer")
MOST = 3000
"""Rows of a set whose nearly same prompts are counted."""


def of_chats(data: Path, work: Path, n_planted: int, n_shown: int) -> dict[str, Any]:
    """What is found of planted copies and of other rows, and what nearly the same prompts are."""
    rng = np.random.default_rng(0)
    rows = [(task, *row) for task in CHATS for row in read(data / task / "train.parquet", task)]
    by_task = {task: [answer for t, _, answer in rows if t == task] for task in CHATS}
    origins = rng.permutation(len(rows))[:n_planted].tolist()
    copies = []
    for turn, at in enumerate(origins):
        task, prompt, answer = rows[at]
        copies.append((task, respelt(prompt, turn), other(answer, by_task[task], rng)))
    folder = work / "chats"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for at, (_, prompt, answer) in enumerate([*rows, *copies]):
            turns = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"id": at, "messages": turns}) + "\n")
    run = run_config(
        {
            "run": str(folder / "run"),
            "corpus": {"path": str(folder / "rows.jsonl"), "task": "completion", "id": "id"},
            "stages": {"near_duplicates": {}},
            "ray": {"engine": "in_process"},
        }
    )
    found = run.sql(
        "SELECT e.source_id::INT, o.source_id::INT, n_answers FROM issues JOIN examples AS e USING "
        "(example_id) JOIN examples AS o ON o.example_id = other_id "
        "WHERE issue = 'same prompt with another answer' ORDER BY 1"
    ).fetchall()
    partner = {row: (of, n) for row, of, n in found}
    made = dict(zip(range(len(rows), len(rows) + n_planted), origins, strict=True))
    right = [row for row, of in made.items() if row in partner and partner[row][0] == of]
    others = [row for row in partner if row not in made and row not in origins]
    shown = rng.permutation(others)[:n_shown].tolist()
    texts = [*rows, *copies]
    return {
        "rows": len(rows),
        "planted": n_planted,
        "found": len(set(made) & set(partner)),
        "found_with_their_origin": len(right),
        "others": {task: sum(rows[row][0] == task for row in others) for task in CHATS},
        "read": [[texts[row], texts[partner[row][0]], partner[row][1]] for row in shown],
        "nearly": nearly_the_same(data, rng),
    }


def respelt(prompt: str, turn: int) -> str:
    """The prompt with other case, spacing, line ends, or as it is."""
    return (prompt, prompt.upper(), "  ".join(prompt.split(" ")), f"\n{prompt} \n")[turn % 4]


def other(answer: str, answers: list[str], rng: np.random.Generator) -> str:
    """The answer with its last number changed; one of another row where it has none."""
    numbers = list(re.finditer(r"\d+", answer))
    if numbers:
        last = numbers[-1]
        return f"{answer[: last.start()]}{int(last[0]) + 1}{answer[last.end() :]}"
    return next(a for a in (str(rng.choice(answers)) for _ in range(100)) if a != answer)


def nearly_the_same(data: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Rows of each set with nearly the prompt of a row that has another answer."""
    from stages.ranking.near_texts import candidates, similarities, sketches_of
    from stages.reading.shared_passages import shared_windows, without_shared
    from stages.reading.shingles import letters_of

    rows = []
    for task in TASKS:
        every = read(data / task / "train.parquet", task)
        rows += [(task, *every[at]) for at in rng.permutation(len(every))[:MOST].tolist()]
    prompts = letters_of([prompt for _, prompt, _ in rows])
    answers = np.array(letters_of([answer for *_, answer in rows]).to_pylist())
    some = np.linspace(0, len(rows) - 1, 2000).astype(int)
    bare = without_shared(prompts, shared_windows(prompts.take(pa.array(some))))
    _, bands, marks = sketches_of(bare)
    pairs, _ = candidates(bands, marks, np.zeros(len(rows), bool), 0.7)
    alike = similarities(bare, pairs)
    is_near = (alike >= 0.7) & (answers[pairs.first] != answers[pairs.second]) & (alike < 1)
    near = np.unique([pairs.first[is_near], pairs.second[is_near]])
    tasks = np.array([task for task, *_ in rows])
    return {
        task: {"rows": int((tasks == task).sum()), "near": int((tasks[near] == task).sum())}
        for task in TASKS
    }
