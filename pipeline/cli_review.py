"""The commands `assay flag` and `assay apply`: rows that a person decides about, and decisions."""

from pathlib import Path
from typing import Any

import click

from pipeline import api
from pipeline import on_terminal as printed
from pipeline.answer_trust import areas_of, distrust
from pipeline.answers_told import about_other_answers, about_other_orders
from pipeline.cli_options import as_json, method, out, out_or_folder, wait
from pipeline.main_results import n_other_answers, n_other_orders
from pipeline.open_run import open_run
from pipeline.progress import Screen
from pipeline.terminal import show

NONE_FLAGGED = "No row is flagged; --top 20 lists the most suspicious."


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), help="List this many, flagged or not.")
@click.option("--precision", type=float, help="List as many as hold this part of wrong labels.")
@click.option("--all", "is_all", is_flag=True, help="Also rows that a review has decided about.")
@method
@out
@click.option(
    "--review",
    type=click.Path(path_type=Path),
    help="Write a .csv; fill in `decision` (accept, fix, drop) for `assay apply`.",
)
@click.option(
    "--format",
    "form",
    default="csv",
    help="Of the review: csv, label-studio (a .json) or argilla (a folder). The ending chooses "
    "nothing.",
)
@as_json
def flag(
    run: Path,
    top: int | None,
    precision: float | None,
    is_all: bool,
    method: str | None,
    out: Path | None,
    review: Path | None,
    form: str,
    is_json: bool,
) -> None:
    """List the examples whose label, answer or order of answers is probably wrong.

    Example: assay flag runs/quickstart --review review.csv
    """
    if form != "csv" and review is None:
        raise click.UsageError(
            f"found --format {form} without --review, expected a file to write. Say for example "
            "--review tasks.json."
        )
    opened = open_run(run)
    rows = opened.flag(top, method, precision, is_all)
    if out is not None:
        click.echo(f"{opened.write(rows, out)} rows in {out}", err=True)
    if review is not None:
        click.echo(
            f"{opened.write_review(rows, review, form)} rows in {review}. Decide about them, then: "
            f"assay apply {run} {review}",
            err=True,
        )
    if out is None and review is None:
        printed.print_rows(_read(rows, is_json), is_json, NONE_FLAGGED)
        for instance in opened.methods("answer_issues"):
            if method in (None, instance) and (warning := distrust(areas_of(opened, instance))):
                click.echo(warning, err=True)
        if not is_json and (count := n_other_answers(opened)):
            click.echo(about_other_answers(str(opened.folder.path), count), err=True)
        if not is_json and (count := n_other_orders(opened)):
            click.echo(about_other_orders(str(opened.folder.path), count), err=True)


def _read(rows: Any, is_json: bool) -> Any:
    """The rows as people read them: a class by its name alone."""
    is_told = is_json or "true_label" not in rows.columns
    return rows if is_told else rows.project("* EXCLUDE (true_label)")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("review", type=click.Path(path_type=Path))
@out_or_folder
@click.option("--to", type=click.Path(path_type=Path), help="Folder of the new run.")
@wait
@as_json
def apply(
    run: Path, review: Path, out: str | None, to: Path | None, wait: bool, is_json: bool
) -> None:
    """Correct the corpus by a review, and make a new run over it.

    REVIEW is the CSV with its decisions, or what Label Studio (JSON) or Argilla (a folder of
    `to_disk`) exports of the tasks. Several people who decided differently are an error. Only what
    depends on labels is computed again; of preferences, shards with a changed pair.

    Example: assay apply runs/quickstart review.csv --out corrected.parquet
    """
    # Opened first: a run that is corrected in place is another afterwards.
    before = open_run(run) if out is not None or not is_json else None
    with Screen() as screen:
        opened = api.apply(run, review, to, screen, wait)
    if out is not None:
        count = opened.write_corpus(out, before)
        click.echo(f"{count} rows in {out}; dropped and rejected rows are not in it", err=True)
    printed.print_summary(opened, is_json)
    if not is_json:
        from pipeline.applied import changes  # `--help` should not pay for pyarrow

        for line in changes(before, opened):
            show(line)
