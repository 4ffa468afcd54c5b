"""When and where: plan a run, split it, execute it, resume it, tell of it."""

from pipeline.open_run import OpenedRun, open_run

__all__ = ["OpenedRun", "open_run"]
