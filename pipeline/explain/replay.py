"""Values of examples for a single query: the stored rounds of a sampled stage, drawn again."""

from pipeline.errors import RunError
from pipeline.estimate import MODEL_EFFICIENCY
from pipeline.explain.new_query import NewQuery
from pipeline.explain.query import Query, Rows
from pipeline.finished import Finished
from pipeline.node import CORPUS_INSTANCE
from pipeline.progress import Progress, seconds_text
from pipeline.task import StoredInputs
from stages.capabilities import Samples
from stages.model.calibration import flops_per_second
from stages.model.threads import set_threads
from stages.stage import Work


def replay(
    finished: Finished,
    instance: str,
    query: Query,
    progress: Progress,
) -> Rows:
    """The value of every example for one query, by the rounds that a stage instance has stored.

    Keys of a row: semivalue, utility, example_id, value (above 0 helps), stderr (None where a
    single unit was drawn). `progress` hears the cost before anything is computed.

    Raises:
        RunError: the instance has no stored rounds, or is no sampled stage.
        stages.stage.StageError: the stage cannot use the query, say because it has no features.
    """
    stage = _sampled(finished, instance)
    rounds = [shard.index for shard in finished.manifest(instance, stage.writes[0].name).shards]
    if not rounds:
        raise RunError(
            f"{instance}: found no stored round, expected at least one. Go on with `assay run`."
        )
    flops = cost(finished, instance, len(rounds))
    seconds = flops / (flops_per_second() * MODEL_EFFICIENCY)
    progress.say(
        f"{instance}: {len(rounds)} rounds of {stage.units_per_round} units are drawn again for "
        f"this query alone: {flops:.1e} FLOPs, about {seconds_text(seconds)}"
    )
    if isinstance(query, NewQuery):
        inputs = query.inputs(instance, is_alone=False)
    else:
        job = finished.job(instance)
        set_threads(job.threads)
        inputs = StoredInputs(job.inputs, job.stage.split, finished.store)
    ids, values = stage.replay(
        inputs, query.id, rounds, lambda done, total: progress.stepped(instance, done, total)
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
    """Floating-point operations to draw `n_rounds` rounds of a stage instance for one query."""
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
    """The stage of an instance; raises unless its rounds can be drawn again."""
    stage = finished.stages[instance]
    if not isinstance(stage, Samples):
        raise RunError(
            f"{instance}: found {type(stage).__name__}, expected a stage whose rounds can be drawn "
            "again, such as freeshap. Name one."
        )
    return stage
