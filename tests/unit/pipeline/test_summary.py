import pytest

from pipeline import summary as report
from pipeline import terminal
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
    assert len(report._statements({"examples", "runs", "rejected", "shapley"})) == 3
    assert report._statements({"examples"}) == [
        "SELECT label_name, count(*) FROM examples GROUP BY ALL"
    ]
