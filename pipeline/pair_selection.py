"""What `select` chooses pairs of a corpus of preferences by.

The best pairs are those in the middle, of the margin and of the influence on the queries: a pair
far out on either side teaches little, or leads away (arXiv:2510.13212, section 4). A number's place
is its rank among all pairs, between 0 and 1, and the score of a pair the mean distance of its
places from 1/2, with a minus. The source takes ranges of influence that it tunes; here nothing is
tuned, and the nearest to the middle are best. [derived]

A margin is that of DPO or, where the model is its own reference and all of these are 0, that of
log-likelihoods per token. Pairs whose answers differ only behind `max_length` have none: nothing is
learned of them.
"""

from typing import Any

from pipeline.decisions import Source
from pipeline.errors import RunError
from storage.sql import quoted

BY_PAIRS = ("middle", "margin", "influence", "preference_issues")
INFLUENCES = ("influence", "tracin")
"""Stages whose scores are influences on the loss of a query, the first that a run has."""
MARGIN = """
    SELECT id AS example_id, CASE WHEN max(abs(reward_margin)) OVER () > 1e-3 THEN reward_margin
                                  ELSE mean_margin END AS value
    FROM answer_margins WHERE role = 'example' AND loss IS NOT NULL AND method = {}
      AND (chosen_tokens <> rejected_tokens OR abs(margin) > 1e-6 * abs(chosen_logp))"""
INFLUENCE = (
    "SELECT example_id, avg(score) AS value FROM attributions WHERE method = {} GROUP BY ALL"
)


def pair_source(run: Any, by: str | None, method: str | None) -> Source:
    """What pairs of `run` are chosen by.

    By itself `middle`, which is of the margin and, where the run has influences on queries of all
    pairs, of these; `margin` and `influence` are of one of them alone. Without margins it is
    `preference_issues`, by which the surest orders are best.

    Raises:
        RunError: the run lacks it.
    """
    if by == "preference_issues" or (by is None and not run.methods("answer_margins")):
        run.require("preference_issues", "preference_issues", "preference")
        instance = run.choice("preference_issues", "method", method)
        name = "preference_issues"
        return Source(name, name, instance, name, "1 - v.p_wrong", "-v.p_wrong")
    statements = {}
    if by != "influence":
        run.require("answer_margins", "answer_margin", "preference")
        own = method if method in run.methods("answer_margins") else None
        instance = run.choice("answer_margins", "method", own)
        statements["margin"] = MARGIN.format(quoted(instance))
    influence = _influence(run, method, is_asked=by == "influence") if by != "margin" else None
    if influence is not None:
        instance = influence if by == "influence" else instance
        statements["influence"] = INFLUENCE.format(quoted(influence))
    called = by or ("middle" if len(statements) > 1 else "margin")
    first, *others = (
        f"(SELECT *, -abs(percent_rank() OVER (ORDER BY value) - 0.5) AS middle FROM ({of}))"
        for of in statements.values()
    )
    joined = "".join(f" JOIN {other} AS o USING (example_id)" for other in others)
    middle = "(f.middle + o.middle) / 2" if others else "f.middle"
    view = (
        f"(SELECT {quoted(instance)} AS method, example_id, f.value, {middle} AS middle "
        f"FROM {first} AS f{joined})"
    )
    return Source(called, called, instance, view, "v.value", "v.middle")


def _influence(run: Any, method: str | None, is_asked: bool) -> str | None:
    """The instance with influences of all pairs on all queries; None where there is none.

    Raises:
        RunError: it is asked for, and there is none.
    """
    named = ", ".join(map(quoted, INFLUENCES))
    found = run.sql(
        f"SELECT instance FROM runs WHERE stage IN ({named}) AND \"table\" = 'attribution' "
        "ORDER BY stage, instance"
    ).fetchall()
    instances = [name for (name,) in found if method in (None, name)] or [n for (n,) in found]
    ((n_pairs,),) = run.sql("SELECT count(*) FROM examples").fetchall()
    for name in instances:
        of_it = f"FROM attributions WHERE method = {quoted(name)}"
        ((least,),) = run.sql(
            f"SELECT min(n) FROM (SELECT count(*) AS n {of_it} GROUP BY query_id)"
        ).fetchall()
        ((known,),) = run.sql(f"SELECT count(DISTINCT example_id) {of_it}").fetchall()
        if least == known and known > n_pairs / 2:
            return str(name)
    if is_asked:
        raise RunError(
            f"select: found {', '.join(instances) or 'no influences'}, expected influences of all "
            "pairs on the queries. Add `tracin: {top_k: null}` under `stages:`, and queries."
        )
    return None
