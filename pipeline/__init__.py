"""When and where: plan a run, split it into tasks, execute and resume it, show its results."""

from pipeline.open_run import OpenedRun, open_run

__all__ = ["OpenedRun", "open_run"]
