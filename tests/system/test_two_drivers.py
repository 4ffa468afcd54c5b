"""Two drivers on one run: the second is told of the first, or waits; a killed one is in no way."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from runs import assay, complaint


def at_work(run: Path, process: Any) -> None:
    """Waits until the driver computes."""
    while not (run / "store/embedding").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_the_second_driver_is_told_or_waits_and_a_killed_one_is_no_hindrance(
    unbroken: Any, write_config: Any, start: Any, tables_of: Any, tmp_path: Path
) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    with start("run", config) as first:
        at_work(run, first)
        os.kill(first.pid, signal.SIGSTOP)
        said = complaint("run", config)
        assert f"another command works on this run (process {first.pid} on " in said
        assert "since 20" in said
        assert "--wait" in said
        asked = json.loads(assay("status", run, "--json").stdout)
        assert asked["driver"]["pid"] == first.pid
        with start("run", config, "--wait") as second:
            waited = second.stderr.readline()
            assert f"process {first.pid}" in waited
            assert second.poll() is None
            os.kill(first.pid, signal.SIGKILL)
            first.communicate()
            _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert tables_of(run / "store") == tables_of(unbroken.folder / "store")
    asked = json.loads(assay("status", run, "--json").stdout)
    assert asked["is_whole"]
    assert asked["driver"] is None
