"""A command and all processes that it starts: seconds, CPU-seconds and memory, stage by stage."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.environment import ROOT

SECONDS_BETWEEN = 0.2
TICK = os.sysconf("SC_CLK_TCK")
FINISHED = re.compile(r"(\S+): \d+ (?:of \d+ )?tasks? in [\d.]+ s")
"""What `assay run` says when a stage ends,"""
INGESTED = re.compile(r"\d+ examples? and \d+ quer(?:y|ies) in \d+ shards?")
"""and when the corpus is read."""


class Seen(NamedTuple):
    """A process at the last moment at which it was seen."""

    parent: int
    session: int
    name: str
    cpu_s: float
    own_bytes: int
    """Memory that is its own: not mapped from a file."""
    peak_bytes: int
    """The most that was resident, pages of mapped files included (VmHWM)."""


class Watch:
    """Samples the processes below some of ours, or in their sessions, until it is closed.

    CPU time is that at the last sample, so that a process loses the last 0.2 seconds at most.
    """

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = set(roots)
        self._seen: dict[tuple[int, int], Seen] = {}
        self._most: dict[tuple[int, int], int] = {}
        self.peak_bytes = 0
        """Most own memory of all of them together."""
        self._is_over, self._lock = threading.Event(), threading.Lock()
        self.sample()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes a last sample."""
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.is_set():
            self.sample()
            self._is_over.wait(SECONDS_BETWEEN)
        self.sample()

    def sample(self) -> None:
        """Looks at all processes once."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        living = dict(_processes())
        mine = {key for key in living if key in self._seen}
        known = {pid for pid, _ in mine} | self._roots
        while True:
            new = {
                key
                for key, one in living.items()
                if key not in mine
                and (key[0] in known or one.parent in known or one.session in self._roots)
            }
            if not new:
                break
            mine |= new
            known |= {pid for pid, _ in new}
        for key in mine:
            # A process that has ended and is not yet waited for has no memory left to tell of.
            before = self._seen.get(key, living[key])
            peak = max(before.peak_bytes, living[key].peak_bytes)
            self._seen[key] = living[key]._replace(peak_bytes=peak)
            self._most[key] = max(self._most.get(key, 0), living[key].own_bytes)
        self.peak_bytes = max(self.peak_bytes, sum(living[key].own_bytes for key in mine))

    @property
    def cpu_s(self) -> float:
        """Of all processes so far."""
        return sum(one.cpu_s for one in list(self._seen.values()))

    def memory(self, driver: int) -> dict[str, int]:
        """Most memory of the process `driver` and of the largest worker, own and resident."""
        found = {"peak_bytes": self.peak_bytes}
        for kind, is_kind in (
            ("driver", lambda key, one: key[0] == driver),
            ("worker", lambda key, one: one.name.startswith("ray::")),
        ):
            keys = [key for key, one in self._seen.items() if is_kind(key, one)]
            found[f"{kind}_bytes"] = max((self._most[key] for key in keys), default=0)
            found[f"{kind}_resident_bytes"] = max(
                (self._seen[key].peak_bytes for key in keys), default=0
            )
        return found


def assay(
    config: Path,
    *arguments: str,
    also: Iterable[int] = (),
    environment: Mapping[str, str] | None = None,
    is_ingest_only: bool = False,
) -> dict[str, Any]:
    """Runs `assay run` to its end: wall and CPU-seconds, memory, and both seconds of each stage.

    `also` are further processes whose descendants and sessions count, such as a cluster's; CPU time
    is what is spent from here on. A stage's seconds are those between the end of the one before it
    and its own, its memory is the most until then; `ingest` lasts until the corpus is read.
    `is_ingest_only` stops the run there.
    """
    start, lines = time.time(), []
    command = [sys.executable, "-m", "pipeline", "run", str(config), *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "400", "PYTHONPATH": str(ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        watch = Watch([process.pid, *also])
        before = watch.cpu_s
        assert process.stderr is not None
        assert process.stdout is not None
        out = threading.Thread(target=process.stdout.read, daemon=True)
        out.start()
        stages: dict[str, dict[str, float]] = {}
        last_s, last_cpu_s = start, before
        for line in process.stderr:
            lines.append(line)
            ended = FINISHED.match(line.strip())
            is_ingested = "ingest" not in stages and INGESTED.search(line)
            if not ended and not is_ingested:
                continue
            watch.sample()
            now, cpu_s = time.time(), watch.cpu_s
            stages[ended[1] if ended else "ingest"] = {
                "wall_s": round(now - last_s, 2),
                "cpu_s": round(cpu_s - last_cpu_s, 2),
                "peak_bytes": watch.peak_bytes,
            }
            last_s, last_cpu_s = now, cpu_s
            if is_ingested and is_ingest_only:
                process.terminate()
        process.wait()
        watch.close()
    if process.returncode != (STOPPED if is_ingest_only else 0):
        raise SystemExit("".join(lines[-40:]))
    return {
        "wall_s": round(time.time() - start, 1),
        "cpu_s": round(watch.cpu_s - before, 1),
        **watch.memory(process.pid),
        "by_stage": stages,
    }


def _processes() -> Iterable[tuple[tuple[int, int], Seen]]:
    """All processes of this machine, by number and start."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            text = place.joinpath("stat").read_text()
            status = place.joinpath("status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        before, after = text.rsplit(")", 1)
        fields = after.split()
        memory = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(KINDS))
        own, shared, peak = (1024 * int(memory.get(kind, "0 kB").split()[0]) for kind in KINDS)
        yield (
            (int(place.name), int(fields[19])),
            Seen(
                int(fields[1]),
                int(fields[3]),
                before.split("(", 1)[1],
                (int(fields[11]) + int(fields[12])) / TICK,
                own + shared,
                peak,
            ),
        )


STOPPED = 128 + signal.SIGTERM
KINDS = ("RssAnon", "RssShmem", "VmHWM")
"""Lines of /proc/PID/status that are read, in this order."""
