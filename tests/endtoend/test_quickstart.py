"""The first run of a newcomer, with its real encoder; all other tests use a tiny one."""

from pathlib import Path
from typing import Any

from runs import ROOT

from pipeline import open_run


def test_planted_labels_come_first(assay: Any, tmp_path: Path) -> None:
    """A twentieth of the rows; one label in ten is wrong, so chance alone finds one in ten."""
    changes = (
        f"run={tmp_path / 'run'}",
        "corpus.split=train[:150]",
        "queries.split=train[:40]",
        "shard_size=75",
        "ray.engine=in_process",
        "stages.freeshap={rounds: 1, units_per_round: 1}",
    )
    options = [part for change in changes for part in ("--set", change)]
    said = assay("run", ROOT / "configs" / "quickstart.yaml", *options)
    assert "Most suspicious labels" in said.stdout
    run = open_run(tmp_path / "run")
    wrong = run.sql("SELECT example_id FROM examples WHERE label <> true_label").fetchall()
    assert len(wrong) == 15
    flagged = {row[0] for row in run.flag(top=15).fetchall()}
    found = len(flagged & {row[0] for row in wrong})
    assert found >= 5, found
