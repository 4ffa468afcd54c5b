"""Time and memory of the quickstart from an empty run folder."""

import argparse
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told: nothing."""


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, CPU-seconds and memory of the quickstart from an empty run folder."""
    work = Path(arguments.work).resolve() / f"demo-{os.getpid()}"
    start = time.time()
    command = [ROOT / ".venv/bin/assay", "run", "configs/quickstart.yaml", "--set", f"run={work}"]
    # Ray's workers are not this process's children to count, so all resident memory is sampled.
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        peak = 0
        before = used_bytes()
        while process.poll() is None:
            peak = max(peak, used_bytes() - before)
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {"rows": 2000, "queries": 400, "seconds": time.time() - start, "peak_bytes": peak}


def used_bytes() -> int:
    """Memory in use on this machine, without caches."""
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    kilobytes = {name: int(facts[name].split()[0]) for name in ("MemTotal", "MemAvailable")}
    return 1024 * (kilobytes["MemTotal"] - kilobytes["MemAvailable"])
