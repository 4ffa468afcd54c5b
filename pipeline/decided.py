"""The decisions of a person about rows of a run: a CSV to fill in, and those that count already."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.yaml_text import read_yaml
from storage.sql import quoted


def review_columns(columns: list[str]) -> str:
    """The columns of a review, as SQL over the rows that `OpenedRun.flag` gave, with `columns`.

    They are source_id, decision (empty), text, given_label, new_label (the suggestion; change it
    where another is right), label_score, p_wrong (the probability that the label is wrong), flagged
    (yes or no), example_id; text_b for pairs. Of completions: source_id, decision (accept or drop),
    prompt, answer (of preferences chosen and rejected, which `fix` lets change places), reason,
    p_wrong, flagged, example_id.
    """
    pair = "text_b, " if "text_b" in columns else ""
    shown = (
        f"text, {pair}given_label, suggested_label AS new_label, "
        "round(label_score, 4) AS label_score"
    )
    flag = "is_label_issue"
    if "rejected" in columns:
        shown, flag = "prompt, chosen, rejected, reason", "is_preference_issue"
    elif "answer" in columns:
        shown, flag = "prompt, answer, reason", "is_answer_issue"
    if "p_wrong" in columns:
        shown += ", round(p_wrong, 4) AS p_wrong"
    if flag in columns:
        shown += f", if({flag}, 'yes', 'no') AS flagged"
    return f"source_id, NULL::VARCHAR AS decision, {shown}, example_id"


def decisions(run: Any) -> str | None:
    """SQL that gives `example_id` and `decision` of the rows that a review has decided about.

    `run` is an `OpenedRun`. Of several reviews the last one counts. None where no review of the run
    decides anything.

    Raises:
        RunError: a review that the run was made with is gone.
        stages.stage.DataError: it cannot be read.
    """
    found: dict[tuple[str, str], tuple[str, int]] = {}
    for place, path in enumerate(reviews(run)):
        from stages.corpus.review import read_decisions  # it takes datasets' time to import

        key, decided = read_decisions(path)
        found |= {(key, row_id): (verdict, place) for row_id, verdict in decided.items()}
    if not found:
        return None
    rows = ", ".join(
        f"({quoted(key)}, {quoted(row_id)}, {quoted(verdict)}, {place})"
        for (key, row_id), (verdict, place) in found.items()
    )
    return (
        "SELECT e.example_id, arg_max(d.decision, d.place) AS decision FROM examples AS e JOIN "
        f"(VALUES {rows}) AS d(key, id, decision, place) ON d.id = "
        "CASE d.key WHEN 'source_id' THEN e.source_id ELSE e.example_id::VARCHAR END "
        "GROUP BY e.example_id"
    )


def undecided(run: Any) -> str:
    """The condition, after AND, that no review has decided about a row; empty without reviews.

    Raises:
        RunError, stages.stage.DataError: as `decisions`.
    """
    reviewed = decisions(run)
    return f"AND example_id NOT IN (SELECT example_id FROM ({reviewed}))" if reviewed else ""


def reviews(run: Any) -> Iterator[str]:
    """Paths and URLs of the reviews that the run was made with; those in its folder move with it.

    Raises:
        RunError: one on disk is gone.
    """
    # They import pyarrow, which `assay --help` is spared.
    from pipeline.paths import exists
    from stages.corpus.source import is_url

    # The YAML as it is: to parse a configuration would import every stage.
    config = read_yaml(run.record.get("config") or "", str(run.folder.config))
    config = config if isinstance(config, dict) else {}
    corpus = config.get("corpus")
    named = corpus.get("corrections") if isinstance(corpus, dict) else None
    for name in map(str, named if isinstance(named, list) else ()):
        if is_url(name):
            yield name
            continue
        path = moved(name, str(config.get("run")), run.folder.path)
        if not exists(path):
            path = str(run.folder.path / Path(path).name)
        if not exists(path):
            raise RunError(
                f"{run.folder.path}: found no review {name}, expected the file that the run was "
                "corrected by, whose rows are not listed again. Put it back."
            )
        yield path


def moved(path: str, was: str, now: Path) -> str:
    """Where a file of a run lies: at `path`, or in its folder, which `was` elsewhere, `now`."""
    place = Path(path)
    if not place.is_relative_to(was):
        return path
    there = now / place.relative_to(was)
    return str(there) if there.exists() else path
