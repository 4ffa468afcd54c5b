"""Ctrl-C, SIGTERM and a closed terminal: one sentence, what was started is ended, and 128 + signal.

The first signal raises `Stopped` where the command works, which lets go of all it holds. Later ones
change nothing while it does, and raise it again where it was lost: an import or a destructor can
swallow it. Letting go has a limit, after which the process ends as it is.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 20.0
INSIST_S = 0.5
SENTENCE = "Stopped. The same command goes on from here."
_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """The command was stopped by a signal."""


def exit_code() -> int:
    """The code that a stopped command ends with: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def leave() -> None:
    """Ends the process if a signal came: past threads at work, and deaf to more signals."""
    if _received:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code())


def is_stopped() -> bool:
    """Whether a signal came, even if code that was interrupted told of another error instead."""
    return bool(_received)


def end_at_once() -> None:
    """From here on a signal ends the process: it has nothing to let go of, say while it imports."""
    _on_signals(lambda number, frame: _end(number))


@contextmanager
def raised() -> Iterator[None]:
    """Within, a signal raises `Stopped` in the main thread; afterwards all is as it was before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = _on_signals(_raise)
    try:
        yield
    finally:
        # What is left of a stopped command is its end, which a second Ctrl-C must not break.
        if not _received:
            for number, handler in before.items():
                signal.signal(number, handler)


def handle_again() -> None:
    """Handles signals from Python again, where a library has put a handler of its own in C."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, handler)


def _on_signals(handler: Any) -> dict[int, Any]:
    """Handles the signals that are not ignored, as under nohup; returns what handled them before.

    A handler that was not set from Python (None) cannot be put back, and stays.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled: dict[int, Any] = {n: h for n, h in before.items() if h not in (signal.SIG_IGN, None)}
    for number in handled:
        signal.signal(number, handler)
    return handled


def _raise(number: int, frame: FrameType | None) -> None:
    """Raises `Stopped`, unless the main thread is ending because of an earlier one."""
    if not _received:
        _received.append(number)
        threading.Thread(target=_insist, args=[number], daemon=True).start()
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    if error is None:
        raise Stopped


def _insist(number: int) -> None:
    """Sends signals again and again, and ends the process where that does not help.

    SIGINT whatever came: Ray takes the handler of SIGTERM away while it shuts down.
    """
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        time.sleep(INSIST_S)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    _end(number)


def _end(number: int) -> None:
    """Ends the process now."""
    sys.stderr.write(f"\n{SENTENCE}\n")
    sys.stderr.flush()
    os._exit(128 + number)
