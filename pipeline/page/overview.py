"""The top of a report: what was judged, how much looks wrong, and what to do next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.page.asked import Asked
from pipeline.page.document import share, significant
from pipeline.page.labels import barely_known
from pipeline.page.subject import NOUNS, Subject
from pipeline.trials import NORMAL, interval, of_gain
from storage.sql import quoted

DEPTHS = (20, 100)
"""First rows of the order of suspicion of which the expected part of wrong ones is told."""


@dataclass(frozen=True)
class Tile:
    """A number that is shown large, what it counts, and the statement behind it."""

    number: str
    caption: str
    asked: Asked


@dataclass(frozen=True)
class Step:
    """What to do next, and the command that does it; empty where there is none."""

    say: str
    command: str
    page: str = ""
    """The page of the viewer that does it, where one does."""
    say_there: str = ""
    """What the viewer says beside a link to that page."""


@dataclass(frozen=True)
class Overview:
    """What a person knows who reads nothing else."""

    headline: str
    lead: str
    tiles: list[Tile]
    steps: list[Step]
    limits: list[str]
    """What holds of every run of the kind."""


def overview(subject: Subject) -> Overview:
    """The top of the report of a run."""
    by_task = {"regression": _targets, "question_answering": _questions}
    if subject.task in by_task:
        headline, tiles, steps = by_task[subject.task](subject)
    elif subject.judged is None:
        headline, tiles, steps = _not_judged(subject)
    else:
        headline, tiles, steps = _judged(subject, subject.judged.rows)
    tiles += _accuracy(subject) + _trial(subject)
    if (
        subject.values is not None
        or "coreset" in subject.views
        or "query_relevance" in subject.views
    ):
        steps.append(
            Step(
                "Choose the rows that train best, and see first what they are expected to train.",
                f"assay select {subject.path} --keep 20% --out best.jsonl",
            )
        )
    return Overview(headline, _lead(subject), tiles, steps, _limits(subject))


def _limits(subject: Subject) -> list[str]:
    """What no check can rule out."""
    limits = []
    if subject.judged is not None and subject.task == "classification":
        limits.append(
            "A flag is a reason to read a row, no proof: some flagged labels are right and hard. "
            "Wrong labels where two classes meet look like hard ones and are not flagged."
        )
    if subject.judged is not None and subject.task == "preference":
        limits.append("A flag is a reason to read a pair, no proof: tastes differ.")
    if subject.judged is not None and subject.task == "completion":
        limits.append(
            "A flag is a reason to read an answer, no proof. Answers that are fluent and false "
            "look good to these checks."
        )
    if subject.values is not None:
        limits.append(
            "Values are about these queries: examples for what the queries lack come out worthless."
        )
    if subject.task == "regression":
        limits.append("A target that lies far off may be right and rare.")
    return limits


def _lead(subject: Subject) -> str:
    """What was judged, in a sentence or two."""
    n, queries = subject.n_examples.number, subject.n_queries.number
    noun = {
        "completion": "prompts with their answers",
        "preference": "prompts with two answers each",
        "question_answering": "questions",
    }.get(subject.task, "rows")
    parts = [f"{n:,} {noun} of {subject.source('corpus')}"]
    if subject.task == "classification":
        names = subject.classes
        listed = ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:6])}, …"
        parts.append(f"in {len(names)} classes ({listed})")
    if subject.task == "regression":
        parts.append("with numbers to predict")
    model = (subject.config.get("model") or {}).get("path")
    # Of a folder the last part says enough.
    shown = Path(model).name if model and Path(model).is_absolute() else model
    by = f", read by {shown}" if shown else ""
    told = f"{queries:,} queries of {subject.source('queries')} stand for what the model is to do."
    return f"{' '.join(parts)}{by}. " + (told if queries else "There are no queries.")


def _judged(subject: Subject, rows: str) -> tuple[str, list[Tile], list[Step]]:
    """Of labels, or of answers of completions: how many look wrong."""
    _, many = NOUNS[subject.task]
    is_label, flag = subject.task == "classification", subject.flag
    order = "label_score" if is_label else "p_wrong DESC"
    counts = subject.ask(
        f"""
        SELECT count(*) FILTER ({flag}) AS flagged, count(*) AS judged,
               sum(p_wrong) AS expected_wrong, sqrt(sum(p_wrong * (1 - p_wrong))) AS deviation
        FROM {rows}"""
    )
    found = counts.first
    flagged, judged, expected = found["flagged"], found["judged"], found["expected_wrong"]
    reach = NORMAL * found["deviation"]
    low, high = max(0.0, expected - reach), min(float(judged), expected + reach)
    wrong = "bad" if subject.task == "completion" else "wrong"
    if flagged:
        headline = f"{flagged:,} of {judged:,} {many} look{'s' if flagged == 1 else ''} {wrong}"
    else:
        headline = f"None of {judged:,} {many} looks {wrong}"
    if is_label and (told := barely_known(subject, rows)) is not None:
        headline = f"{flagged:,} of {judged:,} labels are flagged, which says little: {told}"
    tiles = [
        Tile(
            f"{low:,.0f} to {high:,.0f}",
            f"{many} are expected to be {wrong}, flagged or not (95 % interval around "
            f"{expected:,.0f}, if the probabilities are right; the order is surer)",
            counts,
        ),
    ]
    if flagged:
        tiles.append(_precision(subject, rows, flag, order, wrong))
    planted = _planted(subject, rows) if is_label else None
    if planted is not None:
        tiles.append(planted)
    return headline, tiles, _review_steps(subject, flagged, rows, order)


def _precision(subject: Subject, rows: str, flag: str, order: str, wrong: str) -> Tile:
    """Which part of the flagged rows is expected to be wrong, from the top."""
    first = ",\n       ".join(
        f"avg(p_wrong) FILTER (place <= {depth} AND flagged) AS first_{depth}" for depth in DEPTHS
    )
    asked = subject.ask(
        f"""
        SELECT count(*) FILTER (flagged) AS n, avg(p_wrong) FILTER (flagged) AS all_flagged,
               {first}
        FROM (SELECT p_wrong, {flag} AS flagged,
                     row_number() OVER (ORDER BY {order}, example_id) AS place FROM {rows})"""
    )
    found = asked.first
    depths = [
        f"{share(found[f'first_{depth}'])} of the first {depth}"
        for depth in DEPTHS
        if found["n"] > depth and found[f"first_{depth}"] is not None
    ]
    more = f" ({', '.join(depths)}): read from the top" if depths else ""
    return Tile(
        share(found["all_flagged"]),
        f"of the flagged are expected to be truly {wrong}{more}",
        asked,
    )


def _planted(subject: Subject, rows: str) -> Tile | None:
    """How many planted wrong labels are flagged; None where none was planted."""
    asked = subject.ask(
        f"""
        SELECT count(*) AS planted, count(*) FILTER (is_label_issue) AS found
        FROM (FROM {rows}) JOIN tables.label AS l ON l.id = example_id AND l.role = 'example'
        WHERE l.true_label <> l.label"""
    )
    planted, found = asked.first["planted"], asked.first["found"]
    if not planted:
        return None
    return Tile(
        f"{found:,} of {planted:,}",
        "wrong labels that were planted for the trial are among the flagged",
        asked,
    )


def _review_steps(subject: Subject, flagged: int, rows: str, order: str) -> list[Step]:
    """How to go through what is flagged; or through the first rows where nothing is."""
    is_answer = subject.task == "completion"
    decide = "accept or drop" if is_answer else "accept, fix or drop"
    if subject.task == "preference":
        decide += "; fix lets the two answers change places"
    if flagged:
        top, say = "", "Read them from the most suspicious on, and decide on each"
    else:
        top = " --top 20"
        say = "Nothing must be done. To be sure, read the 20 most suspicious"
    return [
        Step(
            f"{say} ({decide}), in the browser; or in a spreadsheet, for which `assay flag` with "
            f"`--review {subject.review}{top}` begins the same file.",
            f"assay view {subject.path} --review {subject.review}",
            "/review" if flagged else "/rows",
            f"{say} ({decide}):",
        ),
        Step(
            "Correct the corpus by your decisions; only what depends on them is computed again.",
            f"assay apply {subject.path} {subject.review} --out corrected.parquet",
        ),
    ]


def _targets(subject: Subject) -> tuple[str, list[Tile], list[Step]]:
    """Of a regression: how well targets are predicted out of sample."""
    kernel = _out_of_sample(subject)
    worst = (
        "SELECT source_id, text, target, logits[1] AS predicted FROM predictions JOIN examples "
        "ON id = example_id WHERE role = 'example' ORDER BY loss DESC LIMIT 20"
    )
    steps = [
        Step(
            "Read the rows whose targets are farthest from what the other rows say.",
            f'assay sql {subject.path} "{worst}" --out worst.csv',
        )
    ]
    if kernel is None:
        return f"{subject.n_examples.number:,} targets, not judged", [], _add_stage(subject)
    asked = subject.ask(
        f"""
        SELECT sqrt(avg(p.loss)) AS typical_error,
               1 - avg(p.loss) / nullif(var_pop(l.target), 0) AS r_squared
        FROM predictions AS p JOIN tables.label AS l ON l.id = p.id AND l.role = p.role
        WHERE p.role = 'example' AND p.method = {quoted(kernel)} AND p.source = 'kernel'"""
    )
    found = asked.first
    tiles = [
        Tile(
            significant(found["typical_error"]),
            "typical distance of a target from its prediction out of sample "
            "(root of the mean square)",
            asked,
        )
    ]
    if found["r_squared"] is not None:
        tiles.append(
            Tile(
                share(max(0.0, found["r_squared"])),
                "of the variance of targets is predicted by the other rows (R²)",
                asked,
            )
        )
    explained = (
        ""
        if found["r_squared"] is None
        else f": {share(max(0.0, found['r_squared']))} of their variance is predicted"
    )
    return f"{subject.n_examples.number:,} targets{explained}", tiles, steps


def _questions(subject: Subject) -> tuple[str, list[Tile], list[Step]]:
    """Of questions about texts: how sure the model's answers are."""
    headline = f"{subject.n_examples.number:,} questions about texts"
    if subject.instance("answers") is None:
        return headline, [], _add_stage(subject)
    asked = subject.ask(
        "SELECT count(*) AS n, count(*) FILTER (probability < 0.5) AS unsure\n"
        "FROM answers WHERE role = 'query'"
    )
    unsure = asked.first["unsure"]
    tiles = [
        Tile(
            f"{unsure:,} of {asked.first['n']:,}",
            "queries get an answer that the model gives a probability below one half",
            asked,
        )
    ]
    statement = "SELECT question, answer, probability FROM answers ORDER BY probability LIMIT 20"
    read = Step(
        "Read the answers that the model is least sure of.",
        f'assay sql {subject.path} "{statement}"',
    )
    return headline, tiles, [read]


def _not_judged(subject: Subject) -> tuple[str, list[Tile], list[Step]]:
    """Where no stage judged labels or answers."""
    _, many = NOUNS[subject.task]
    return f"{subject.n_examples.number:,} {many}, not judged", [], _add_stage(subject)


def _add_stage(subject: Subject) -> list[Step]:
    stage = {
        "classification": "label_issues",
        "completion": "answer_issues",
        "regression": "kernel_regression",
        "question_answering": "answer_span",
        "preference": "preference_issues",
    }[subject.task]
    return [
        Step(
            f"To judge them, add `{stage}: {{}}` under `stages:` of the configuration, and run "
            "again: what is there already is kept.",
            "",
        )
    ]


def _accuracy(subject: Subject) -> list[Tile]:
    """How often the predictions of classes are right, on queries or else out of sample."""
    if subject.task != "classification" or "predictions" not in subject.views:
        return []
    asked = subject.ask(
        """
        SELECT p.source, avg((p.predicted = l.label)::INT) AS accuracy, count(*) AS n
        FROM predictions AS p JOIN tables.label AS l ON l.id = p.id AND l.role = p.role
        WHERE p.role = 'query' AND l.label IS NOT NULL AND p.predicted IS NOT NULL
        GROUP BY ALL ORDER BY accuracy DESC"""
    )
    if not asked.rows:
        return []
    best, *others = asked.rows
    also = "".join(f"; the {row['source']}: {share(row['accuracy'])}" for row in others)
    return [
        Tile(
            share(best["accuracy"]),
            f"of the {best['n']:,} labelled queries are predicted right by the {best['source']}"
            f"{also}",
            asked,
        )
    ]


def _trial(subject: Subject) -> list[Tile]:
    """What a short training on chosen rows gave, beside random ones."""
    trial = subject.instance("selection_trial")
    if trial is None:
        return []
    asked = subject.ask(of_gain(trial.method))
    gain = asked.first["gain"]
    unit = "of the loss of DPO" if subject.task == "preference" else "nats a token"
    low, high = interval(gain, asked.first["stderr"], asked.first["n"])
    told = "more than random rows" if low > 0 else "less than random rows"
    if low <= 0 <= high:
        told = "no more than random rows, as far as these queries tell"
    return [
        Tile(
            f"{gain:+.3f}",
            f"{unit} is what the rows chosen for the queries train {told}, in short "
            f"fine-tunings on both (95 % interval {low:+.3f} to {high:+.3f}); no query judges rows "
            "that it chose",
            asked,
        )
    ]


def _out_of_sample(subject: Subject) -> str | None:
    """The instance whose predictions of examples are leave-one-out."""
    if "predictions" not in subject.views:
        return None
    rows: list[dict[str, Any]] = subject.ask(
        "SELECT DISTINCT method FROM predictions WHERE source = 'kernel' AND role = 'example' "
        "ORDER BY method"
    ).rows
    return str(rows[0]["method"]) if rows else None
