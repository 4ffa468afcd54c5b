"""Options that several commands have."""

from pathlib import Path

import click

settings = click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one value."
)
as_json = click.option("--json", "is_json", is_flag=True, help="Print JSON for programs.")
out = click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write .parquet, .jsonl or .csv."
)
out_or_folder = click.option(
    "--out", type=click.Path(), help="Write .parquet, .jsonl or .csv; without ending, a new folder."
)
wait = click.option(
    "--wait", is_flag=True, help="Wait where another process works on the run, and then go on."
)
method = click.option("--method", help="The stage to take, when the run has several.")
COUNT = click.IntRange(min=1)
