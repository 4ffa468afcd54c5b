"""Why a prediction came out as it did: what every method of a run says of one query.

A query of the run is answered from its views. A text that is none is given to the run's own stages
(`pipeline.explain.new_query`); nothing is stored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import RunError
from pipeline.explain.new_query import NewQuery
from pipeline.explain.replay import replay
from pipeline.explain.stored_query import COLUMNS, Rows, StoredQuery, dicts
from pipeline.explain.words import words_of
from pipeline.finished import Finished
from pipeline.progress import Progress
from stages.stage import Samples
from stages.tables import GENERAL
from storage.views import fetch


def explain(
    run: Any,
    query: str | int | None,
    text: str | None,
    text_b: str | None,
    methods: Sequence[str],
    top: int,
    progress: Progress,
) -> dict[str, Any]:
    """What `pipeline.open_run.OpenedRun.explain` says it returns; `run` is one."""
    if (query is None) == (text is None):
        raise RunError(
            f"explain: found {'neither' if text is None else 'both'} of query and text, expected "
            "one. Name a query of the run, or give a text."
        )
    if text is None and text_b is not None:
        raise RunError("explain: found text_b without text, expected both. Give the text, too.")
    finished = Finished(run.folder)
    chosen, replayed, worded = _chosen(run, finished, methods)
    asked: StoredQuery | NewQuery
    if text is not None:
        _check_pairs(run, text_b)
        asked = NewQuery(finished, text, text_b, progress)
    else:
        asked = StoredQuery(run, str(query), top)
    found: dict[str, Any] = {
        "run_id": run.record["run_id"],
        "query": asked.facts,
        "predictions": asked.predictions(),
        "answers": asked.answers(),
        "methods": [],
        "values": [],
        "spectra": [],
        "tokens": [],
    }
    for method in worded:
        found["tokens"] += _words(run, asked, method, progress, bool(methods))
    for method in chosen:
        try:
            scores = asked.scores(method)
        except RunError as error:
            if methods:
                raise
            progress.say(f"left out: {error}")
            continue
        name = {"method": method, "speaks_for": _speaks_for(finished, method)}
        found["methods"].append({**name, **_extremes(scores, "score", top)})
    valued = {name: replay(finished, name, asked, progress) for name in replayed}
    for method, rows in {**valued, **asked.values()}.items():
        for semivalue, utility in dict.fromkeys((r["semivalue"], r["utility"]) for r in rows):
            own = [r for r in rows if (r["semivalue"], r["utility"]) == (semivalue, utility)]
            name = {"method": method, "semivalue": semivalue, "utility": utility}
            found["values"].append({**name, **_extremes(own, "value", top)})
    classes = dict(run.sql("SELECT label, label_name FROM provenance.class").fetchall())
    for method in run.methods("support"):
        contrasts = _spectra(*asked.support(method), classes)
        found["spectra"].append({"method": method, "contrasts": contrasts})
    _describe(run, found)
    return found


def listed(found: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Every list of examples of an explanation, under its title."""
    lists: list[tuple[str, Rows]] = []
    for entry in [*found["methods"], *found["values"]]:
        lists += [(f"{title(entry)}: {side}", entry[side]) for side in ("helpful", "harmful")]
    for entry in found["spectra"]:
        lists += [(support_title(entry["method"], t), t["examples"]) for t in entry["contrasts"]]
    return lists


def title(entry: Mapping[str, Any]) -> str:
    """What a method's examples are good for: a score, or a semivalue of a utility."""
    if "utility" not in entry:
        of = {"label": " (of the label)", "prediction": " (of the prediction)"}
        return f"{entry['method']}{of.get(entry['speaks_for'], '')}"
    return f"{entry['method']} ({entry['semivalue']}, {entry['utility']})"


def support_title(method: str, towards: Mapping[str, Any]) -> str:
    """A support set with its size; an empty one is a result."""
    name = towards["contrast_name"]
    against = "general" if towards["contrast"] == GENERAL else f"against {name}"
    if not towards["n_support"]:
        return f"{method}, {against}: no support"
    return f"{method}, {against}: {towards['n_support']} examples support the prediction"


def _chosen(run: Any, finished: Finished, wanted: Sequence[str]) -> tuple[list[str], ...]:
    """Methods that are asked: the pairwise, those whose rounds are drawn again, those of tokens.

    Raises:
        RunError: a method is none of the run's, or the run has none.
    """
    pairwise, of_tokens = run.methods("attributions"), run.methods("tokens")
    played = [name for name, stage in finished.stages.items() if isinstance(stage, Samples)]
    for name in wanted:
        if name not in (*pairwise, *played, *of_tokens):
            known = ", ".join([*pairwise, *of_tokens, *played])
            raise RunError(
                f"found --method {name}, expected one of {known}. "
                "Name one of these, or add the stage and run again."
            )
    if (
        not wanted
        and not pairwise
        and not any(map(run.methods, ("support", "shapley_by_query", "tokens")))
    ):
        also = f" or ask for --method {played[0]}, for a single query." if played else ""
        raise RunError(
            f"{run.folder.path}: found no pairwise method in the run, expected the results of a "
            f"stage such as tracin. Add `tracin: {{}}` under `stages:` and run again{also or '.'}"
        )
    wanted = list(dict.fromkeys(wanted)) or [*pairwise, *of_tokens]
    groups = (pairwise, [name for name in played if name not in pairwise], of_tokens)
    return tuple([name for name in wanted if name in group] for group in groups)


def _words(
    run: Any, asked: Any, method: str, progress: Progress, is_wanted: bool
) -> list[dict[str, Any]]:
    """What a token method says of the words of each output; nothing where it cannot be asked."""
    try:
        rows, names = asked.tokens(method)
    except RunError as error:
        if is_wanted:
            raise
        progress.say(f"left out: {error}")
        return []
    classes = dict(run.sql("SELECT label, label_name FROM provenance.class").fetchall())
    found = []
    for output in sorted({row["output"] for row in rows}):
        own = [row for row in rows if row["output"] == output]
        name = names.get(output) or classes.get(output)
        words = words_of(own, asked.facts)
        found.append({"method": method, "output": output, "output_name": name, "words": words})
    return found


def _speaks_for(finished: Finished, method: str) -> str | None:
    """What a method says it speaks for, or else what it reads, such as gradients."""
    read = (writer for writer, _ in finished.sources(method).values())
    stages = (finished.stages.get(name) for name in (method, *read))
    said = (stage.speaks_for for stage in stages if stage is not None)
    return next((one for one in said if one is not None), None)


def _check_pairs(run: Any, text_b: str | None) -> None:
    """Refuses one text where rows of the corpus have two, and the other way round."""
    n_pairs = fetch(run.sql("SELECT count(text_b) FROM examples"))[0][0]
    if bool(n_pairs) != bool(text_b):
        raise RunError(
            f"--text: found {'a second text' if text_b else 'one text'}, expected "
            f"{'two' if n_pairs else 'one'}, as in the corpus. "
            + ('Add --text-b "…".' if n_pairs else "Leave --text-b out.")
        )


def _spectra(rows: Rows, sizes: Rows, classes: Mapping[int, str]) -> Rows:
    """A spectrum per contrast, the general one first, each from the global to the local end."""
    found = []
    for size in sorted(sizes, key=lambda size: int(size["contrast"])):
        contrast = int(size["contrast"])
        own = [row for row in rows if row["contrast"] == contrast]
        examples = [
            {name: row[name] for name in ("example_id", "rank", "global_score", "local_score")}
            for row in sorted(own, key=lambda row: int(row["rank"]))
        ]
        name = "general" if contrast == GENERAL else classes.get(contrast, str(contrast))
        head = {"contrast": contrast, "contrast_name": name, "n_support": size["n_support"]}
        found.append({**head, "examples": examples})
    return found


def _extremes(rows: Rows, column: str, top: int) -> dict[str, Rows]:
    """The `top` rows of each sign, the largest first; equal ones by id."""
    sides = {}
    for name, sign in (("helpful", 1), ("harmful", -1)):
        own = [row for row in rows if sign * row[column] > 0]
        own.sort(key=lambda row: (-sign * row[column], row["example_id"]))
        kept = ("example_id", column, "global_score", "local_score", "stderr")
        sides[name] = [{k: row[k] for k in kept if k in row} for row in own[:top]]
    return sides


def _describe(run: Any, found: Mapping[str, Any]) -> None:
    """Gives every example that is named its text and label."""
    lists = [rows for _, rows in listed(found)]
    ids = sorted({row["example_id"] for rows in lists for row in rows})
    if not ids:
        return
    which = ", ".join(map(str, ids))
    rows = dicts(
        run.sql(f"SELECT example_id, {COLUMNS} FROM examples WHERE example_id IN ({which})")
    )
    by_id = {row["example_id"]: row for row in rows}
    for row in (row for rows in lists for row in rows):
        row.update(by_id[row["example_id"]])
