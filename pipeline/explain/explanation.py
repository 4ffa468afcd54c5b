"""Explain one prediction: the examples and words that the run's methods name for one query.

Of a query of the run the results are read from its views. A new text is computed by the run's own
stages (`pipeline.explain.new_query`); nothing is stored.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import RunError
from pipeline.explain.lacking import advice
from pipeline.explain.new_query import NewQuery
from pipeline.explain.prompt import answered
from pipeline.explain.query import SAID, Query, Rows, said_of
from pipeline.explain.replay import replay
from pipeline.explain.stored_query import COLUMNS, StoredQuery, dicts
from pipeline.explain.titles import lists_of_examples
from pipeline.explain.words import words_of
from pipeline.finished import Finished
from pipeline.progress import Progress
from stages.capabilities import Samples
from stages.tables import GENERAL
from storage.catalog import fetch
from storage.names import near


def explain(
    run: Any,
    query: str | int | None,
    text: str | None,
    text_b: str | None,
    methods: Sequence[str],
    top: int,
    progress: Progress,
    prompt: str | None = None,
    new_tokens: int = 64,
    kept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The explanation of one prediction, as plain values.

    Keys:
        run_id: The run.
        query: query_id, source_id, text, text_b, label; of completions prompt and answer.
        predictions: One entry for each model; of classes with their `probabilities` by name.
        answers: The same where the query is a question about a text.
        tokens: For each token method and output, the words with their scores.
        methods: For each pairwise method `speaks_for` (see `stages.stage.Stage`) and the lists
            `helpful` (scores above 0) and `harmful` (below 0) of examples: example_id,
            source_id, text, text_b, label, score, global_score, local_score.
        values: The same lists by values of examples for this query alone.
        spectra: For each support stage and class (-1 for the others in general) the examples
            that support the prediction against it, from the most global to the most local, and
            their number, n_support, which may be 0.

    Args:
        run: The `pipeline.open_run.OpenedRun`.
        query: A query of the run, by query_id or source_id; either this, `text` or `prompt` is
            given.
        text: A new text.
        text_b: Its second text, in a corpus of pairs.
        methods: Stage instances whose results are wanted; empty for all.
        top: How many examples of each sign.
        progress: Hears of methods that are left out, and of work that takes long.
        prompt: A prompt that the run's language model answers; the answer is explained.
        new_tokens: Tokens of that answer at most.
        kept: What is opened, such as models, for the next text or prompt of this run; filled here.

    Raises:
        RunError: the query or a method is not in the run, or the text does not fit its corpus.
    """
    n_given = sum(given is not None for given in (query, text, prompt))
    if n_given != 1:
        raise RunError(
            f"explain: found {n_given or 'none'} of query, text and prompt, expected one. Name a "
            "query of the run, or give a text."
        )
    if text is None and text_b is not None:
        raise RunError("explain: found text_b without text, expected both. Give the text, too.")
    if query is None:
        check_own(run, is_prompt=prompt is not None)
    kept = {} if kept is None else kept
    finished = Finished(run.folder)
    pairwise, replayed, of_tokens = _chosen_methods(run, finished, methods)
    explained: Query
    if prompt is not None:
        text, text_b = answered(finished, prompt, new_tokens, progress, kept)
    if text is not None:
        _check_pairs(run, text_b)
        explained = NewQuery(finished, text, text_b, progress, kept)
    else:
        explained = StoredQuery(run, str(query), top)
    found: dict[str, Any] = {
        "run_id": run.record["run_id"],
        "query": explained.facts,
        "predictions": _with_probabilities(run, explained.predictions()),
        "answers": explained.answers(),
        "methods": [],
        "values": [],
        "spectra": [],
        "tokens": [],
    }
    for method in of_tokens:
        found["tokens"] += _words(run, explained, method, progress, bool(methods))
    for method in pairwise:
        try:
            scores = explained.scores(method)
        except RunError as error:
            if methods:
                raise
            progress.say(f"left out: {error}")
            continue
        name = {"method": method, "speaks_for": finished.speaks_for(method)}
        found["methods"].append({**name, **_extremes(scores, "score", top)})
    drawn = {name: replay(finished, name, explained, progress) for name in replayed}
    stored = {m: rows for m, rows in explained.values().items() if not methods or m in methods}
    for method, rows in {**drawn, **stored}.items():
        for semivalue, utility in dict.fromkeys((r["semivalue"], r["utility"]) for r in rows):
            values = [r for r in rows if (r["semivalue"], r["utility"]) == (semivalue, utility)]
            name = {"method": method, "semivalue": semivalue, "utility": utility}
            found["values"].append({**name, **_extremes(values, "value", top)})
    classes = dict(run.sql("SELECT label, label_name FROM provenance.class").fetchall())
    for method in run.methods("support"):
        if methods and method not in methods:
            continue
        contrasts = _spectra(*explained.support(method), classes)
        found["spectra"].append({"method": method, "contrasts": contrasts})
    _add_texts(run, found)
    return found


def check_own(run: Any, is_prompt: bool) -> None:
    """Refuses texts or prompts of one's own where no run over such a corpus explains them.

    Raises:
        RunError: its rows are pairs of answers, or its models answer no prompts.
    """
    if run.task() == "preference":
        raise RunError(
            "explain: found a text or prompt of one's own in a corpus of preferences, expected a "
            "query of the run, which is a prompt with two answers. Use --query."
        )
    if is_prompt and run.task() != "completion":
        raise RunError(
            f"--prompt: found a corpus with task: {run.task()}, expected completion, as a language "
            "model answers prompts. Use --text or --query."
        )


def _with_probabilities(run: Any, predictions: Rows) -> Rows:
    """The predictions with the probability of every class, by its name; of numbers None."""
    classes = run.sql("SELECT label_name FROM provenance.class ORDER BY label").fetchall()
    names = [str(name) for (name,) in classes]
    for row in predictions:
        row["probabilities"] = None
        if row["predicted"] is not None and len(row["logits"]) == len(names):
            largest = max(row["logits"])
            weights = [math.exp(logit - largest) for logit in row["logits"]]
            shares = [weight / sum(weights) for weight in weights]
            row["probabilities"] = dict(zip(names, shares, strict=True))
    return predictions


def _chosen_methods(run: Any, finished: Finished, wanted: Sequence[str]) -> tuple[list[str], ...]:
    """The stage instances to use: pairwise, those whose rounds are drawn again, token methods.

    `wanted` are the instances that the user named; without any, all pairwise and token methods.

    Raises:
        RunError: the run lacks a named method, or has none at all.
    """
    pairwise, of_tokens = run.methods("attributions"), run.methods("tokens")
    sampled = [name for name, stage in finished.stages.items() if isinstance(stage, Samples)]
    others = [*run.methods("support"), *run.methods("shapley_by_query")]
    for name in wanted:
        if name not in (*pairwise, *sampled, *of_tokens, *others):
            known = list(dict.fromkeys([*pairwise, *of_tokens, *sampled, *others]))
            raise RunError(
                f"found --method {name}{near(name, known)}, expected one of "
                f"{', '.join(known) or 'none'}. Name one of these, or add the stage and run again."
            )
    if (
        not wanted
        and not pairwise
        and not any(map(run.methods, ("support", "shapley_by_query", "tokens")))
    ):
        also = f" or name --method {sampled[0]}, for a single query." if sampled else ""
        raise RunError(
            f"{run.folder.path}: found no pairwise method in the run, {advice(run)}{also or '.'}"
        )
    wanted = list(dict.fromkeys(wanted)) or [*pairwise, *of_tokens]
    drawn = [name for name in sampled if name not in (*pairwise, *others)]
    groups = (pairwise, drawn, of_tokens)
    return tuple([name for name in wanted if name in group] for group in groups)


def _words(
    run: Any, query: Query, method: str, progress: Progress, is_named: bool
) -> list[dict[str, Any]]:
    """The words of the query with the scores of a token method, one entry per explained output.

    A method that cannot be computed for the query gives none, unless the user named it.

    Raises:
        RunError: a named method cannot be computed for the query.
    """
    try:
        rows, names = query.tokens(method)
    except RunError as error:
        if is_named:
            raise
        progress.say(f"left out: {error}")
        return []
    classes = dict(run.sql("SELECT label, label_name FROM provenance.class").fetchall())
    entries = []
    for output in sorted({row["output"] for row in rows}):
        tokens = [row for row in rows if row["output"] == output]
        name = names.get(output) or classes.get(output)
        words = words_of(tokens, query.facts)
        entries.append({"method": method, "output": output, "output_name": name, "words": words})
    return entries


def _check_pairs(run: Any, text_b: str | None) -> None:
    """Raises unless the new text is a pair where the rows of the corpus are pairs."""
    n_pairs = fetch(run.sql("SELECT count(text_b) FROM examples"))[0][0]
    if bool(n_pairs) != bool(text_b):
        raise RunError(
            f"--text: found {'a second text' if text_b else 'one text'}, expected "
            f"{'two' if n_pairs else 'one'}, as in the corpus. "
            + ('Add --text-b "…".' if n_pairs else "Leave --text-b out.")
        )


def _spectra(rows: Rows, sizes: Rows, classes: Mapping[int, str]) -> Rows:
    """The support spectrum against each class, its examples from the most global to the most local.

    `rows` and `sizes` are those of `Query.support`, `classes` the class names by label. The general
    spectrum, against all other classes, comes first.
    """
    spectra = []
    for size in sorted(sizes, key=lambda size: int(size["contrast"])):
        contrast = int(size["contrast"])
        ranked = [row for row in rows if row["contrast"] == contrast]
        examples = [
            {name: row[name] for name in ("example_id", "rank", "global_score", "local_score")}
            for row in sorted(ranked, key=lambda row: int(row["rank"]))
        ]
        name = "general" if contrast == GENERAL else classes.get(contrast, str(contrast))
        head = {"contrast": contrast, "contrast_name": name, "n_support": size["n_support"]}
        spectra.append({**head, "examples": examples})
    return spectra


def _extremes(rows: Rows, column: str, top: int) -> dict[str, Rows]:
    """The `top` rows above 0 (`helpful`) and below 0 (`harmful`), those farthest from 0 first.

    `column` holds the number; rows with equal numbers are ordered by example_id.
    """
    sides = {}
    for name, sign in (("helpful", 1), ("harmful", -1)):
        signed = [row for row in rows if sign * row[column] > 0]
        signed.sort(key=lambda row: (-sign * row[column], row["example_id"]))
        kept = ("example_id", column, "global_score", "local_score", "stderr")
        sides[name] = [{k: row[k] for k in kept if k in row} for row in signed[:top]]
    return sides


def _add_texts(run: Any, found: Mapping[str, Any]) -> None:
    """Adds the source_id, texts and label of every example in the lists of the explanation.

    Of completions and preferences also prompt and answer as people read them, None of others.
    """
    lists = [rows for _, rows in lists_of_examples(found)]
    ids = sorted({row["example_id"] for rows in lists for row in rows})
    if not ids:
        return
    id_list = ", ".join(map(str, ids))
    rows = dicts(
        run.sql(f"SELECT example_id, {COLUMNS} FROM examples WHERE example_id IN ({id_list})")
    )
    said = said_of(run, "example", ids)
    by_id = {i: {**row, **said.get(i, SAID)} for row in rows for i in [row["example_id"]]}
    for row in (row for rows in lists for row in rows):
        row.update(by_id[row["example_id"]])
