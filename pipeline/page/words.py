"""The legend of a report: the words that this run's sections use, in plain ones."""

from dataclasses import dataclass

from pipeline.page.subject import NOUNS, Subject

_ANSWERS = ("completion", "preference")
_JUDGED = ("classification", *_ANSWERS)


@dataclass(frozen=True)
class Word:
    """A term and what it means, and where it is needed."""

    term: str
    means: str
    views: tuple[str, ...] = ()
    """Views whose sections use it, one of which the run has; empty: any run."""
    tasks: tuple[str, ...] = tuple(NOUNS)


WORDS = (
    Word(
        "flagged",
        "Probably wrong, by the run's own decision. A flag is a reason to read a row, not to drop "
        "it.",
        tasks=_JUDGED,
    ),
    Word(
        "score of a label",
        "The probability of the given label as predicted without its row, weighed against the "
        "other labels; from 0 to 1, low is suspicious.",
        ("label_issues",),
    ),
    Word(
        "likely wrong, p(wrong), p(bad)",
        "The probability that the given label is wrong, an answer bad or an order wrong. They add "
        "up to how many are expected to be.",
        ("label_issues", "answer_issues", "preference_issues"),
    ),
    Word(
        "chosen, rejected; order",
        "Of a pair the answer that is said to be better, and the other. The order is wrong where "
        "the rejected one is better.",
        tasks=("preference",),
    ),
    Word(
        "out of sample, leave-one-out",
        "A prediction for a row by all other rows, so that a wrong label cannot confirm itself.",
        ("predictions", "label_issues"),
    ),
    Word(
        "kernel, probe, model",
        "Who predicts: a regression on the likeness of rows to each other (kernel), a linear "
        "classifier on the model's hidden numbers (probe), the model itself.",
        ("predictions",),
    ),
    Word(
        "probability of a class, confidence",
        "How likely a class is, by the one who predicts; confidence is the largest of them. They "
        "are as good as the predictor, and often too sure.",
        ("predictions",),
        ("classification",),
    ),
    Word(
        "queries",
        "Rows that stand for what the model is to do well: examples are valued by them, and "
        "predictions for them are explained.",
    ),
    Word(
        "value (Shapley value)",
        "What an example adds to the predictions of the queries, averaged over all sets of "
        "examples that it may join. Above 0 it helps. It depends on the queries: compare values "
        "within a class.",
        ("shapley",),
    ),
    Word(
        "±, error bars",
        "95 % intervals of the sampling error: with more rounds they get shorter. Whether other "
        "queries would say the same is another question, which `assay evaluate` answers.",
        ("shapley", "selection_trial"),
    ),
    Word(
        "speaks for, speaks against",
        "An example whose score is above 0 raises the output that is named; below 0 it lowers it. "
        "Scores of two methods have no common unit: their bars are each on the scale of one.",
        ("attributions",),
    ),
    Word(
        "global, local",
        "The two factors of a score: how much an example matters for all queries, and how alike "
        "it is to this one.",
        ("components", "support"),
    ),
    Word(
        "support, spectrum",
        "Examples of the predicted class that the model is less sure of than the query, from the "
        "one that matters everywhere to the one most like it.",
        ("support", "token_support"),
    ),
    Word(
        "coloured words; IG (integrated gradients)",
        "What each word adds to the output; IG adds it up on the way from an empty text to this "
        "one. Green raises the output, red lowers it.",
        ("tokens",),
    ),
    Word(
        "loss, difficulty, on task",
        "Of an answer: how unlikely the model finds it, by token; that loss with its prompt over "
        "that without (near 1: the prompt does not help to say it); its likeness to the nearest "
        "query.",
        ("answer_losses", "query_relevance"),
    ),
    Word(
        "target, off by, R²",
        "The number of a row; how far the prediction by the other rows lies from it; the part of "
        "the variance of targets that these predictions explain.",
        tasks=("regression",),
    ),
    Word(
        "probability of an answer",
        "How sure the model is of the piece of the text that it answers with: of its first token "
        "times of its last.",
        ("answers",),
    ),
    Word(
        "duplicate, near duplicate, outlier",
        "An example with the same text as another without case and spacing, with nearly the same "
        "text, and one far from all others.",
    ),
)


def words(subject: Subject) -> list[Word] | None:
    """The legend of a run; None where no word needs one."""
    return [
        word
        for word in WORDS
        if subject.task in word.tasks
        and (not word.views or any(subject.instance(view) for view in word.views))
    ] or None
