"""What a review changed: its decisions, and the flags and accuracy of the run before and after."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.decided import reviews, undecided
from pipeline.decisions import KEPT
from pipeline.main_results import summarize
from pipeline.page.subject import NOUNS, VERDICTS
from storage.sql import quoted

DONE = {"fix": "fixed", "drop": "dropped", "accept": "accepted"}
STEADY = 1.5
"""Flags that change by less than this factor, beside those that were decided about, are no news."""


def changes(before: Any, after: Any) -> list[str]:
    """Sentences on what the last review of the opened run `after` made of `before`."""
    from stages.corpus.review import read_decisions

    *_, review = reviews(after)
    decided = Counter(read_decisions(review)[1].values())
    listed = [f"{decided[verdict]} {done}" for verdict, done in DONE.items() if decided[verdict]]
    found = [f"Applied: {', '.join(listed)}."]
    found += _flags(before, after, decided)
    if after.task() == "preference" and decided["fix"]:
        found += _of_sides(after)
    one, other = (
        {line["source"]: line["accuracy"] for line in summarize(run)["accuracy"]}
        for run in (before, after)
    )
    ((n,),) = after.sql(
        "SELECT count(*) FROM tables.label WHERE role = 'query' AND label IS NOT NULL"
    ).fetchall()
    for source in one.keys() & other.keys():
        right = [round(n * accuracy[source]) for accuracy in (one, other)]
        if right[0] != right[1]:
            found.append(f"The {source} is right on {right[1]} of {n} queries, {right[0]} before.")
    return found


def _of_sides(run: Any) -> list[str]:
    """A sentence about columns of the source that tell of one of the answers, where there are some.

    Such as `score_chosen`: they stay, for what they mean is the user's to know.
    """
    source = run.config().corpus
    answers = {source.chosen or "chosen", source.rejected or "rejected"}
    columns = run.corpus_manifests()["extra"].details["columns"]["example"]
    named = [column["name"] for column in columns if column["name"] not in answers]
    telling = [name for name in named if "chosen" in name.lower() or "rejected" in name.lower()]
    if not telling:
        return []
    return [
        f"Where answers changed places, {', '.join(telling)} did not: if they tell of one of the "
        "answers, they tell of the other now."
    ]


def _flags(before: Any, after: Any, decided: Mapping[str, int]) -> list[str]:
    """How many rows are flagged now, and why that may be other than what was mended."""
    if after.task() not in VERDICTS:
        return []
    view, flag, _ = VERDICTS[after.task()]
    noun = NOUNS[after.task()][1]
    counts = []
    for run in (before, after):
        methods = run.methods(view)
        if not methods:
            return []
        ((n, expected),) = run.sql(
            f"SELECT count(*) FILTER ({flag}), sum(p_wrong) FROM {view} "
            f"WHERE method = {quoted(methods[0])} AND {KEPT} {undecided(run)}"
        ).fetchall()
        counts.append((int(n), float(expected or 0)))
    (was, _), (now, expected) = counts
    told = f"{now} {noun} are flagged, {was} before; {expected:.0f} are expected to be wrong."
    n_fixed, n_judged = decided["fix"], decided["fix"] + decided["accept"]
    # An answer that was accepted is judged as before, and no longer counted.
    n_gone = n_fixed if after.task() == "classification" else n_judged
    left = max(was - n_gone - decided["drop"], 1)
    if max(now, 1) > STEADY * left or left > STEADY * max(now, 1):
        if after.task() == "classification" and n_judged:
            told += (
                f" Of the {n_judged} that were accepted or fixed {n_fixed} were wrong, which tells "
                "how many of the others are."
            )
        else:
            told += " How many are wrong is estimated anew, from the rows as they are now."
    return [told]
