"""The command `assay report`: a run as a page for people."""

from pathlib import Path

import click

from pipeline import api
from pipeline.progress import Screen


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    show_default=True,
    help="The page, .html; replaced as a whole if it exists.",
)
@click.option(
    "--by", multiple=True, metavar="COLUMN", help="Values and flags by a column of the source, too."
)
@click.option(
    "--evaluation",
    "evaluations",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file of what `assay evaluate --json` printed, to be shown.",
)
def report(run: Path, out: Path, by: tuple[str, ...], evaluations: tuple[Path, ...]) -> None:
    """Write a page that says what a run found, what to do next and what not to trust.

    One file of HTML that needs no network; every number in it comes with its SQL.

    Example: assay report runs/quickstart --out report.html
    """
    with Screen("Reading the run ...") as screen:
        api.report(run, out, by, evaluations, screen)
    click.echo(f"Report written to {out}", err=True)
