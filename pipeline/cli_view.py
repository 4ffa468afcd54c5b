"""The command `assay view`: a run in the browser."""

from pathlib import Path

import click

from pipeline.progress import Screen


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--review",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The CSV that decisions are kept in; by default review.csv in the folder of the run.",
)
@click.option(
    "--by", multiple=True, metavar="COLUMN", help="List and filter by a column of the source, too."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="By default a free one.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Another lets in other machines that know the address.",
)
@click.option("--open", "is_opened", is_flag=True, help="Open a browser.")
def view(
    run: Path, review: Path | None, by: tuple[str, ...], port: int, host: str, is_opened: bool
) -> None:
    """Look at a run in the browser, and decide about its rows there.

    Serves pages on this machine until Ctrl-C. The corpus is never changed: decisions are kept in a
    review, which `assay apply` takes.

    Example: assay view runs/quickstart
    """
    from pipeline.viewer.serve import LOOPBACK, serve

    def tell(address: str, n_rows: int) -> None:
        click.echo(f"{n_rows} rows. Open {address}\nCtrl-C ends it; decisions are kept.", err=True)
        if host not in LOOPBACK:
            click.echo(
                f"Anybody who reaches {host} and knows this address can read the run and decide.",
                err=True,
            )

    with Screen("Reading the run ..."):
        pass
    serve(run, review, by, host, port, is_opened, tell)
