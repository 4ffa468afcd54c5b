"""A reviewed CSV back into the corpus: labels fixed, rows dropped, the rest computed again."""

import dataclasses
import hashlib
from pathlib import Path

from pipeline.errors import RunError
from pipeline.folder import RunFolder
from pipeline.open_run import OpenedRun
from pipeline.progress import Progress
from pipeline.run import execute_run
from storage.table import write_whole


def apply_review(
    run: Path, review: Path, to: Path | None = None, progress: Progress | None = None
) -> OpenedRun:
    """The run over the corrected corpus, in a folder of its own and over the same store.

    Text does not change, so no embedding and no NTK row is computed again, and fitted artefacts
    stay as they are. A dropped row leaves `examples`, the values and the written corpus.

    Args:
        run: Folder of the run that was reviewed.
        review: CSV with `source_id` and `decision` (accept, fix, drop), as `assay flag` writes it;
            `fix` takes the label in `new_label`. It comes on top of earlier reviews.
        to: Folder of the new run; by default the old one's name with `-corrected`, and a number
            where such a run is there already.
        progress: Told what happens.

    Raises:
        RunError: there is no such review.
        stages.stage.DataError: the review names unknown rows, labels or decisions.
    """
    folder = RunFolder(run.expanduser().resolve())
    before = folder.read_run()
    if not review.is_file():
        raise RunError(
            f"{review}: found no such file, expected a reviewed CSV. "
            f"Write one with `assay flag {run} --review {review}` and fill in `decision`."
        )
    target = to.expanduser().resolve() if to else _free(folder.path)
    target.mkdir(parents=True, exist_ok=True)
    # Named by its content: a review that is refused must not take the place of one that counts.
    content = review.read_bytes()
    number = len(before.corpus.corrections) + 1
    name = f"review-{number}-{hashlib.sha256(content).hexdigest()[:8]}{review.suffix}"
    kept = target / name
    write_whole(kept, content)
    corrected = dataclasses.replace(
        before,
        run=str(target),
        store=before.store_url,
        corpus=dataclasses.replace(
            before.corpus, corrections=(*before.corpus.corrections, str(kept))
        ),
    )
    return OpenedRun(execute_run(corrected, progress))


def _free(run: Path) -> Path:
    """A folder beside `run` that holds no run yet."""
    target, number = run.with_name(f"{run.name}-corrected"), 1
    while (target / "run.json").exists():
        number += 1
        target = run.with_name(f"{run.name}-corrected-{number}")
    return target
