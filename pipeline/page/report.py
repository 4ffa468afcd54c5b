"""The report of a run: one page that people read, with the SQL behind every number."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.explain.picture import data_url, largest
from pipeline.page.answers import answers
from pipeline.page.cautions import cautions
from pipeline.page.document import asset, document, part, write_output
from pipeline.page.explanation_file import images_in
from pipeline.page.explorer import Explorer, explorer
from pipeline.page.labels import MATRIX, labels
from pipeline.page.missing import missing
from pipeline.page.overview import overview
from pipeline.page.record import cost, provenance
from pipeline.page.rows_table import rows_table, table_script
from pipeline.page.subject import Subject
from pipeline.page.targets import questions, targets
from pipeline.page.trust import evaluations, read_evaluation
from pipeline.page.twins import twins
from pipeline.page.values import groups, values
from pipeline.page.words import words
from pipeline.progress import Progress


@dataclass(frozen=True)
class Section:
    """A section of the report: the name of its template, its title, and what it shows."""

    id: str
    title: str
    content: Any

    @property
    def template(self) -> str:
        """The file that shows the content."""
        return f"sections/{self.id}.html"


def report_page(
    run: Any,
    by: Sequence[str] = (),
    evaluated: Sequence[str | Path | Mapping[str, Any]] = (),
    progress: Progress | None = None,
) -> str:
    """The report of `run`, a `pipeline.open_run.OpenedRun`, as a document of HTML.

    What the run has no tables for is left out; a last section says which stages would bring it.

    Args:
        run: The opened run.
        by: Columns of the source, for which flags and values are also told.
        evaluated: Results of `evaluate`, or files of them in JSON.
        progress: Hears of what is left out.

    Raises:
        RunError: there is no such column, or an evaluation is of another run.
    """
    content = contents(Subject(run), by, evaluated, progress)
    return document("report.html", scripts=[asset("page.js"), table_script("table.js")], **content)


def contents(
    subject: Subject,
    by: Sequence[str] = (),
    evaluated: Sequence[str | Path | Mapping[str, Any]] = (),
    progress: Progress | None = None,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """What the template of the report shows of a run.

    `without` are ids of sections that are left out; for the rest see `report_page`.
    """
    run = subject.run
    found = [read_evaluation(given, run.record["run_id"]) for given in evaluated]
    parts: tuple[tuple[str, str, Callable[[Subject], Any]], ...] = (
        ("labels", "Labels", labels),
        ("answers", "Pairs" if subject.task == "preference" else "Answers", answers),
        ("targets", "Targets", targets),
        ("questions", "Questions", questions),
        ("rows", "All rows", rows_table),
        ("values", "Helpful and harmful", values),
        ("columns", "By column", lambda of: [groups(of, column) for column in by] or None),
        ("trust", "Evaluations", lambda of: evaluations(found)),
        ("twins", "Duplicates and outliers", twins),
        ("queries", "Queries", lambda of: explorer(of, progress or Progress())),
        ("cost", "Cost", cost),
        ("provenance", "Provenance", provenance),
        ("words", "Words", words),
        ("missing", "Not in this run", missing),
    )
    sections = [Section(id, title, make(subject)) for id, title, make in parts if id not in without]
    shown = [section for section in sections if section.content is not None]
    explored = next((s.content for s in shown if s.id == "queries"), None)
    return {
        "run_id": run.record["run_id"],
        "run_path": subject.path,
        "top": overview(subject),
        "cautions": cautions(subject),
        "sections": shown,
        "images": _pictures(run, "examples", set(_example_ids(shown))),
        "query_images": _pictures(run, "queries", _query_ids(explored)),
        "most_matrix": MATRIX,
        "has_evaluations": bool(found),
        "is_of_classes": subject.task == "classification",
    }


def _example_ids(sections: Sequence[Section]) -> Iterator[int]:
    """Ids of the examples that sections show in full."""
    for section in sections:
        content = section.content
        if section.id in ("labels", "targets"):
            yield from (row["example_id"] for row in content.cards)
        if section.id == "labels" and content.neighbours:
            yield from (row["example_id"] for row in content.neighbours.rows)
        if section.id == "values":
            yield from (row["example_id"] for listed in content.lists for row in listed.rows)
        if section.id == "twins":
            yield from (row["example_id"] for row in content.far)
        if section.id == "queries":
            yield from (row["example_id"] for one in content.queries for row in one["rows"])


def _query_ids(explored: Explorer | None) -> set[int]:
    return {one["query"]["query_id"] for one in explored.queries} if explored else set()


def _pictures(run: Any, view: str, ids: set[int]) -> dict[int, str]:
    """Images of rows as `data:` URLs, by id."""
    images = images_in(run, view, sorted(ids))
    white = largest(list(images.values()))
    return {row: data_url(image, white) for row, image in images.items()}


def top_of_report(run: Any) -> str:
    """What a notebook shows of a run: what was found, what to do next, what not to trust."""
    subject = Subject(run)
    top, found = overview(subject), cautions(subject)
    return part("top.html", top=top, cautions=found, run_path=subject.path)


def write_report(
    run: Any,
    path: Path,
    by: Sequence[str] = (),
    evaluated: Sequence[str | Path | Mapping[str, Any]] = (),
    progress: Progress | None = None,
) -> None:
    """Writes the report of a run to `path`, whole or not at all; see `report_page`.

    Raises:
        RunError: the ending is not .html, or the file cannot be written.
    """
    if path.suffix != ".html":
        raise RunError(
            f"{path}: found the ending {path.suffix!r}, expected .html. Rename the output."
        )
    data = report_page(run, by, evaluated, progress).encode()
    write_output(path, data)
