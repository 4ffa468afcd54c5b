"""What commands print on stdout: tables and lines for people, or JSON for programs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click

from pipeline.agreement import barely_knows
from pipeline.answer_trust import distrust
from pipeline.answers_told import (
    about_answers,
    about_orders,
    about_other_answers,
    about_other_orders,
    of_all,
)
from pipeline.chosen_rows import how, is_worse_than_random
from pipeline.copied import command, shell_path
from pipeline.corpus_told import about_corpus
from pipeline.errors import RunError, told
from pipeline.main_results import LIKELIER, WORTH_A_LOOK, summarize
from pipeline.progress import count_text
from pipeline.terminal import TEXTS, finite, show, table
from pipeline.trials import SAID, verdict


def exit_code(error: BaseException) -> int | None:
    """The command's exit code for an error: 1 for one with advice; None for a defect of assay."""
    # Here, not above: `assay --help` should not pay for pyarrow.
    from stages.stage import StageError
    from storage.schema import StorageError

    is_told = isinstance(error, RunError | StageError | StorageError) or told(error) is not None
    return 1 if is_told else None


def print_rows(rows: Any, is_json: bool, without: str | None = None) -> None:
    """Prints a DuckDB relation, as a table or as JSON; `without` in place of an empty table."""
    from storage.catalog import fetch  # `assay --help` should not pay for DuckDB

    names, cells = list(rows.columns), fetch(rows)
    if is_json:
        found = [dict(zip(names, finite(row), strict=True)) for row in cells]
        click.echo(json.dumps(found, default=str))
        return
    show(table(names, cells) if cells or without is None else without)


def print_status(status: Mapping[str, Any], is_json: bool) -> None:
    """Prints the shards of every table of a run: how many are written, of how many."""
    if is_json:
        click.echo(json.dumps(status))
        return
    rows = [
        (t["instance"], t["table"], f"{t['done']}/{t['shards']}", "yes" if t["is_whole"] else "no")
        for t in status["tables"]
    ]
    show(table(["stage", "table", "shards written", "complete"], rows))
    show(f"run      {status['run_id']}\nstore    {status['store']}")
    rebuilt = " (rebuilt)" if status["is_catalog_rebuilt"] else ""
    show(f"catalog  {status['catalog']}{rebuilt}")
    if status["driver"]:
        at_work = status["driver"]
        show(f"driver   process {at_work['pid']} on {at_work['host']}, since {at_work['since']}")


NOTHING_LEFT = "nothing is left over"


def print_leftovers(found: Mapping[str, Any], is_json: bool) -> None:
    """Prints what is left over: a row for each file, and how many bytes they are."""
    if is_json:
        click.echo(json.dumps(found))
        return
    for item in found["items"]:
        show(f"{item['kind']:<9} {item['bytes']:>15,}  {item['path']}")
    count = f"{len(found['items'])} leftovers, {found['bytes']:,} bytes"
    show((count + (" removed" if found["is_removed"] else "")) if found["items"] else NOTHING_LEFT)
    if found["runs"]:
        show(f"kept is what these runs need: {', '.join(found['runs'])}")
    for note in found["notes"]:
        show(note)
    if found["items"] and not found["is_removed"]:
        show("Nothing was removed; --remove does.")


def print_verified(found: Mapping[str, Any], is_json: bool) -> None:
    """Prints the damaged files of a run, or that there are none."""
    if is_json:
        click.echo(json.dumps(found))
        return
    damaged = found["damaged"]
    if not damaged:
        show(f"{found['n_files']} files of {found['run_id']} are as they were written")
        return
    done = Counter(row["done"] for row in damaged if row["done"])
    names = ["file", "found", *(["done"] if done else [])]
    show(table(names, [[row[name] for name in names] for row in damaged]))
    n_gone = sum(row["found"] == "gone" for row in damaged)
    said = f"{len(damaged)} of {found['n_files']} files are damaged or gone"
    if done:
        said += ": " + ", ".join(f"{n} {what}" for what, n in sorted(done.items()))
    again = f"`{command('run', found['run'] + '/config.yaml')}` computes"
    if done or n_gone == len(damaged):
        show(f"{said}. {again} what is missing again.")
    else:
        verify = f"`{command('verify', found['run'], '--repair')}`"
        show(f"{said}. {verify} removes what is damaged, and {again} it again.")


MOST_CLASSES = 20
"""Most classes whose shares are shown."""


def print_evaluation(evaluation: Mapping[str, Any], is_json: bool) -> None:
    """Prints the rows of a metric, its fields and what it was computed from.

    The values that the rows are means of are in the JSON alone.
    """
    if is_json:
        click.echo(json.dumps(evaluation))
        return
    rows = evaluation["rows"]
    show(table(list(rows[0]), [list(row.values()) for row in rows]))
    for name in ("fields", "facts"):
        show(f"\n{name}: " + ", ".join(f"{k} {_short(v)}" for k, v in evaluation[name].items()))


def print_expected(expected: Mapping[str, Any]) -> None:
    """Prints what training on selected rows is expected to give, beside random rows and all."""
    show(f"{expected['n_rows']} of {expected['n_examples']} rows are kept, {how(expected['by'])}.")
    n_flagged, n_repeated = expected["n_flagged"], expected["n_repeated"]
    left = [count_text(n_flagged, "flagged row")] if n_flagged else []
    if n_repeated:
        left.append(f"{count_text(n_repeated, 'near duplicate')} of others")
    if left:
        show(f"Not chosen among: {' and '.join(left)}. With --keep-flagged they are.")
    if expected["n_unjudged"]:
        show(
            f"{count_text(expected['n_unjudged'], 'row')} cannot be chosen: {expected['by']} has "
            "no number of them, as where an answer is cut off."
        )
    for warning in expected["warnings"]:
        show(warning)
    classes = expected["classes"][:MOST_CLASSES]
    if len(classes) > 1:
        names = [expected["per"] or "class", "share of all", "share of kept"]
        show(
            table(names, [[c["class"], f"{c['before']:.1%}", f"{c['kept']:.1%}"] for c in classes])
        )
    fewer = [c for c in expected["classes"] if c["kept"] < c["before"] / 2]
    if len(classes) > 1 and fewer:
        lost = [f"{c['class']} ({c['before']:.1%} to {c['kept']:.1%})" for c in fewer]
        others = [f"{len(lost) - MOST_CLASSES} others"] if len(lost) > MOST_CLASSES else []
        shares = ", ".join([*lost[:MOST_CLASSES], *others])
        show(
            f"Fewer than half of their share are kept of {shares}: what is trained on these rows "
            "will know them less. --per-class, the default, keeps the shares."
        )
    for trial in expected["trials"]:
        _print_trial(trial)
    if not expected["trials"]:
        _print_forecast(expected)
    if expected["trials"] and expected["per"] is not None:
        show(
            f"Those rows were chosen without regard to {expected['per']}, and say little of these."
        )
    if is_worse_than_random(expected):
        told = f"Rows chosen by {expected['by']} serve the queries worse than random ones"
        other = "; query_relevance: {} would choose by the queries"
        is_blind = expected["by"] == "answer_issues"
        show(f"{told}: keep all of them, or random ones{other if is_blind else ''}.")


def _print_forecast(expected: Mapping[str, Any]) -> None:
    """Prints what the surrogate says, or why it says nothing."""
    if expected["why_not"]:
        show(f"No forecast of what they train: {expected['why_not'].rstrip('.')}.")
        return
    rows = expected["rows"]
    utilities = [name.removesuffix("_sd") for name in rows[0] if name.endswith("_sd")]
    called = {"all": "all rows", "random": "random rows"}
    show("\nThe surrogate trained on them, judged on queries that had no say (higher is better):")
    show(
        table(
            ["trained on", *utilities],
            [
                [called.get(row["by"], f"kept, by {expected['by']}")]
                + [_with_interval(row, name) for name in utilities]
                for row in rows
            ],
        )
    )
    kept = next(row for row in rows if row["by"] not in called)
    for name in utilities:
        low, high = (kept[f"{name}_over_random_{end}"] for end in ("low", "high"))
        told = "better than random rows" if low > 0 else "worse than random rows"
        if low <= 0 <= high:
            told = "no better than random rows, as far as these queries tell"
        gain = kept[f"{name}_over_random"]
        show(f"{name}: {told} ({gain:+.3g}, 95 % interval {low:+.3g} to {high:+.3g}).")


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    """A number of the metric `selection` with its 95 % interval."""
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"


def print_summary(run: Any, is_json: bool) -> None:
    """Prints the main results of a finished run: suspicious labels, best and worst examples."""
    summary = summarize(run)
    if is_json:
        click.echo(json.dumps(summary, default=str))
        return
    here = summary["run"]
    for line in about_corpus(summary["corpus"]) if summary["corpus"] else ():
        show(line)
    if summary["suspicious"]:
        show("\nMost suspicious labels (score from 0 to 1, low: probably wrong)")
        names = [*_content(summary["suspicious"]), "given", "suggested", "score"]
        if summary["planted"]:
            names.append("planted")
        show(table(names, [[row[n] for n in names] for row in summary["suspicious"]]))
    if summary["flagged"] is not None:
        show(_about_flags(summary))
    for pair in summary["pairs"]:
        show(
            f"{pair['expected']:.0f} labels {pair['given']!r} are expected to be rows of class "
            f"{pair['class']!r}."
        )
    if summary["planted"]:
        planted = summary["planted"]
        show(
            f"Of {planted['planted']} planted wrong labels, {planted['flagged']} are flagged; "
            f"{planted['in_top']} are among the {len(summary['suspicious'])} above."
        )
    if summary["answers"]:
        names = ["prompt", "answer"]
        _print_likely(here, "answers", "an answer is bad", names, summary["answers"])
    if summary["bad_answers"] is not None:
        show(about_answers(here, summary["bad_answers"], summary["judged"]))
    if warning := distrust(summary["told_answers"]):
        show(warning)
    if summary["other_answers"]:
        show(about_other_answers(here, summary["other_answers"]))
    if summary["other_orders"]:
        show(about_other_orders(here, summary["other_orders"]))
    for trial in summary["trials"]:
        _print_trial(trial)
    if summary["pairs_of_answers"]:
        names = ["prompt", "chosen", "rejected"]
        meaning = "rejected is the better answer"
        _print_likely(here, "pairs", meaning, names, summary["pairs_of_answers"])
    if summary["wrong_orders"] is not None:
        show(about_orders(here, summary["wrong_orders"], summary["judged"]))
    for key, effect in (("helpful", "above 0: improves"), ("harmful", "below 0: worsens")):
        if summary[key]:
            rows, utility = summary[key], summary["utility"]
            of_each = " of each class" if rows[0].get("label") is not None else ""
            show(
                f"\nMost {key} examples{of_each} (value {effect} predictions of the queries, "
                f"by {utility})"
            )
            names = [*_content(rows), "value", "stderr", "p_helpful"]
            show(table(names, [[row[n] for n in names] for row in rows]))
    if summary["of_classes"] is not None:
        show(
            f"{summary['of_classes']:.0%} of the variance of values lies between classes, which "
            "says which class the queries need more of, not which row."
        )
    for line in summary["accuracy"]:
        show(f"Accuracy of the {line['source']} on the queries: {line['accuracy']:.3f}")
    for line in summary["mismatch"]:
        rows = {"example": "examples", "query": "queries"}[line["role"]]
        show(
            f"{line['method']}: the model is right on {line['right']} of {line['rows']} labelled "
            f"{rows}, where chance alone would be {line['chance']:.0f}: its outputs are probably "
            "not the classes that they are taken for. Compare id2label in the model's config.json, "
            "or label_words, with the corpus's classes; `classes:` of the corpus lists them in the "
            "order of the outputs."
        )
    for line in summary["regression"]:
        share = "" if line["r_squared"] is None else f"R^2 {line['r_squared']:.3f}, "
        show(
            f"Error of the {line['source']} on the queries: {share}"
            f"mean squared error {line['mean_squared_error']:.4g}"
        )
    if summary["corpus"] and summary["corpus"]["keep"]:
        keep = f"{100 * summary['corpus']['keep']:.3g}%"
        show(
            f"Rows to train on: {command('select', here, '--keep', keep, '--out', 'chosen.jsonl')}"
        )
    show(f"\nCatalog: {shell_path(summary['catalog'])}   Ask it in SQL, for example:")
    for statement in summary["try"]:
        quoted = f'"{statement}"'
        show(f"  {command('sql', summary['run'], quoted)}")


def _content(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that tell which rows these are: texts and labels, or ids where there are none."""
    names = [name for name in (*TEXTS, "label", "target") if name in rows[0]]
    has_texts = any(row[name] for row in rows for name in names if name in TEXTS)
    return names if has_texts else ["source_id", *(n for n in names if n not in TEXTS)]


def _print_likely(
    run: str, what: str, meaning: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Prints those of the most suspicious answers, or pairs, that are worth a look."""
    worth = [row for row in rows if row["p_wrong"] >= WORTH_A_LOOK]
    if worth:
        show(f"\nMost suspicious {what} (p_wrong: probability that {meaning})")
        heads = [*names, "reason", "p_wrong"]
        show(table(heads, [[row[name] for name in heads] for row in worth]))
    if len(worth) < len(rows):
        show(
            f"{'All others' if worth else f'All {what}'} have a p_wrong below {WORTH_A_LOOK:g}. "
            f"{command('flag', run, '--top', str(len(rows)))} lists the likeliest."
        )


def _print_trial(trial: Mapping[str, Any]) -> None:
    """Prints what short trainings on chosen rows gave, beside other rows."""
    rows = [
        [
            SAID[row["trained_on"]].format(by=trial["by"]),
            round(row["n_rows"]),
            round(row["n_tokens"]),
            f"{row['loss']:.3f} ± {row['stderr']:.3f}",
            "" if row["spread"] is None else f"{row['spread']:.3f}",
            *([] if row["accuracy"] is None else [f"{row['accuracy']:.2f}"]),
        ]
        for row in trial["rows"]
    ]
    show(
        f"\nThe model fine-tuned for {trial['steps']} steps of {trial['batch_size']} rows, with "
        f"{trial['keep']:.0%} of the rows chosen; no query judges rows that it chose:"
    )
    names = ["trained on", "rows", "tokens", "loss of the queries", "sd over random sets"]
    if any(row["accuracy"] is not None for row in trial["rows"]):
        names.append("orders learned")
    show(table(names, rows))
    show(verdict(trial))


def _about_flags(summary: Mapping[str, Any]) -> str:
    """How many labels are flagged, and how much weight the number has."""
    flagged, n, doubtful = (summary[name] for name in ("flagged", "examples", "doubtful"))
    if summary["agreement"] is None:
        return f"{of_all(flagged, n, 'labels')} flagged as probably wrong."
    agreement = f"out-of-sample predictions agree with {summary['agreement']:.0%} of the labels"
    least = summary["most_frequent"]
    if least is not None and barely_knows(summary["agreement"], least):
        more = "no more" if summary["agreement"] <= least else "not much more"
        agreement += (
            f", {more} than the {least:.0%} that have the most frequent class, so that flags say "
            "little"
        )
    if flagged:
        return (
            f"{of_all(flagged, n, 'labels')} flagged, {summary['expected_precision']:.0%} of these "
            f"expected to be wrong; {agreement}. The order is surer than these numbers: "
            f"{command('flag', summary['run'], '--top', '100')} reads on."
        )
    look = (
        f"{count_text(doubtful, 'label is', 'labels are')} worth a look all the same, as "
        f"another class is {LIKELIER} times as likely: "
        f"{command('flag', summary['run'], '--top', str(doubtful))}."
    )
    return (
        f"None of {n} labels is flagged: {agreement}, and of the others none is surely wrong "
        f"rather than hard to predict. {look if doubtful else ''}".rstrip()
    )


def _short(value: Any) -> str:
    """A field or fact on one line, with numbers rounded."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
