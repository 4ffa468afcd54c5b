"""The sections on what a run cost, and on what it was computed from and by."""

import json
from dataclasses import dataclass
from typing import Any

from pipeline.page.asked import Asked, Rows
from pipeline.page.document import readable
from pipeline.page.subject import Subject
from storage.credentials import masked


@dataclass(frozen=True)
class Cost:
    """What every stage took."""

    asked: Asked
    rows: Rows
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Provenance:
    """What the results follow from."""

    facts: list[tuple[str, str]]
    asked: Asked
    config: str


def cost(subject: Subject) -> Cost:
    """Seconds, rows and bytes by stage, in the order of work."""
    asked = subject.ask(
        """
        SELECT instance, any_value(stage) AS stage, max(seconds) AS seconds, sum(rows) AS rows,
               sum(bytes) AS bytes, count(*) AS tables
        FROM runs GROUP BY instance ORDER BY min(created), instance"""
    )
    most = max((row["seconds"] or 0.0 for row in asked.rows), default=0.0) or 1.0
    rows = [{**row, "bar": (row["seconds"] or 0.0) / most} for row in asked.rows]
    seconds = sum(row["seconds"] or 0.0 for row in rows)
    return Cost(asked, rows, seconds, sum(int(row["bytes"] or 0) for row in rows))


def provenance(subject: Subject) -> Provenance:
    """Sources, models, seeds, versions and the whole configuration."""
    asked = subject.ask(
        """
        SELECT instance, stage, version, model, revision, seed, created, packages FROM runs
        ORDER BY created, instance, "table" """
    )
    rows, record = asked.rows, subject.run.record
    facts = [("run", record["run_id"]), ("folder", str(subject.run.folder.path))]
    facts.append(("corpus", _source(subject, "corpus")))
    if subject.config.get("queries"):
        facts.append(("queries", _source(subject, "queries")))
    models = dict.fromkeys(
        row["model"] + (f" at {row['revision']}" if row["revision"] else "")
        for row in rows
        if row["model"]
    )
    facts += [("model", model) for model in models]
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    facts.append(("seeds", ", ".join(map(str, seeds)) or "none was needed"))
    facts.append(("computed", f"{rows[0]['created']} to {rows[-1]['created']}"))
    facts.append(("packages", _packages(rows)))
    return Provenance(
        [(name, readable(masked(text), 2000)) for name, text in facts],
        asked,
        masked(record["config"]),
    )


def _source(subject: Subject, role: str) -> str:
    given = subject.config[role]
    parts = [str(given["path"])]
    parts += [f"{name} {given[name]}" for name in ("name", "revision", "split") if given.get(name)]
    return ", ".join(parts)


def _packages(rows: Rows) -> str:
    """Every package with the versions that tables were computed by."""
    versions: dict[str, list[str]] = {}
    for row in rows:
        found: dict[str, Any] = json.loads(row["packages"] or "{}")
        for name, version in found.items():
            if str(version) not in versions.setdefault(name, []):
                versions[name].append(str(version))
    return ", ".join(f"{name} {' and '.join(found)}" for name, found in sorted(versions.items()))
