from typing import Any

import pytest

from pipeline import main_results, terminal
from pipeline import on_terminal as report
from pipeline.chosen_rows import is_worse_than_random
from pipeline.errors import TaskError
from stages.stage import DataError
from storage.schema import MissingError


@pytest.mark.parametrize("error", [TaskError("x"), DataError("x"), MissingError("x")])
def test_failures_that_rooms_explain_end_with_one(error):
    assert report.exit_code(error) == 1


def test_defects_keep_their_traceback():
    assert report.exit_code(KeyError("x")) is None


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (999, "999 B"), (1500, "2 kB"), (2.5e9, "2 GB"), (7e15, "7000 TB")]
)
def test_bytes_are_rounded_for_people(count, text):
    assert terminal.bytes_text(count) == text


def test_cells_round_numbers_and_cut_long_texts():
    assert terminal.cell("value", 0.00012345) == "0.00012"
    assert terminal.cell("p_helpful", 1.0) == "1.0000"
    assert terminal.cell("mean", 0.00012345) == "0.0001234"
    assert terminal.cell("value", None) == ""
    assert terminal.cell("planted", True) == "yes"
    assert len(terminal.cell("text", "x" * 500)) == terminal.TEXT_WIDTH


def test_no_column_is_lost_off_a_terminal(capsys):
    names = [f"column_{i}" for i in range(30)]
    terminal.show(terminal.table(names, [["x" * 200] * 30]))
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert shown.count("x" * (terminal.TEXT_WIDTH - 1) + "…") == 30


def test_statements_to_try_use_only_views_that_are_there():
    assert len(main_results._statements({"examples", "runs", "rejected", "shapley"})) == 3
    of_values = main_results._statements({"shapley"}, "regression")
    assert of_values == [f"SELECT {main_results.VALUED['regression']} ORDER BY value DESC LIMIT 20"]
    assert main_results._statements({"examples"}) == [
        "SELECT label_name, count(*) FROM examples GROUP BY ALL"
    ]
    (of_vectors,) = main_results._statements({"label_issues"}, has_texts=False)
    assert of_vectors.startswith("SELECT source_id, given_label")


SUMMARY = {
    **dict.fromkeys(("suspicious", "helpful", "harmful", "accuracy", "mismatch", "regression"), ()),
    "examples": 200,
    "flagged": 0,
    "doubtful": 7,
    "agreement": 0.68,
    "most_frequent": 0.5,
    "expected_precision": 0.42,
    "answers": (),
    "bad_answers": None,
    "told_answers": {},
    "corpus": None,
    "other_answers": None,
    "other_orders": None,
    "pairs_of_answers": (),
    "wrong_orders": None,
    "trials": [],
    "pairs": [{"class": "good", "given": "bad", "expected": 12.4}],
    "planted": None,
    "of_classes": None,
    "catalog": "catalog",
    "run": "run",
    "try": (),
}


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (
            {},
            [
                "None of 200 labels is flagged",
                "agree with 68% of the labels",
                "assay flag run --top 7.",
            ],
        ),
        ({"doubtful": 0}, ["None of 200 labels is flagged", "rather than hard to predict. 12"]),
        (
            {"flagged": 3},
            ["3 of 200 labels are flagged, 42% of these expected to be wrong; out-of-sample"],
        ),
        ({"flagged": 3}, ["agree with 68%", "--top 100 reads on"]),
        ({"flagged": 3, "agreement": None}, ["3 of 200 labels are flagged as probably wrong. 12"]),
        ({"flagged": 3, "most_frequent": 0.65}, ["not much more than the 65%", "say little"]),
        ({"flagged": 3, "most_frequent": 0.7}, ["68% of the labels, no more than the 70%"]),
        ({}, ["12 labels 'bad' are expected to be rows of class 'good'."]),
    ],
)
def test_a_number_of_flags_is_told_with_its_weight(
    known: dict[str, Any], told: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.on_terminal.summarize", lambda run: {**SUMMARY, **known})
    report.print_summary(None, is_json=False)
    said = " ".join(capsys.readouterr().out.split())
    for part in told:
        assert part in said


def test_answers_that_are_surely_right_are_not_listed(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"prompt": "p", "answer": "a", "reason": "", "chosen": "good", "rejected": "bad"}
    rows = [{**row, "p_wrong": p} for p in (0.8, 0.1, 0.01)]

    def said(**known: Any) -> list[str]:
        monkeypatch.setattr("pipeline.on_terminal.summarize", lambda run: {**SUMMARY, **known})
        report.print_summary(None, is_json=False)
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    lines = said(answers=rows)
    assert [line for line in lines if line.startswith("p a")] == ["p a 0.8", "p a 0.1"]
    told = "All others have a p_wrong below 0.1. assay flag run --top 3 lists the likeliest."
    assert told in lines
    lines = said(pairs_of_answers=rows[2:])
    assert (
        "All pairs have a p_wrong below 0.1. assay flag run --top 1 lists the likeliest." in lines
    )
    assert not any(line.startswith("p good") for line in lines)
    assert not any("All others" in line for line in said(answers=rows[:2]))


VALUE = {"example_id": 1, "source_id": "row-1", "value": 0.5, "stderr": 0.1, "p_helpful": 0.9}
FLAG = {"given": "a", "suggested": "b", "score": 3e-6, "planted": False}


@pytest.mark.parametrize(
    ("row", "heading", "line"),
    [
        ({"text": "good", "label": "a"}, "text label", "good a"),
        ({"text": "good", "target": 1.5}, "text target", "good 1.5"),
        ({"text": "one", "text_b": "two", "label": "a"}, "text text_b label", "one two a"),
        ({"prompt": "why", "answer": "so"}, "prompt answer", "why so"),
        ({"text": None, "label": "a"}, "source_id label", "row-1 a"),
    ],
)
def test_examples_are_told_by_what_they_have(
    row: dict[str, Any], heading: str, line: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regression has targets, chats prompts and answers, and rows of vectors ids."""
    known = {**SUMMARY, "utility": "loss", "helpful": [{**VALUE, **row}]}
    if "label" in row:
        known["suspicious"] = [{**VALUE, **FLAG, **row}]
        del known["suspicious"][0]["label"]
    monkeypatch.setattr("pipeline.on_terminal.summarize", lambda run: known)
    report.print_summary(None, is_json=False)
    lines = [" ".join(text.split()) for text in capsys.readouterr().out.splitlines()]
    assert f"{heading} value stderr p_helpful" in lines
    assert f"{line} 0.50000 0.10000 0.9000" in lines
    assert any("of each class" in text for text in lines) == ("label" in row)
    if "label" in row:
        assert f"{line.removesuffix(' a')} a b 3.0e-06" in lines


@pytest.mark.parametrize("n_classes", [3, 30, 60])
@pytest.mark.parametrize("is_fair", [True, False])
def test_a_class_that_loses_more_than_half_of_its_share_is_told(
    n_classes: int, is_fair: bool, capsys: Any
) -> None:
    """Also one that is too rare to stand in the table."""
    shares = [{"class": f"c{n}", "before": 1 / n_classes} for n in range(n_classes)]
    for row in shares:
        row["kept"] = row["before"] * (0.6 if is_fair else 0.4)
    shares[0]["kept"] = 1 - sum(row["kept"] for row in shares[1:])
    expected = dict.fromkeys(("n_flagged", "n_repeated", "n_unjudged", "n_rows", "n_examples"), 0)
    expected |= {"by": "coreset", "per": None, "warnings": [], "trials": [], "rows": []}
    report.print_expected({**expected, "classes": shares, "why_not": "all rows are kept"})
    said = capsys.readouterr().out
    assert ("Fewer than half of their share are kept of c1 (" in said) == (not is_fair)
    last = f"c{n_classes - 1} (" if n_classes <= 21 else f"{n_classes - 21} others"
    assert (f"{last}" in said) == (not is_fair)


@pytest.mark.parametrize(
    ("gains", "is_worse", "is_advised"),
    [
        ({"accuracy": -0.1}, True, True),
        ({"accuracy": 0.0}, False, False),
        ({"accuracy": 0.1}, False, False),
        ({"accuracy": 0.0, "margin": -0.1}, True, True),
        ({"accuracy": 0.1, "margin": -0.1}, True, False),
    ],
)
def test_a_choice_that_is_worse_than_chance_is_advised_against(
    gains: dict[str, float], is_worse: bool, is_advised: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, over = {}, {}
    for name, gain in gains.items():
        numbers |= {name: 0.5, f"{name}_low": 0.4, f"{name}_high": 0.6, f"{name}_sd": 0.0}
        name = f"{name}_over_random"
        over |= {name: gain, f"{name}_low": gain - 0.05, f"{name}_high": gain + 0.05}
    expected = {
        **dict.fromkeys(("n_flagged", "n_repeated", "n_unjudged"), 0),
        **dict.fromkeys(("warnings", "classes", "trials"), ()),
        "n_rows": 20,
        "n_examples": 100,
        "by": "coreset",
        "per": None,
        "why_not": "",
        "rows": [{"by": by, **numbers, **over} for by in ("coreset", "random", "all")],
    }
    report.print_expected(expected)
    said = capsys.readouterr().out
    assert ("keep all of them, or random ones" in said) == is_advised
    assert ("worse than random rows" in said) == is_worse


@pytest.mark.parametrize(
    ("high", "n_rows", "is_worse"),
    [
        (-0.01, 20, True),
        (-0.01, 39, True),
        (-0.01, 80, False),
        (-0.01, 5, False),
        (0.01, 20, False),
    ],
)
def test_a_trial_of_about_as_many_rows_tells_that_chance_is_better(
    high: float, n_rows: int, is_worse: bool
) -> None:
    trial = {"gain_high": high, "keep": 0.2}
    expected = {"rows": [], "trials": [trial], "n_rows": n_rows, "n_examples": 100, "per": None}
    assert is_worse_than_random(expected) == is_worse
    assert not is_worse_than_random({**expected, "per": "source"})
