"""A command that is told to stop says one sentence, and leaves nothing at work."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SENTENCE = "Stopped. The same command goes on from here."
PATIENCE_S = 30.0


def wait_for(is_there: Callable[[], Any], process: Any) -> None:
    until = time.monotonic() + 240
    while not is_there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def stop(process: Any, number: int, times: int = 1) -> str:
    """What the command says on stderr after the signal, which may come several times."""
    begun = time.monotonic()
    for _ in range(times):
        if process.poll() is None:
            # Ctrl-C reaches all processes of a terminal, SIGTERM the one it is meant for.
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        time.sleep(0.1)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - begun < PATIENCE_S
    said = str(err)
    assert process.returncode == 128 + number, said
    assert said.count(SENTENCE) == 1
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("moment", "number", "times"),
    [
        ("imports", signal.SIGINT, 3),
        ("run.lock", signal.SIGINT, 3),
        ("run.json", signal.SIGTERM, 1),
        ("store/embedding", signal.SIGHUP, 1),
    ],
)
def test_a_run_stops_at_any_moment(
    moment: str, number: int, times: int, write_config: Any, start: Any, tmp_path: Path
) -> None:
    with start("run", write_config(tmp_path)) as process:
        if moment == "imports":
            maps = Path(f"/proc/{process.pid}/maps")
            wait_for(lambda: "pyarrow" in maps.read_text(), process)
        else:
            wait_for((tmp_path / "run" / moment).exists, process)
        stop(process, number, times)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("number", "times"),
    [pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow), (signal.SIGINT, 3)],
)
def test_a_run_on_ray_leaves_no_process(
    number: int, times: int, write_config: Any, start: Any, processes: Any, tmp_path: Path
) -> None:
    """Beside a Ray that somebody else has started here, which a run does not join unasked."""
    ray_folder = Path(os.environ["RAY_TMPDIR"]) / "ray"
    ray_folder.mkdir(exist_ok=True)
    current = ray_folder / "ray_current_cluster"
    current.write_text("127.0.0.1:1")
    others = ray_workers()
    try:
        with start("run", write_config(tmp_path, ray={"engine": "ray"})) as process:
            wait_for((tmp_path / "run/store/embedding").exists, process)
            at_work = ray_workers() - others
            said = stop(process, number, times)
    finally:
        current.unlink(missing_ok=True)
    assert at_work
    assert "embedding" in said
    until = time.monotonic() + 15
    while (processes(process.pid) or alive(at_work)) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes(process.pid) == {}
    assert not alive(at_work)


def ray_workers() -> set[int]:
    """Ray's workers with a task of ours, which are sessions of their own."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::Worker"):
            found.add(int(place.name))
    return found


def alive(pids: set[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and is_worker(pid)]


def is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False
