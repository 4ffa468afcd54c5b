"""What a run has no tables for, and which stage would bring it."""

from pipeline.page.subject import Subject

_OF_CLASSES = ("classification",)
_VALUED = ("classification", "regression", "completion")
_ALL = (*_VALUED, "question_answering", "preference")
LACKING: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("label_issues", "which labels look wrong", _OF_CLASSES, "label_issues"),
    ("answer_issues", "which answers look bad, and why", ("completion",), "answer_issues"),
    ("preference_issues", "which pairs have the wrong order", ("preference",), "preference_issues"),
    ("answers", "what the model answers to the questions", ("question_answering",), "answer_span"),
    ("shapley", "which examples help and which harm", _VALUED, "freeshap"),
    ("near_duplicates", "near duplicates, also of queries", _VALUED, "near_duplicates"),
    ("outliers", "examples that are far from all others", _ALL, "outliers"),
    ("text_lengths", "texts that are longer than the model reads", _ALL, "text_length"),
    ("attributions", "which examples stand behind a prediction", _ALL, "tracin"),
    ("support", "a short list of examples that support a prediction", _OF_CLASSES, "support"),
    ("tokens", "which words stand behind a prediction", _ALL, "ig"),
    ("coreset", "rows that train best together", _OF_CLASSES, "coreset"),
    ("query_relevance", "how near rows are to the task of the queries", _ALL, "query_relevance"),
)
"""A view, what a person reads in it, the tasks that it is of, and the stage that writes it."""


def missing(subject: Subject) -> list[tuple[str, str]] | None:
    """What is not in the report, each with the stage to add; None where nothing is missing."""
    found = [
        (what, stage)
        for view, what, tasks, stage in LACKING
        if subject.task in tasks and subject.instance(view) is None
    ]
    return found or None
