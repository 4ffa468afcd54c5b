"""The command line: parse, call one function, print. No logic.

Results go to stdout, everything else to stderr.
"""

import json
import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from pipeline import api, plan_summary
from pipeline import on_terminal as printed
from pipeline.budgets import is_in_tokens
from pipeline.chosen_rows import is_worse_than_random, warnings_about
from pipeline.cli_group import Assay
from pipeline.cli_options import COUNT, as_json, method, out, out_or_folder, settings, wait
from pipeline.cli_report import report as write_report
from pipeline.cli_review import apply, flag
from pipeline.cli_view import view
from pipeline.open_run import open_run
from pipeline.progress import Screen
from pipeline.terminal import show


@click.group(cls=Assay, commands=[apply, flag, write_report, view])
@click.option("--debug", is_flag=True, help="Log more, and show the traceback of an error.")
@click.version_option(package_name="assay")
def main(debug: bool) -> None:
    """Which training examples help, which harm, and which carry a wrong label.

    Example: assay run configs/quickstart.yaml
    """
    shown = logging.StreamHandler(sys.stderr)
    shown.setLevel(logging.INFO if debug else logging.WARNING)
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", handlers=[shown]
    )


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@settings
@click.option("--nodes", type=COUNT, help="Of a cluster: its machines.")
@click.option("--cores", type=COUNT, help="Of a cluster: the cores of each machine.")
@click.option("--gpus", type=COUNT, help="Of a cluster: its GPUs, in all.")
@click.option("--rows", type=COUNT, help="Examples, instead of those of the corpus.")
@click.option("--queries", type=COUNT, help="Queries, instead of those of the corpus.")
@click.option("--tokens-per-row", type=click.FloatRange(1), help="Instead of the corpus's.")
@click.option("--assume", multiple=True, metavar="NAME=NUMBER", help="One of what is assumed.")
@as_json
def plan(config: Path, overrides: tuple[str, ...], is_json: bool, **asked: Any) -> None:
    """Print what a run would compute, reuse and cost. Computes nothing.

    With a size or a cluster: what all of the run would take there, and what limits each stage.

    Example: assay plan configs/quickstart.yaml --nodes 64 --cores 64 --rows 100000000
    """
    from pipeline import cluster_size  # it imports numpy, which `--help` should not pay for

    planned = api.plan(config, overrides, *cluster_size.asked_for(**asked))
    shown = plan_summary.print_forecast if any(asked.values()) else plan_summary.print_estimate
    shown(planned, is_json)


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@settings
@click.option("--ray-address", help="A Ray cluster to run on; RAY_ADDRESS stands in.")
@wait
@as_json
def run(
    config: Path, overrides: tuple[str, ...], ray_address: str | None, wait: bool, is_json: bool
) -> None:
    """Compute what the YAML describes, and show the main results.

    What was computed before is reused: the same command goes on after a kill, and a changed YAML
    computes only what the change touches.

    Example: assay run configs/quickstart.yaml --set stages.freeshap.rounds=40
    """
    if ray_address is not None:
        overrides = (*overrides, f"ray.address={json.dumps(ray_address)}")
    with Screen() as screen:
        opened = api.run(config, overrides, screen, wait)
    printed.print_summary(opened, is_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@as_json
def status(run: Path, is_json: bool) -> None:
    """Print which tables of a run are complete; rebuild the catalog of a run that was moved.

    Example: assay status runs/quickstart
    """
    printed.print_status(api.status(run), is_json)


@main.command()
@click.argument("place", required=False)
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A run whose tables in the store stay, where the store does not know of it.",
)
@click.option("--forget", multiple=True, help="The path of a run that is gone for good.")
@click.option("--remove", is_flag=True, help="Remove what is shown.")
@as_json
def clean(
    place: str | None,
    runs: tuple[Path, ...],
    forget: tuple[str, ...],
    remove: bool,
    is_json: bool,
) -> None:
    """Show what is left over, with sizes; --remove removes it.

    PLACE is the folder of a run, or the folder or URL of a store. Left over are temporary files of
    commands that were killed, maps of its vectors, which are made again when needed, and tables
    that no run refers to any more. Without PLACE: maps of this machine that are older than a day.
    What a run at work may need stays.

    Example: assay clean runs/quickstart --remove
    """
    printed.print_leftovers(api.clean(place, runs, forget, remove), is_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Remove what is damaged: `assay run` makes it again.")
@as_json
def verify(run: Path, repair: bool, is_json: bool) -> None:
    """Compare every file of a run with what was written, and every key with its inputs.

    Exits with 1 where a file is damaged.

    Example: assay verify runs/quickstart --repair
    """
    with Screen() as screen:
        found = api.verify(run, repair, screen)
    printed.print_verified(found, is_json)
    sys.exit(1 if found["damaged"] and not repair else 0)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("statement")
@out
@as_json
def sql(run: Path, statement: str, out: Path | None, is_json: bool) -> None:
    """Ask the run's views in SQL.

    Example: assay sql runs/quickstart "SELECT reason, count(*) FROM rejected GROUP BY ALL"
    """
    opened = open_run(run, is_shut_in=True)
    rows = opened.sql(statement)
    if out is not None:
        click.echo(f"{opened.write_rows(rows, out)} rows in {out}", err=True)
    else:
        printed.print_rows(rows, is_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("metric")
@settings
@as_json
def evaluate(run: Path, metric: str, overrides: tuple[str, ...], is_json: bool) -> None:
    """Measure how far the results of a run can be trusted.

    METRIC is robustness or selection, of the values of examples; curves, flags, lds or quantiles,
    of scores; faithfulness, of words; or agreement, contamination, removal, specificity,
    support_size, of explanations by examples.
    Nothing is stored.

    Example: assay evaluate runs/quickstart robustness --set examples=300 --set rounds=24
    """
    with Screen("Reading the run ...") as screen:
        evaluation = api.evaluate(run, metric, overrides, screen)
    printed.print_evaluation(evaluation, is_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--keep", help='A number of rows, a share such as 20%, or "50000 tokens".')
@click.option("--drop", help="Least valuable rows to leave out: a number, or a share such as 5%.")
@click.option("--quota", multiple=True, metavar="CLASS=ROWS", help="Rows of one class to keep.")
@click.option("--per", metavar="COLUMN", help="A column whose values stand for classes.")
@click.option("--soft", type=float, help="All rows, with sampling weights: lower is stricter.")
@click.option(
    "--by",
    help="coreset, shapley, label_score; of completions query_relevance, answer_issues; of "
    "preferences middle, margin, influence, preference_issues; random. By default random rows "
    "stand in where the others are expected to do worse.",
)
@click.option("--utility", help="The utility whose values count, when the run has several.")
@click.option(
    "--per-class/--overall",
    default=True,
    help="The same share of each class (the default), or the best rows of all.",
)
@click.option(
    "--keep-flagged",
    is_flag=True,
    help="Of completions, preferences: choose also among flagged rows and near duplicates.",
)
@click.option(
    "--forecast/--no-forecast",
    default=True,
    help="Say first what training on them is expected to give, against random rows.",
)
@click.option(
    "--mark",
    "is_marked",
    is_flag=True,
    help="Write all rows in the source's order, with a column keep that is true of those chosen.",
)
@method
@out_or_folder
@as_json
def select(
    run: Path, forecast: bool, is_marked: bool, out: str | None, is_json: bool, **asked: Any
) -> None:
    """Choose the best examples to train on, and say what that is expected to give.

    Example: assay select runs/quickstart --keep 20% --out best.jsonl
    """
    given = [
        f"--{name}" for name in ("keep", "drop", "quota", "soft") if asked[name] not in (None, ())
    ]
    if len(given) != 1:
        raise click.UsageError(
            f"found {' and '.join(given) or 'none'} of --keep, --drop, --quota and --soft, "
            "expected one. Say for example --keep 20%."
        )
    if is_marked and out is None:
        raise click.UsageError(
            "found --mark without --out, expected a file to write. Say for example --out all.jsonl."
        )
    asked["quota"] = _quota(asked["quota"])
    if asked["per"] is not None and not asked["per_class"]:
        raise click.UsageError("found --overall beside --per, expected one of them. Leave one out.")
    opened = open_run(run)
    rows = opened.select(**asked)
    if forecast:
        with Screen("Reading the run ...") as screen:
            expected = opened.expected(**asked, progress=screen)
        with redirect_stdout(sys.stderr):
            printed.print_expected(expected)
            is_named = any(asked[name] is not None for name in ("by", "method", "utility"))
            # Weights of random rows would say nothing.
            if not is_named and asked["soft"] is None and is_worse_than_random(expected):
                rows = opened.select(**asked | {"by": "random"})
                what = "of as many tokens" if is_in_tokens(asked["keep"]) else "as many"
                show(
                    f"These are random rows instead, {what}; "
                    f"--by {expected['by']} gives those that were chosen."
                )
                for warning in warnings_about(opened, rows.chosen[0].statement):
                    show(warning)
    else:
        with redirect_stdout(sys.stderr):
            for warning in warnings_about(opened, rows.chosen[0].statement):
                show(warning)
    if out is not None:
        told = f", of {len(rows)} keep is true" if is_marked else ""
        click.echo(f"{opened.write(rows, out, is_marked)} rows in {out}{told}", err=True)
    else:
        printed.print_rows(rows, is_json)


def _quota(pairs: tuple[str, ...]) -> dict[str, str]:
    """Rows by class, of `CLASS=ROWS`; a class's name may have an = of its own."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, rows = pair.rpartition("=")
        if not equals:
            raise click.UsageError(
                f"found --quota {pair}, expected CLASS=ROWS. Say for example --quota spam=100."
            )
        if name in found:
            raise click.UsageError(
                f"found --quota {name}={found[name]} and {pair}, expected each class once. Leave "
                "one out."
            )
        found[name] = rows
    return found


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--query", metavar="ID", help="A query of the run, by query_id or source_id.")
@click.option(
    "--queries",
    type=click.Path(path_type=Path),
    help="Several queries, such as those that fail: a file with a column query_id or source_id.",
)
@click.option("--text", help="A new text, for which the run's model is used; nothing is stored.")
@click.option("--text-b", help="The second text, in a corpus of pairs.")
@click.option("--prompt", help="A prompt: the run's language model answers it, and why is shown.")
@click.option(
    "--new-tokens", type=click.IntRange(1), default=64, help="Tokens of that answer at most."
)
@click.option(
    "--interactive", is_flag=True, help="Texts or prompts line by line, with models opened once."
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="A method of the run; by default all that score examples or words. freeshap draws again.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, help="Examples for, and as many against."
)
@click.option(
    "--remove",
    type=COUNT,
    default=20,
    help="With --queries: examples that the forecast leaves out.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write .html, .json, or .png where rows have images.",
)
@as_json
def explain(
    run: Path,
    query: str | None,
    queries: Path | None,
    text: str | None,
    text_b: str | None,
    prompt: str | None,
    new_tokens: int,
    interactive: bool,
    methods: tuple[str, ...],
    top: int,
    remove: int,
    out: Path | None,
    is_json: bool,
) -> None:
    """Show the training examples and words behind a prediction, of a query or of any text.

    With --queries: the examples behind the failures of several queries together, and a forecast of
    what it would give to leave out or relabel them.

    Example: assay explain runs/quickstart --query 0 --out why.html
    """
    from pipeline.explain.interactive import interactive as explain_lines
    from pipeline.page.explanation_file import check_ending, write_explanation

    given = {"--query": query, "--queries": queries, "--text": text, "--prompt": prompt}
    given |= {"--interactive": "" if interactive else None}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise click.UsageError(
            f"found {len(named) or 'none'} of {', '.join(given)}, expected "
            "one. Say for example --query 0."
        )
    if out is not None:
        check_ending(out)
    opened = open_run(run)
    if interactive:
        explain_lines(opened, methods, top, new_tokens, is_json)
        return
    with Screen("Reading the run ...") as screen:
        asked = (query, text, text_b, methods, top, screen, queries, remove, prompt, new_tokens)
        found = opened.explain(*asked)
    if out is not None:
        write_explanation(opened, found, out)
        click.echo(f"Explanation written to {out}", err=True)
    else:
        found.show(is_json)
