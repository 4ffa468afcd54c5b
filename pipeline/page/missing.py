"""What a run has no tables for, and which stage would bring it."""

from pipeline.explain.lacking import OF_VECTORS, PAIRWISE
from pipeline.page.subject import Subject

_OF_CLASSES = ("classification",)
_ANSWERED = ("completion", "question_answering")
_ALL = (*_OF_CLASSES, "regression", *_ANSWERED, "preference")
LACKING: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("label_issues", "which labels look wrong", _OF_CLASSES, "label_issues: {}"),
    ("answer_issues", "which answers look bad, and why", ("completion",), "answer_issues: {}"),
    (
        *("preference_issues", "which pairs have the wrong order", ("preference",)),
        "preference_issues: {}",
    ),
    (
        *("answers", "what the model answers to the questions", ("question_answering",)),
        "answer_span: {}",
    ),
    ("shapley", "which examples help and which harm", _OF_CLASSES, "freeshap: {}"),
    (
        *("shapley", "which examples help and which harm", ("regression", "completion")),
        "freeshap: {kernel: [gradient], utilities: [loss]}",
    ),
    (
        *("near_duplicates", "near duplicates, also of queries"),
        tuple(task for task in _ALL if task != "question_answering"),
        "near_duplicates: {}",
    ),
    ("outliers", "examples that are far from all others", _ALL, "outliers: {}"),
    ("text_lengths", "texts that are longer than the model reads", _ALL, "text_length: {}"),
    *(
        ("attributions", "which examples stand behind a prediction", (task,), f"{stage}: {{}}")
        for task, stage in PAIRWISE.items()
    ),
    ("support", "a short list of examples that support a prediction", _OF_CLASSES, "support: {}"),
    (
        *("tokens", "which words stand behind a prediction"),
        (*_OF_CLASSES, "regression", *_ANSWERED),
        "ig: {}",
    ),
    ("coreset", "rows that train best together", _OF_CLASSES, "coreset: {}"),
    (
        *("query_relevance", "how near rows are to the task of the queries", _ALL),
        "query_relevance: {}",
    ),
)
"""A view, what a person reads in it, the tasks that it is of, and the stage that writes it."""
_KERNEL = "kernel_regression: {kernel: [features]}"
VECTORS: dict[str, tuple[str, ...]] = {
    "label_issues": (_KERNEL, "label_issues: {}"),
    "shapley": ("freeshap: {kernel: [features]}",),
    "outliers": ("outliers: {features: features}",),
    "attributions": (OF_VECTORS,),
    "support": (
        *("probe: {embedding: features}", "prediction: {embedding: features}"),
        "support: {features: features}",
    ),
    "coreset": (_KERNEL, "coreset: {kernel: [features]}"),
    "query_relevance": ("query_relevance: {features: features}",),
}
"""The stages of a corpus without texts, by view; others have none."""


def missing(subject: Subject) -> list[tuple[str, tuple[str, ...]]] | None:
    """What is not in the report, each with the stages to add; None where nothing is missing."""
    found = [
        (what, (stage,) if subject.has_texts else VECTORS[view])
        for view, what, tasks, stage in LACKING
        if subject.task in tasks
        and subject.instance(view) is None
        and (subject.has_texts or view in VECTORS)
    ]
    return found or None
