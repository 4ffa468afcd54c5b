"""The commands as functions: the same defaults, errors and tables, without a terminal.

    from pipeline.api import plan, run, flag

    plan("tiny.yaml")                 # prints in a notebook what `assay plan` prints
    done = run("tiny.yaml", {"stages.freeshap.rounds": 40})
    flag(done, top=20).df()

Importing this module loads neither torch nor Ray, DuckDB or `datasets`; a function loads what it
needs. Whatever a command would end with as exit code 1 is raised: `pipeline.errors.RunError`,
`stages.stage.StageError`, `storage.schema.StorageError` and what derives from them. A run is told
by the folder that it lies in, or opened, which is faster for several questions.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.open_run import OpenedRun, open_run
from pipeline.results import Answer, Rows
from storage.credentials import masked

if TYPE_CHECKING:
    from pipeline.cluster_size import Cluster, CorpusSize
    from pipeline.given import Given
    from pipeline.progress import Progress

__all__ = [
    "apply",
    "clean",
    "datalab",
    "draw_by_weight",
    "evaluate",
    "explain",
    "flag",
    "open_run",
    "plan",
    "record_checkpoints",
    "report",
    "run",
    "select",
    "sql",
    "status",
    "verify",
]

LOG = logging.getLogger(__name__)
AnyRun = OpenedRun | str | Path
Config = str | Path | Mapping[str, Any]
"""A YAML file, or what it would hold; relative paths in a mapping start at the working folder."""
Overrides = Sequence[str] | Mapping[str, Any]
"""Values that replace those of the configuration: `key.path=value` each, the value in YAML, as for
`--set`; or a mapping from key path to value."""


def plan(
    config: Config,
    overrides: Overrides = (),
    cluster: "Cluster | None" = None,
    size: "CorpusSize | None" = None,
) -> Answer:
    """The cost of a run, estimated before anything is computed; see `pipeline.estimate.estimate`.

    With a `cluster` or a `size` (`pipeline.cluster_size`), that of all of the run on these machines
    and over a corpus of that size; see `pipeline.forecast`.

    Raises:
        pipeline.errors.RunError: the run cannot be planned.
        stages.stage.StageError: the corpus or the model cannot be used.
    """
    from pipeline.cluster_size import Cluster, CorpusSize
    from pipeline.config import run_of
    from pipeline.estimate import estimate, estimate_on
    from pipeline.plan_summary import print_estimate, print_forecast

    run = run_of(_given(config, overrides))
    if cluster is None and size is None:
        return Answer(estimate(run), print_estimate)
    return Answer(estimate_on(run, cluster or Cluster(), size or CorpusSize()), print_forecast)


def run(
    config: Config,
    overrides: Overrides = (),
    progress: "Progress | None" = None,
    wait: bool = False,
) -> OpenedRun:
    """The finished run; computes the shards that its store lacks, and goes on after a kill.

    Args:
        config: A YAML file or a mapping.
        overrides: Values that replace those in `config`.
        progress: Hears how far the run is; `pipeline.progress.Screen` shows it. By default nothing
            is shown.
        wait: Whether to wait where another process works on the run; by default that is an error.

    Raises:
        pipeline.errors.RunError: the run cannot be planned, or a task failed.
        stages.stage.StageError: the corpus or the model cannot be used.
    """
    from pipeline.folder import mended_config
    from pipeline.unchanged import asked, finished_already

    changed = mended_config(Path(config)) if not isinstance(config, Mapping) else None
    if changed is not None and progress is not None:
        progress.say(changed)
    given = _given(config, overrides)
    folder = finished_already(given, progress, wait)
    if folder is None:
        # Imported here, with torch and transformers: a run with nothing to do is spared that.
        from pipeline.config import run_of
        from pipeline.run import execute_run

        configured = run_of(given)
        with _log_in(configured.run):
            folder = execute_run(configured, progress, waits=wait, asked=asked(given))
    else:
        with _log_in(str(folder.path)):
            LOG.info("%s: nothing to do", folder.path)
    return OpenedRun(folder)


def status(run: AnyRun) -> Answer:
    """How far a run is; rebuilds the catalog of a moved run. See `pipeline.status.run_status`."""
    from pipeline.on_terminal import print_status
    from pipeline.status import run_status

    return Answer(run_status(_folder(run)), print_status)


def verify(run: AnyRun, repair: bool = False, progress: "Progress | None" = None) -> Answer:
    """What is damaged among the files of a run; `repair` removes it (`pipeline.verify`)."""
    from pipeline.on_terminal import print_verified
    from pipeline.verify import verify_run

    return Answer(verify_run(_folder(run), repair, progress), print_verified)


def clean(
    place: AnyRun | None = None,
    runs: Sequence[str | Path] = (),
    forget: Sequence[str] = (),
    remove: bool = False,
) -> Answer:
    """What is left over of a run, a store or this machine's maps; see `pipeline.clean.clean`."""
    from pipeline.clean import clean as look
    from pipeline.on_terminal import print_leftovers

    where = str(place.folder.path if isinstance(place, OpenedRun) else place) if place else None
    return Answer(look(where, [Path(run) for run in runs], forget, remove), print_leftovers)


def sql(run: AnyRun, statement: str) -> Rows:
    """The rows of a SQL statement over the run's views; see `OpenedRun.sql`."""
    return _opened(run).sql(statement)


def flag(
    run: AnyRun,
    top: int | None = None,
    method: str | None = None,
    precision: float | None = None,
    is_all: bool = False,
) -> Rows:
    """Examples whose label is suspicious, the most suspicious first; see `OpenedRun.flag`."""
    return _opened(run).flag(top, method, precision, is_all)


def datalab(run: AnyRun, methods: Sequence[str] = ()) -> Rows:
    """What the run found of every example, in Datalab's columns; see `pipeline.datalab`."""
    return _opened(run).datalab(methods)  # type: ignore[no-any-return]


def apply(
    run: AnyRun,
    review: str | Path,
    to: str | Path | None = None,
    progress: "Progress | None" = None,
    wait: bool = False,
) -> OpenedRun:
    """A new run over the corrected corpus; see `pipeline.apply.apply_review`."""
    from pipeline.apply import apply_review

    return apply_review(_folder(run), Path(review), Path(to) if to else None, progress, wait)


def evaluate(
    run: AnyRun, metric: str, overrides: Overrides = (), progress: "Progress | None" = None
) -> Answer:
    """The result of a metric over a finished run; see `pipeline.evaluate.evaluate`.

    `overrides` are the metric's fields, such as `{"examples": 300}`.
    """
    from pipeline.evaluate import evaluate as measure
    from pipeline.on_terminal import print_evaluation

    stepped = progress.stepped if progress is not None else None
    evaluation = measure(_folder(run), metric, _assignments(overrides), stepped)
    return Answer(evaluation, print_evaluation)


def select(
    run: AnyRun,
    keep: str | int | None = None,
    drop: str | int | None = None,
    by: str | None = None,
    utility: str | None = None,
    method: str | None = None,
    per_class: bool = True,
    quota: Mapping[str, str | int] | None = None,
    soft: float | None = None,
    keep_flagged: bool = False,
    per: str | None = None,
) -> Rows:
    """Examples to train on, the best first; see `OpenedRun.select`."""
    given = (keep, drop, by, utility, method, per_class, quota, soft, keep_flagged, per)
    return _opened(run).select(*given)


def expected(run: AnyRun, progress: "Progress | None" = None, **asked: Any) -> Answer:
    """What training on the rows of `select(run, **asked)` is expected to give, as it prints."""
    return _opened(run).expected(progress, **asked)


def explain(
    run: AnyRun,
    query: str | int | None = None,
    text: str | None = None,
    text_b: str | None = None,
    methods: Sequence[str] = (),
    top: int = 5,
    progress: "Progress | None" = None,
    queries: str | Path | Sequence[str | int] | None = None,
    remove: int = 20,
    prompt: str | None = None,
    new_tokens: int = 64,
    kept: dict[str, Any] | None = None,
) -> Answer:
    """The examples and words behind predictions; see `OpenedRun.explain`."""
    given = (query, text, text_b, methods, top, progress, queries, remove, prompt, new_tokens, kept)
    return _opened(run).explain(*given)


def record_checkpoints(out: str | Path, path: str | None = None, **model: Any) -> Any:
    """A callback for a Trainer: see `stages.model.checkpoints.RecordCheckpoints`."""
    from stages.model.checkpoints import RecordCheckpoints

    return RecordCheckpoints(out, path, **model)


def draw_by_weight(trainer: Any, weights: Sequence[float], seed: int | None = None) -> None:
    """Lets a Trainer draw rows by weight: see `stages.model.weighted_rows.draw_by_weight`."""
    from stages.model import weighted_rows

    weighted_rows.draw_by_weight(trainer, weights, seed)


def report(
    run: AnyRun,
    out: str | Path = "report.html",
    by: Sequence[str] = (),
    evaluations: Sequence[str | Path | Mapping[str, Any]] = (),
    progress: "Progress | None" = None,
) -> Path:
    """Writes the report of a run, one page of HTML; returns where. See `pipeline.page.report`.

    Args:
        run: The run.
        out: The page, .html; replaced as a whole if it exists.
        by: Columns of the source, for which values and flags are also told.
        evaluations: Results of `evaluate`, or files of what `assay evaluate --json` printed.
        progress: Hears of what is left out.

    Raises:
        pipeline.errors.RunError: the page cannot be written, the source has no such column, or an
            evaluation is of another run.
    """
    from pipeline.page.report import write_report

    write_report(_opened(run), Path(out), by, evaluations, progress)
    return Path(out)


def _opened(run: AnyRun) -> OpenedRun:
    return run if isinstance(run, OpenedRun) else open_run(run)


def _folder(run: AnyRun) -> Path:
    return run.folder.path if isinstance(run, OpenedRun) else Path(run)


def _given(config: Config, overrides: Overrides) -> "Given":
    from pipeline.given import given_in_file, given_in_mapping

    if isinstance(config, Mapping):
        return given_in_mapping(config, _assignments(overrides))
    return given_in_file(config, _assignments(overrides))


def _assignments(overrides: Overrides) -> Sequence[str]:
    if not isinstance(overrides, Mapping):
        return overrides
    # JSON is YAML.
    return [
        f"{path}={json.dumps(value, ensure_ascii=False, default=str)}"
        for path, value in overrides.items()
    ]


class _Log(logging.FileHandler):
    """A log without which a run goes on: what cannot be written is told by the run itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignores a record that finds no room."""


@contextmanager
def _log_in(run: str) -> Iterator[None]:
    """Also writes what is logged meanwhile to `assay.log` in the run's folder."""
    try:
        Path(run).mkdir(parents=True, exist_ok=True)
        handler = _Log(Path(run) / "assay.log", delay=True, encoding="utf-8")
    except OSError:
        yield  # the run itself raises an error about the folder
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("pipeline")
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        logger.info("stopped by %s: %s", type(error).__name__, masked(str(error)))
        raise
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()
