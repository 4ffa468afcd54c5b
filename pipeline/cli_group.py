"""The group of commands: how arguments are refused, and how a command ends.

Errors are printed with their advice as one message; exit 0, 1 for a failure, 2 for misuse, 130
after Ctrl-C and 143 after SIGTERM.
"""

import os
import sys
from typing import Any, NoReturn

import click

from pipeline import on_terminal, stopping
from pipeline.errors import told
from pipeline.terminal import LINES
from storage.credentials import masked


class Assay(click.Group):
    """The command group: prints errors with advice as one message, and sets the exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuses arguments that are no text: no table, YAML or JSON could hold them."""
        for what, text in [("an argument", a) for a in args] + [
            ("the working folder", os.getcwd())
        ]:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                from stages.corpus.cells import show

                raise click.UsageError(
                    f"found bytes that are not UTF-8 in {what}, '{show(text)}', expected text in "
                    "UTF-8. Convert the text, or rename the file or folder."
                ) from error
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; errors of pipeline, stages and storage end with 1, misuse with 2."""
        with stopping.raised():
            return self._told(ctx)

    def _told(self, ctx: click.Context) -> Any:
        """Runs the command, and tells how it ends."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            sys.exit(0)
        except KeyboardInterrupt:
            self._stop()
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            if stopping.is_stopped():  # what an interrupted import or call made of the signal
                self._stop()
            code = on_terminal.exit_code(error)
            if code is None or ctx.params.get("debug"):
                raise
            message = masked(told(error) or str(error))
            click.echo(f"assay: {message.translate(LINES)}", err=True)
            sys.exit(code)

    def _stop(self) -> NoReturn:
        """Ends the process after a signal, past what is still at work in other threads."""
        click.echo(stopping.SENTENCE, err=True)
        sys.exit(stopping.exit_code())
