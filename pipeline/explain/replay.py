"""Rounds of a sampled value drawn once more, for a single query."""

from pipeline.errors import RunError
from pipeline.estimate import MODEL_EFFICIENCY
from pipeline.explain.new_query import NewQuery
from pipeline.explain.stored_query import Rows, StoredQuery
from pipeline.finished import Finished
from pipeline.node import CORPUS_INSTANCE
from pipeline.progress import Progress, told_seconds
from pipeline.task import StoredInputs
from stages.model.calibration import flops_per_second
from stages.model.threads import set_threads
from stages.stage import Samples, Work


def replay(
    finished: Finished,
    instance: str,
    asked: StoredQuery | NewQuery,
    progress: Progress,
) -> Rows:
    """What the stored rounds of an instance say of every example for one query or text.

    Keys of a row: semivalue, utility, example_id, value, stderr (None of a single unit); positive
    helps. `progress` hears the cost before anything is computed.

    Raises:
        RunError: the rounds are not there.
        stages.stage.StageError: the query cannot take part.
    """
    stage = _sampled(finished, instance)
    rounds = [shard.index for shard in finished.manifest(instance, stage.writes[0].name).shards]
    if not rounds:
        raise RunError(f"{instance}: found no round, expected some. Go on with `assay run`.")
    flops = cost(finished, instance, len(rounds))
    seconds = flops / (flops_per_second() * MODEL_EFFICIENCY)
    progress.say(
        f"{instance}: {len(rounds)} rounds of {stage.units_per_round} units are drawn again for "
        f"this query: {flops:.1e} FLOPs with reading and pilot, about {told_seconds(seconds)}"
    )
    if isinstance(asked, NewQuery):
        inputs = asked.inputs(instance, is_alone=False)
    else:
        job = finished.job(instance)
        set_threads(job.threads)
        inputs = StoredInputs(job.inputs, job.stage.split, finished.store)
    ids, values = stage.replay(
        inputs, asked.id, rounds, lambda done, total: progress.stepped(instance, done, total)
    )
    has_spread = len(rounds) * stage.units_per_round > 1
    return [
        {
            "semivalue": semivalue,
            "utility": utility,
            "example_id": int(example),
            "value": value,
            "stderr": error if has_spread else None,
        }
        for semivalue, of_values, of_errors in zip(
            values.semivalues, values.value.tolist(), values.stderr.tolist(), strict=True
        )
        for utility, column, errors in zip(stage.utilities, of_values, of_errors, strict=True)
        for example, value, error in zip(ids.tolist(), column, errors, strict=True)
    ]


def cost(finished: Finished, instance: str, n_rounds: int) -> float:
    """Floating-point operations of so many rounds of an instance for one query."""
    stage = _sampled(finished, instance)
    label = finished.corpus("label")
    lengths = [
        finished.manifest(writer, table).vector_length or 0
        for writer, table in finished.sources(instance).values()
        if writer != CORPUS_INSTANCE or table == "features"
    ]
    work = Work(
        n_examples=sum(s.rows for s in label.shards if s.role == "example"),
        n_queries=sum(s.rows for s in label.shards if s.role == "query"),
        n_tokens=0,
        n_classes=max(1, len(label.details["classes"])),
        dim=sum(lengths),
    )
    return stage.replay_cost(work, n_rounds).flops


def _sampled(finished: Finished, instance: str) -> Samples:
    stage = finished.stages[instance]
    if not isinstance(stage, Samples):
        raise RunError(
            f"{instance}: found {type(stage).__name__}, expected a stage whose rounds can be drawn "
            "again, such as freeshap. Name one."
        )
    return stage
