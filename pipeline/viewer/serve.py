"""Serves a run's pages until it is stopped."""

import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

import waitress

from pipeline.errors import RunError
from pipeline.open_run import open_run
from pipeline.viewer.guard import EVERYWHERE
from pipeline.viewer.server import Viewer

LOOPBACK = ("127.0.0.1", "localhost")
THREADS = 8


def serve(
    run: Path,
    review: Path | None = None,
    by: Sequence[str] = (),
    host: str = LOOPBACK[0],
    port: int = 0,
    is_opened: bool = False,
    tell: Callable[[str, int], None] = lambda address, n_rows: None,
) -> None:
    """Answers browsers until Ctrl-C or SIGTERM; decisions are on disk as soon as they are counted.

    Args:
        run: Folder of a run.
        review: File of decisions, by default `review.csv` in the folder of the run.
        by: Columns of the source that rows are listed with and filtered by.
        host: The address to listen on; another than the default lets other machines in, 0.0.0.0 by
            any address of this one, and by its name.
        port: The port, or 0 for a free one.
        is_opened: Whether a browser is opened.
        tell: Called with the address to open, which holds the token, and the number of rows.

    Raises:
        KeyboardInterrupt: it was stopped.
        RunError: the port is taken, the source has no such column, or the file of decisions is
            no review of this run.
    """
    opened = open_run(run, is_shut_in=True)
    viewer = Viewer(opened, (review or opened.folder.path / "review.csv").resolve(), by)
    token = secrets.token_urlsafe(24)
    names = frozenset((host, *LOOPBACK))
    if host == EVERYWHERE:
        names |= {socket.gethostname().lower()}
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise RunError(
            f"--host {host} --port {port}: found that it cannot be used ({error}), expected a free "
            "port of this machine. Leave --port out, or name another."
        ) from error
    number = int(listening.getsockname()[1])
    app = viewer.app(token, names, number)
    server = waitress.create_server(app, sockets=[listening], threads=THREADS)
    address = f"http://{host}:{number}/?token={token}"
    tell(address, viewer.rows.total)
    if is_opened:
        webbrowser.open(address)
    server.run()
    raise KeyboardInterrupt  # which waitress takes as its own end
