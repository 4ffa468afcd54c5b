"""Correct a corpus by a review: fix labels, drop rows, and run again over the result."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

from pipeline.errors import RunError
from pipeline.folder import RunFolder
from pipeline.handover.answered import review_of
from pipeline.open_run import OpenedRun
from pipeline.progress import Progress
from pipeline.run import execute_run
from stages.corpus.review import read_decisions
from stages.stage import DataError
from storage.files import write_whole


def apply_review(
    run: Path,
    review: Path,
    to: Path | None = None,
    progress: Progress | None = None,
    waits: bool = False,
) -> OpenedRun:
    """The new run over the corrected corpus, in its own folder and over the same store.

    Texts do not change, so no embedding and no NTK row is computed again, and fitted artefacts
    stay as they are. A dropped row is missing in `examples`, the values and the written corpus.

    Args:
        run: Folder of the run that was reviewed.
        review: CSV with `source_id` and `decision` (accept, fix, drop), as `assay flag` writes it;
            `fix` takes the label in `new_label`. Or what Label Studio or Argilla exports of its
            tasks. Earlier reviews of the run still hold.
        to: Folder of the new run, or that of the old one, which is then corrected in place; by
            default the old one's name with `-corrected`, and a number where that folder holds a run
            already. The same review goes on in the folder that it was begun in.
        progress: Hears how far the new run is.
        waits: Whether to wait where another driver works in the new run's folder.

    Raises:
        RunError: there is no such file, or it decides nothing; or an export does not fit the run.
        stages.stage.DataError: the review names unknown rows, labels or decisions.
    """
    folder = RunFolder(run.expanduser().resolve())
    reviewed = folder.read_run()
    if not review.exists():
        raise RunError(
            f"{review}: found no such file, expected a reviewed CSV. "
            f"Write one with `assay flag {run} --review {review}` and fill in `decision`."
        )
    exported = review_of(lambda: OpenedRun(folder), review)
    if exported is None:
        _refuse_undecided(review, bool(read_decisions(str(review))[1]))
    else:
        decided = [json.loads(line)["decision"] for line in exported.splitlines()]
        _refuse_undecided(review, any(decided))
    # Named by its content: a review that is refused must not replace one that counts.
    content, suffix = (exported, ".jsonl") if exported else (review.read_bytes(), review.suffix)
    number = len(reviewed.corpus.corrections) + 1
    name = f"review-{number}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}"
    target = to.expanduser().resolve() if to else _folder_for(folder.path, name)
    is_taken = (target / "run.json").exists() and not (target / name).exists()
    if is_taken and target != folder.path:  # a run may be corrected in place
        raise RunError(
            f"--to {target}: found another run there, expected a new folder, that of the run "
            "itself, or that of the same review, where it goes on. Name another."
        )
    target.mkdir(parents=True, exist_ok=True)
    kept = target / name
    write_whole(kept, content)
    corrected = dataclasses.replace(
        reviewed,
        run=str(target),
        store=reviewed.store_url,
        corpus=dataclasses.replace(
            reviewed.corpus, corrections=(*reviewed.corpus.corrections, str(kept))
        ),
    )
    try:
        return OpenedRun(execute_run(corrected, progress, waits=waits))
    except DataError as error:
        # The copy is of no more use, and a person has never seen it.
        kept.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            target.rmdir()
        raise DataError(str(error).replace(str(kept), str(review))) from error


def _refuse_undecided(review: Path, is_decided: bool) -> None:
    """Raises unless a review decides something.

    Raises:
        RunError: no row has a decision.
    """
    if not is_decided:
        raise RunError(
            f"{review}: found no decision, expected accept, fix or drop in the column `decision` "
            "of some rows, or an answer in the tool. Fill it in, and give the same command again; "
            "nothing was made."
        )


def _folder_for(run: Path, name: str) -> Path:
    """A path beside the folder `run` that holds no run yet, or that of the review called `name`."""
    target, number = run.with_name(f"{run.name}-corrected"), 1
    while (target / "run.json").exists() and not (target / name).exists():
        number += 1
        target = run.with_name(f"{run.name}-corrected-{number}")
    return target
