"""One text after another, explained with models that are opened once: `explain --interactive`."""

import io
import sys
from collections.abc import Sequence
from typing import Any

import click

from pipeline.errors import RunError
from pipeline.explain.explanation import check_own
from pipeline.progress import Screen
from pipeline.terminal import LINES
from stages.stage import StageError
from storage.schema import StorageError


def interactive(run: Any, methods: Sequence[str], top: int, new_tokens: int, is_json: bool) -> None:
    """Explains every line of stdin, up to its end or an empty line.

    A line is a text, or in a corpus of completions a prompt that the run's model answers. What is
    wrong with one is said, and the next is waited for.
    """
    kind = "prompt" if run.task() == "completion" else "text"
    check_own(run, is_prompt=kind == "prompt")
    kept: dict[str, Any] = {}
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Bytes that are no text are then wrong with one line, and not the end of all.
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        if sys.stdin.isatty():
            click.echo(f"{kind}> ", nl=False, err=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        try:
            with Screen("Opening models ..." if not kept else "Explaining ...") as screen:
                found = run.explain(
                    **{kind: line},
                    methods=methods,
                    top=top,
                    progress=screen,
                    new_tokens=new_tokens,
                    kept=kept,
                )
        except (RunError, StageError, StorageError) as error:
            click.echo(f"assay: {str(error).translate(LINES)}", err=True)
            continue
        found.show(is_json)
        click.echo("", err=True)
