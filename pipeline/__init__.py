"""When and where: plan a run, split it, execute it, resume it, tell of it."""

from pipeline.opened import OpenedRun, open_run

__all__ = ["OpenedRun", "open_run"]
