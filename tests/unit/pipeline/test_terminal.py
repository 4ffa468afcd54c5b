"""What stands on a screen for texts that would rule it."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.terminal import cell, from_end, narrow, show, table

HOSTILE = "a\x1b[2Jb\rc\nd\te\x07f\x9bg\u202eh\u2066i\x7fj"


def is_harmless(said: str) -> bool:
    return not any(
        ord(sign) < 32 or 0x7F <= ord(sign) < 0xA0 or sign in "\u202e\u2066" for sign in said
    )


def test_controls_of_a_text_are_shown_and_never_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert cell("text", HOSTILE) == "a␛[2Jbc↵d␉e␇f\\x9bg\\u202eh\\u2066i␡j"
    show(table([HOSTILE], [[HOSTILE]]))
    show(HOSTILE)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 5  # A heading, the cell, two lines of the text, and the end.
    assert all(map(is_harmless, lines))


def test_a_plain_text_is_shown_as_it_is() -> None:
    plain = "naïve 文字 🙂 'quoted' [bold]"
    assert cell("text", plain) == plain


FLAGS = {
    "example_id": 123456,
    "source_id": "0e2f6c1a-5b1d-4c58-9a55-1f2d3c4b5a69",
    "text": "surprisingly , the film is a hilarious adventure and i shamelessly enjoyed it",
    "given_label": "negative",
    "suggested_label": "somewhat positive",
    "label_score": 0.0009,
    "is_label_issue": True,
    "method": "label_issues",
    "true_label": "positive",
}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
def test_no_column_is_lost_without_a_word(width: int) -> None:
    shown = table(list(FLAGS), [list(FLAGS.values())] * 2)
    left_out = narrow(shown, width)
    # First the number that a row has beside its own id, then what is the same of all rows, and then
    # the last columns.
    needless = ["example_id", "is_label_issue", "method"]
    needed = [name for name in FLAGS if name not in needless]
    gone = [name for name in left_out if name not in needless]
    assert gone == needed[len(needed) - len(gone) :]
    assert [name for name in left_out if name in needless] in (needless, ["example_id"], [])
    assert not gone or set(needless) <= set(left_out)
    kept = {name: value for name, value in FLAGS.items() if name not in left_out}
    buffer = io.StringIO()
    Console(file=buffer, width=width, force_terminal=True, color_system=None).print(shown)
    heading, *rows = buffer.getvalue().splitlines()
    assert len(rows) == 2
    assert len(heading) <= width
    # Every column that is left has a heading and a cell, if only their beginnings.
    place = -1
    for name, value in kept.items():
        place = f" {heading}".index(f" {name[:4]}", place + 1)
        assert rows[0][place:].startswith(cell(name, value)[:4])
    if width >= 60:
        assert {"suggested_label", "label_score"} <= kept.keys()
    if width >= 120:
        assert not gone
        assert rows[0].split("surprisingly")[1].index("…") >= 12
    if width >= 200:
        assert not left_out
        assert "somewhat positive" in rows[0]


@pytest.mark.parametrize("width", [20, 40, 60, 80])
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_table_of_narrow_cells_fits(width: int, is_empty: bool) -> None:
    """Numbers whose beginnings are alike are not names that the width makes alike."""
    names = ["id", "role", "rank", "n", "of"]
    rows = [[20 + at % 2, "query", at, at, at] for at in range(3 * (not is_empty))]
    shown = table(names, rows)
    left_out = narrow(shown, width)
    assert bool(left_out) == (width == 20)
    assert [str(column.header) for column in shown.columns] == names[: 5 - len(left_out)]
    buffer = io.StringIO()
    Console(file=buffer, width=width, force_terminal=True, color_system=None).print(shown)
    assert all(len(line) <= width for line in buffer.getvalue().splitlines())


def test_a_name_tells_more_than_the_number_of_its_class() -> None:
    names = ["source_id", "text", "label", "label_name", "value", "rank"]
    rows = [[f"row-{at}", "a" * 60, at, f"class {at}", 0.5, at] for at in range(3)]
    assert narrow(table(names, rows), 60) == ["label"]
    assert narrow(table(names, rows), 120) == []


def test_small_numbers_are_not_shown_as_none() -> None:
    assert cell("label_score", 3.2e-6) == "3.2e-06"
    assert cell("value", -1e-7) == "-1.0e-07"
    assert cell("stderr", 0.0) == "0.00000"
    assert cell("p_helpful", 0.00012) == "0.0001"


def test_wide_letters_are_cut_by_their_width(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["不思議な文章" * 20, "🙂" * 70, "a" * 200, "e\u0301" * 59]
    assert [cell("text", text)[-1] for text in texts] == ["…", "…", "…", "\u0301"]
    assert all(cell_len(cell("text", text)) <= 60 for text in texts)
    show(table(["text", "label"], [[text, "positive"] for text in texts]))
    lines = capsys.readouterr().out.splitlines()
    assert {cell_len(line[: line.index("label")]) for line in lines[:1]} == {62}
    assert {cell_len(line[: line.index("positive")]) for line in lines[1:]} == {62}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_tables_keep_what_tells_rows_apart(width: int) -> None:
    """Headings give way before names, and empty columns before others."""
    names = ["stage", "tasks to do", "reused", "forward rows", "backward rows", "FLOPs", "written"]
    names += ["memory/task", "time", "because", "how"]
    stages = ["label_noise", "label_issues", "kernel_regression", "kernel_representer"]
    rows = [[stage, 0, 1, 0, 0, "", "", "", "0.0 s", "", ""] for stage in stages]
    shown = table(names, rows)
    assert set(narrow(shown, width)) <= {"FLOPs", "written", "memory/task", "because", "how"}
    buffer = io.StringIO()
    Console(file=buffer, width=width, force_terminal=True, color_system=None).print(shown)
    lines = buffer.getvalue().splitlines()
    shown_names = [line.split()[0].removesuffix("…") for line in lines[1:]]
    assert all(map(str.startswith, stages, shown_names))
    assert len(set(shown_names)) == len(stages)
    assert max(len(stage) - len(name) for stage, name in zip(stages, shown_names, strict=True)) < 8
    assert max(map(len, lines)) <= width


def test_ids_and_names_outlast_numbers() -> None:
    shown = table(
        ["text", "label", "doubts", "source_id"], [["a" * 60, "b" * 30, "c" * 30, "id-1"]]
    )
    assert narrow(shown, 30) == ["doubts"]
    cures = ["without the 20 worst of tracin", "without the 20 worst of tracin, of each label"]
    numbers = ["0.490 ± 0.057"] * 4
    shown = table(["examples", *"abcd"], [[cure, *numbers] for cure in cures])
    assert narrow(shown, 80) == ["d"]
    buffer = io.StringIO()
    Console(file=buffer, width=80, force_terminal=True, color_system=None).print(shown)
    assert len({line[:40] for line in buffer.getvalue().splitlines()}) == 3


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_of_prompts_the_end_is_shown_and_of_answers_what_differs(width: int) -> None:
    prompt = f"{'The same long instruction. ' * 9}What is {{}}?"
    alike = "It is a word that people use for "
    rows = [
        [prompt.format("a plum"), f"{alike}a fruit", f"{alike}a stone"],
        [prompt.format("an oak"), "A tree", "A tool"],
    ]
    shown = table(["prompt", "chosen", "rejected"], rows)
    assert narrow(shown, width) == []
    buffer = io.StringIO()
    Console(file=buffer, width=width, force_terminal=True, color_system=None).print(shown)
    _, plum, oak = buffer.getvalue().splitlines()
    assert "a plum?" in plum
    assert "an oak?" in oak
    assert all(part in oak for part in ("A tree", "A tool"))
    if width >= 80:
        assert "a fruit" in plum
        assert "a stone" in plum


@pytest.mark.parametrize("text", ["a" * 90, "不思議な文章" * 20, "short", "e\u0301" * 90])
def test_the_end_of_a_text_fits(text: str) -> None:
    shown = from_end(text, 40)
    assert cell_len(shown) <= 40
    assert text.endswith(shown.removeprefix("…"))
    assert cell_len(shown) >= min(38, cell_len(text))


def test_sentences_break_between_words_and_commands_do_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    command = f"  assay sql runs/mine {'SELECT one, two, three' * 3}"
    path = f"kept in /{'folder/' * 9}file"
    sentence = "Read from the most suspicious label on, as far as you like."
    for line in (sentence, command, path):
        show(line)
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [command, path]
    assert " ".join(line.rstrip() for line in said[:-2]) == sentence
    assert all(len(line) <= 30 for line in said[:-2])
