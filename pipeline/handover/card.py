"""The text of a data set's card: what was kept, what was removed and why, and how."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.code_version import package_version
from pipeline.terminal import CONTROLS
from pipeline.yaml_text import read_yaml
from storage.credentials import masked

CONFIGS = {
    "default": "the rows to train on",
    "removed": "rows of the corpus that are not among them, with the reason",
    "corrected": "rows whose label, target or order a person changed, as they are now",
    "rejected": "rows of the source that could not be used, as they came (`raw`), with the reason",
}
"""What a folder may hold, by the name of the configuration."""
PACKAGES = ("assay", "datasets", "torch", "transformers")
SIGNS = {ord(sign): f"\\{sign}" for sign in "\\`*_{}[]<>()#+!|&~$"}
"""What stands in Markdown for a sign that would have a meaning there."""


@dataclass(frozen=True)
class Story:
    """How rows came to be kept."""

    run: Any
    """The opened run (`pipeline.open_run.OpenedRun`)."""
    title: str
    command: str
    counts: Sequence[tuple[str | None, int, int]]
    """Of each class its name, and how many rows it had before and has now."""
    per: str
    """What classes are called."""
    reasons: Mapping[str, int]
    """Why rows were removed, each reason with their number."""


def card_text(story: Story, name: str, tables: Mapping[str, pa.Table]) -> str:
    """The text of the card of a folder called `name` with these rows, by configuration."""
    run = story.run
    kept = tables["default"].num_rows
    total = kept + (tables["removed"].num_rows if "removed" in tables else 0)
    of_run = f"by the run {plain(run.record['run_id'])} of assay"
    lines = [
        f"# {story.title}",
        "",
        f"{kept:,} of {total:,} rows of {plain(_source(run))}, {of_run}.",
        "",
        *_table(
            ("configuration", "rows", "holds"),
            [(f"`{key}`", f"{rows.num_rows:,}", CONFIGS[key]) for key, rows in tables.items()],
        ),
    ]
    why = Counter(story.reasons)
    if "rejected" in tables:
        why.update(tables["rejected"]["reason"].to_pylist())
    if why:
        ordered = sorted(why.items(), key=lambda pair: (-pair[1], pair[0]))
        rows = [(plain(reason), f"{n:,}") for reason, n in ordered]
        lines += ["## What was removed, and why", "", *_table(("reason", "rows"), rows)]
    if any(class_name is not None for class_name, _, _ in story.counts):
        lines += [f"## Rows of each {plain(story.per)}, before and after", "", *_classes(story)]
    models = run.sql("SELECT DISTINCT model FROM runs WHERE model IS NOT NULL ORDER BY 1")
    named = ", ".join(plain(Path(model).name) for (model,) in models.fetchall()) or "none"
    versions = ", ".join(f"{package} {package_version(package)}" for package in PACKAGES)
    lines += [
        "## How it was made",
        "",
        f"- Command: {plain(story.command)}",
        f"- Run: {plain(run.record['run_id'])}",
        f"- Models: {named}",
        f"- Versions: {versions}",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("{_code(name)}", split="train")',
    ]
    if "removed" in tables:
        lines.append(f'removed = load_dataset("{_code(name)}", "removed", split="train")')
    licence = "The licence is that of the source; name it here before this is published."
    return "\n".join([*lines, "```", "", licence, ""])


def plain(text: str) -> str:
    """The text as Markdown shows it, whatever is in it."""
    return text.translate(CONTROLS).translate(SIGNS)


def _code(text: str) -> str:
    """The text inside of quotes in Python, in a block of code."""
    return text.translate(CONTROLS).replace("\\", "\\\\").replace('"', '\\"').replace("`", "'")


def _source(run: Any) -> str:
    """The name of the source of the corpus, without its folder."""
    config = read_yaml(run.record.get("config") or "", str(run.folder.config)) or {}
    path = masked(str((config.get("corpus") or {}).get("path") or "a corpus"))
    return Path(path.rstrip("/")).name or path


def _classes(story: Story) -> list[str]:
    """The table of classes with their rows and shares."""
    before = max(1, sum(n for _, n, _ in story.counts))
    after = max(1, sum(n for _, _, n in story.counts))
    rows = [
        (plain(str(name)), f"{n:,} ({n / before:.1%})", f"{kept:,} ({kept / after:.1%})")
        for name, n, kept in story.counts
    ]
    return _table((plain(story.per), "before", "after"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, and an empty one."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
