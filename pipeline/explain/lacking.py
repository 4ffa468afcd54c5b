"""What to add to a run that has no scores of examples for its queries."""

from typing import Any

PAIRWISE = {
    "classification": "tracin",
    "regression": "tracin",
    "completion": "bm25",
    "preference": "bm25",
    "question_answering": "bm25",
}
"""By task the stage of such scores that is taken: gradients, where they are quickly computed, or
else the words that rows share, which costs no pass of a model. Questions have no gradients."""
OF_VECTORS = "similarity: {features: features}"
"""That of a corpus without texts."""


def advice(run: Any) -> str:
    """What to add to `run`, a `pipeline.open_run.OpenedRun`, as the end of an error."""
    has_texts = run.facts("text").get("has_text", True)
    stage = f"{PAIRWISE[run.task()]}: {{}}" if has_texts else OF_VECTORS
    ((has_queries,),) = run.sql("SELECT count(*) > 0 FROM queries").fetchall()
    queries = "" if has_queries else ", and `queries:` for it,"
    name = stage.partition(":")[0]
    return (
        f"expected the results of a stage such as {name}. Add `{stage}` under `stages:`{queries} "
        "and run again"
    )
