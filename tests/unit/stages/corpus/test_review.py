"""Labels that are changed on the way in: flips, and the corrections of a review."""

from pathlib import Path

import pytest
from source_rows import by_source_id, csv, jsonl, reviews
from whole_corpus import read

from stages.corpus.review import read_cells
from stages.corpus.source import FlipLabels, Source
from stages.stage import DataError


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_corrections_fix_and_drop_after_the_flip(tmp_path: Path, ending: str) -> None:
    rows = [
        {"source_id": "r0", "decision": "fix", "new_label": "1"},
        {"source_id": "r1", "decision": "drop", "new_label": None},
        {"source_id": "r2", "decision": "Accept", "new_label": None},
        {"source_id": "r3", "decision": None, "new_label": "1"},
    ]
    review = tmp_path / f"review.{ending}"
    if ending == "jsonl":
        jsonl(review, rows)
    else:
        lines = [",".join(value or "" for value in row.values()) for row in rows]
        csv(review, "\n".join(["source_id,decision,new_label", *lines]))
    path = jsonl(tmp_path / "a.jsonl", reviews())
    plain = read(Source(path, id="id"), "example")
    fixed = read(Source(path, id="id", corrections=(str(review),)), "example")
    assert by_source_id(fixed, "label") == by_source_id(plain, "label") | {"r0": 1}
    assert [k for k, dropped in by_source_id(fixed, "is_dropped").items() if dropped] == ["r1"]
    assert fixed.rows["id"].equals(plain.rows["id"])
    flip = Source(path, id="id", corrections=(str(review),), flip_labels=FlipLabels(0.9))
    flipped = read(flip, "example")
    assert by_source_id(flipped, "label")["r0"] == 1
    assert by_source_id(flipped, "true_label")["r0"] == 0


def test_empty_rows_at_the_end_of_a_review_are_none(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", reviews())
    lines = "source_id,decision,new_label\nr0,fix,1\nr1,drop,\n"
    review = csv(tmp_path / "review.csv", f"{lines},,\n,,\n")
    found = read(Source(path, id="id", corrections=(review,)), "example")
    assert by_source_id(found, "label")["r0"] == 1
    assert [k for k, dropped in by_source_id(found, "is_dropped").items() if dropped] == ["r1"]
    assert len(list(read_cells(review))) == 2
    for more in (",,\nr2,drop,\n", ",drop,\n", ",,,,\n"):
        review = csv(tmp_path / "odd.csv", lines + more)
        with pytest.raises(DataError, match=r"odd.csv: line 4 \(source_id None\): found"):
            read(Source(path, id="id", corrections=(review,)), "example")


SAID = "A café that I would visit again, twice; it is open until 10 in the evening."


@pytest.mark.parametrize(
    "shown",
    [
        SAID,
        SAID.replace(", twice; ", ",\n twice … "),
        SAID[:40],
        SAID.replace("é", "?"),
        SAID.upper(),
    ],
)
def test_a_review_may_show_a_text_as_a_spreadsheet_leaves_it(tmp_path: Path, shown: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*reviews(), {"id": "r10", "text": SAID, "label": 0}])
    row = {"source_id": "r10", "decision": "drop", "text": shown}
    review = jsonl(tmp_path / "review.jsonl", [row])
    found = read(Source(path, id="id", corrections=(review,)), "example")
    assert by_source_id(found, "is_dropped")["r10"]


@pytest.mark.parametrize("shown", ["A restaurant that I would visit again.", "…", SAID + " No."])
def test_a_decision_about_another_text_is_refused(tmp_path: Path, shown: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*reviews(), {"id": "r10", "text": SAID, "label": 0}])
    row = {"source_id": "r10", "decision": "drop", "text": shown}
    review = jsonl(tmp_path / "review.jsonl", [row])
    said = r"row 1 \(source_id r10\): found a decision about .*expected one about 'A café"
    with pytest.raises(DataError, match=said):
        read(Source(path, id="id", corrections=(review,)), "example")


def test_rows_by_number_that_moved_since_the_review_are_refused(tmp_path: Path) -> None:
    rows = [{"text": f"the {name} film was long", "label": 0} for name in ("first", "second")]
    row = {"source_id": "1", "decision": "fix", "new_label": "good", "text": rows[1]["text"]}
    review = jsonl(tmp_path / "review.jsonl", [row])
    source = Source(
        jsonl(tmp_path / "a.jsonl", rows), corrections=(review,), classes=("bad", "good")
    )
    assert by_source_id(read(source, "example"), "label") == {"0": 0, "1": 1}
    jsonl(tmp_path / "a.jsonl", [{"text": "a new one before them", "label": 1}, *rows])
    with pytest.raises(DataError, match="which has this id in the source now"):
        read(source, "example")


def test_a_conversation_is_known_by_the_answer_that_a_review_shows(tmp_path: Path) -> None:
    turns = ["Which colour has the sea?", "It is blue,\nor green.", "And snow?", "White."]
    talk = [
        {"content": said, "role": "assistant" if at % 2 else "user"}
        for at, said in enumerate(turns)
    ]
    talk[3]["reasoning_content"] = "Snow?"
    path = jsonl(tmp_path / "a.jsonl", [{"messages": talk}, {"messages": talk[:2]}])
    prompt = "user: Which colour has the sea?\nassistant: It is blue,\nor green.\nuser: And snow?"
    for answer, is_its in (
        ("White.", True),
        ("<think>Snow?</think>\nWhite.", True),
        ("They are black as night.", False),
    ):
        row = {"source_id": "0", "decision": "drop", "prompt": prompt, "answer": answer}
        review = jsonl(tmp_path / "review.jsonl", [row])
        source = Source(path, task="completion", messages="messages", corrections=(review,))
        if is_its:
            assert by_source_id(read(source, "example"), "is_dropped") == {"0": True, "1": False}
        else:
            with pytest.raises(DataError, match="found a decision about 'They are black"):
                read(source, "example")


def test_a_text_that_is_json_is_shown_with_its_keys(tmp_path: Path) -> None:
    keyed = '{"title": "Sea", "colour": "blue", "depth": "very deep", "is_cold": "often"}'
    rows = [*reviews(), {"id": "r10", "text": keyed, "label": 0}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    row = {"source_id": "r10", "decision": "drop", "text": keyed}
    review = jsonl(tmp_path / "review.jsonl", [row])
    found = read(Source(path, id="id", corrections=(review,)), "example")
    assert by_source_id(found, "is_dropped")["r10"]


def test_the_label_before_the_first_decision_is_kept(tmp_path: Path) -> None:
    reviewed = [
        csv(tmp_path / f"{name}.csv", f"source_id,decision,new_label\n{lines}")
        for name, lines in (
            ("first", "r0,fix,1\nr2,accept,\nr3,,1\n"),
            ("second", "r0,accept,\nr2,fix,1\nr4,fix,0\n"),
        )
    ]
    path = jsonl(tmp_path / "a.jsonl", reviews())
    plain = by_source_id(read(Source(path, id="id"), "example"), "label")
    corpus = read(Source(path, id="id", corrections=tuple(reviewed)), "example")
    before = {k: v for k, v in by_source_id(corpus, "label_before_review").items() if v is not None}
    assert before == {k: plain[k] for k in ("r0", "r2", "r4")}
    labels = by_source_id(corpus, "label")
    assert labels == plain | {"r0": 1, "r2": 1, "r4": 0}
    flip = FlipLabels(0.9)
    flipped = read(Source(path, id="id", flip_labels=flip), "example")
    both = read(Source(path, id="id", flip_labels=flip, corrections=tuple(reviewed)), "example")
    given = by_source_id(flipped, "label")
    assert by_source_id(both, "label_before_review")["r0"] == given["r0"]


def test_an_empty_label_is_no_class_called_none(tmp_path: Path) -> None:
    rows = [{**row, "label": "None" if n % 2 else "cause"} for n, row in enumerate(reviews())]
    path = jsonl(tmp_path / "a.jsonl", rows)
    for cell in ("", "None"):
        review = csv(tmp_path / "r.csv", f"source_id,decision,new_label\nr0,fix,{cell}\n")
        source = Source(path, id="id", corrections=(review,))
        if cell:
            assert by_source_id(read(source, "example"), "label")["r0"] is not None
            continue
        with pytest.raises(DataError, match=r"line 2 .*found no new_label"):
            read(source, "example")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r1,maybe,", r"line 3 .*found decision 'maybe', expected accept, fix, drop.*Correct it"),
        ("r1,fix,9", r"line 3 \(source_id r1\): found new_label '9', expected one of 0, 1.*Write"),
        ("r1,fix,", r"line 3 .*found no new_label"),
        ("zz,drop,", r"line 3 .*found a source_id that no row has, expected one.*Remove"),
        ("r9,drop,", r"line 3 .*it was rejected: null text"),
        ("r0,drop,", r"line 3 .*the same source_id as in line 2, expected each once.*Remove"),
    ],
)
def test_corrections_that_fit_no_row_are_refused(tmp_path: Path, line: str, message: str) -> None:
    rows = reviews()
    rows[9]["text"] = None
    review = csv(tmp_path / "r.csv", f"source_id,decision,new_label\nr0,accept,\n{line}\n")
    source = Source(jsonl(tmp_path / "a.jsonl", rows), id="id", corrections=(review,))
    with pytest.raises(DataError, match=message):
        read(source, "example")


@pytest.mark.parametrize(
    ("key", "line", "message"),
    [
        ("source_id", "reveiw-1004,drop,", r"no row has \(did you mean review-1004\?\), expected"),
        ("source_id", "another,drop,", r"no row has, expected"),
        ("source_id", "review-1009,drop,", r"no row has, expected .*it was rejected: null text"),
        ("source_id", "review-1001,acept,", r"'acept' \(did you mean accept\?\), expected accept"),
        (
            "source_id",
            "review-1001,fix,postive",
            r"'postive' \(did you mean positive\?\)",
        ),
        ("example_id", "{}00,drop,", r"no row has \(did you mean {}\?\), expected"),
    ],
)
def test_slips_in_a_review_are_told(tmp_path: Path, key: str, line: str, message: str) -> None:
    rows = [{**row, "id": f"review-100{i}"} for i, row in enumerate(reviews())]
    rows[9]["text"] = None
    path = jsonl(tmp_path / "a.jsonl", rows)
    classes = ("negative", "positive")
    ids = read(Source(path, id="id", classes=classes), "example").rows["id"].to_pylist()
    review = csv(tmp_path / "r.csv", f"{key},decision,new_label\n{line.format(ids[3])}\n")
    source = Source(path, id="id", classes=classes, corrections=(review,))
    with pytest.raises(DataError, match=message.format(ids[3])):
        read(source, "example")


def test_ids_that_a_program_rewrote_lose_no_decision(tmp_path: Path) -> None:
    rows = [{**row, "id": f"{n:03d}" if n else "1"} for n, row in enumerate(reviews())]
    path = jsonl(tmp_path / "a.jsonl", rows)
    ids = read(Source(path, id="id"), "example").rows["id"].to_pylist()
    head = "source_id,decision,new_label,example_id\n"

    def found(lines: str) -> list[str]:
        review = csv(tmp_path / "r.csv", lines)
        dropped = by_source_id(
            read(Source(path, id="id", corrections=(review,)), "example"), "is_dropped"
        )
        return [row for row, is_dropped in dropped.items() if is_dropped]

    # As pandas reads them: 001 is 1, which is another row's id, too.
    twice = f"1,drop,,{ids[0]}\n1,drop,,{ids[1]}\n"
    for lines in (twice, f"2,drop,,{ids[2]}\n", f"1,drop,,{ids[1]}\n"):
        with pytest.raises(DataError, match="remove the column source_id: rows go by example_id"):
            found(head + lines)
    by_example_id = [line.split(",", 1)[1] for line in (head + twice).splitlines()]
    assert found("\n".join(by_example_id) + "\n") == ["1", "001"]
    # A spreadsheet rounds these, too.
    for rounded in ("7.89845E+18", "7898449054825750000"):
        with pytest.raises(DataError, match="open the review as it was written"):
            found(f"{head}2,drop,,{rounded}\n")


def test_corrections_need_their_columns(tmp_path: Path) -> None:
    review = csv(tmp_path / "r.csv", "decision\nfix\n")
    source = Source(jsonl(tmp_path / "a.jsonl", reviews()), corrections=(review,))
    with pytest.raises(DataError, match="found the columns decision, expected source_id or exam"):
        read(source, "example")
