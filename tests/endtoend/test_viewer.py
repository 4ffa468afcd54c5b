import base64
import csv
import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest
from desks import OWN, PORT, Desk, Person, lines
from pages import HOSTILE, NAMESAKES, Page
from runs import assay, write_lines, write_run

from pipeline.errors import RunError
from pipeline.open_run import open_run
from pipeline.viewer.questions import Questions
from stages.stage import DataError
from storage.manifest import sealed_json
from storage.schema import StorageError


@pytest.fixture(scope="module")
def shared(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A viewer that nobody decides in."""
    return Desk(hostile, tmp_path_factory.mktemp("none") / "review.csv", ("origin",))


@pytest.fixture
def desk(hostile: Path, tmp_path: Path) -> Desk:
    return Desk(hostile, tmp_path / "review.csv")


def test_strangers_are_refused(shared: Desk) -> None:
    client = shared.app.test_client()
    assert client.get("/rows", headers={"Host": OWN["Host"]}).status_code == 403
    wrong = client.get("/?token=guess", headers={"Host": OWN["Host"]})
    assert wrong.status_code == 403
    assert not wrong.headers.getlist("Set-Cookie")
    person = shared.person()
    assert person.get("/rows").status_code == 200
    for header in (
        {"Host": f"evil.example:{PORT}"},
        {**OWN, "Origin": "http://evil.example"},
        {**OWN, "Origin": "null"},
        {"Host": "127.0.0.1:1"},
    ):
        assert person.client.get("/rows.json", headers=header).status_code == 403
    body = {"rows": []}
    for header in (
        {"Host": OWN["Host"]},
        {**OWN, "Sec-Fetch-Site": "cross-site"},
        {**OWN, "Origin": f"http://localhost:{PORT}"},
    ):
        assert person.client.post("/decide", json=body, headers=header).status_code == 403
    form = person.client.post("/decide", data={"rows": "[]"}, headers=OWN)
    assert form.status_code == 403
    large = person.client.post("/decide", json={"rows": ["x" * 2_000_000]}, headers=OWN)
    assert large.status_code == 413
    assert not shared.review.exists()


def test_cookies_are_of_this_server_alone(shared: Desk) -> None:
    found = shared.app.test_client().get("/?token=secret", headers={"Host": OWN["Host"]})
    assert found.headers["Location"] == "/"
    cookies = found.headers.getlist("Set-Cookie")
    assert len(cookies) == 2
    for cookie in cookies:
        assert str(PORT) in cookie.split("=")[0]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie


def pages(person: Person) -> dict[str, Any]:
    """All kinds of pages, by path."""
    row = person.rows()["data"][0]["example_id"]
    query = re.search(r'href="/query/(-?\d+)"', person.get("/queries").text)
    assert query is not None
    statement = quote("SELECT text FROM examples")
    paths = ["/", "/rows", "/review", "/queries", f"/sql?q={statement}", f"/example/{row}"]
    paths += [
        f"/query/{query[1]}",
        f"/example/{row}/near",
        "/example/1",
        "/query/12345",
        "/nowhere",
    ]
    return {path: person.get(path) for path in paths}


def test_texts_of_a_corpus_are_harmless_in_every_page(shared: Desk) -> None:
    person = shared.person()
    words = ""
    for path, answer in pages(person).items():
        assert answer.status_code < 500, path
        policy = answer.headers["Content-Security-Policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        page = Page(answer.text)
        assert "\u202e" not in page.words
        words += page.words
        assert not page.styles, path
        assert not {"iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            if tag == "script" and attributes.get("type") != "application/json":
                assert str(attributes["src"]).startswith("/assets/")
            if tag == "a":
                assert str(attributes["href"])[0] in "/#?", (path, attributes)
        for kind, text in page.scripts:
            assert kind == "application/json" or not text.strip(), path
    for text in HOSTILE[:5]:
        assert text in words
    rows = person.get("/rows.json?draw=1&start=0&length=100")
    assert rows.mimetype == "application/json"


def test_the_overview_leads_to_its_own_pages(shared: Desk) -> None:
    page = " ".join(shared.person().get("/").get_data(as_text=True).split())
    assert 'and decide on each (accept, fix or drop): <a href="/review">Review</a>' in page
    steps = page.partition("What to do next")[2].partition("</ol>")[0]
    assert "<span>apply</span>" in steps
    # Where the viewer keeps them, not a file of that name where somebody stands.
    assert f"<span>{shared.review}</span>" in steps
    assert "<span>view</span>" not in steps


def test_assets_are_whole_and_kept_by_browsers(shared: Desk) -> None:
    person = shared.person()
    page = Page(person.get("/rows").text + person.get("/review").text + person.get("/sql").text)
    named = [a["src"] for tag, a in page.tags if tag == "script" and "src" in a]
    named += [a["href"] for tag, a in page.tags if tag == "link" and a["rel"] == "stylesheet"]
    for path in dict.fromkeys(map(str, named)):
        answer = person.get(path)
        assert answer.status_code == 200, path
        again = person.client.get(
            path, headers={"Host": OWN["Host"], "If-None-Match": answer.headers["ETag"]}
        )
        assert again.status_code == 304


def test_rows_are_those_of_the_views(shared: Desk) -> None:
    person = shared.person()
    run = shared.viewer.questions.run
    given = [row[0] for row in run.sql("SELECT DISTINCT label_name FROM examples").fetchall()]
    for label in given:
        expected = run.sql(
            "SELECT e.example_id FROM label_issues AS i JOIN examples AS e USING (example_id) "
            f"WHERE e.label_name = '{label}' ORDER BY i.label_score, example_id"
        ).fetchall()
        found = person.rows(f"is.given_label={quote('=' + label)}")
        assert [row["example_id"] for row in found["data"]] == [row for (row,) in expected]
        assert found["recordsFiltered"] == len(expected)
        assert found["recordsTotal"] == 48
        assert found["draw"] == 3
    order = "order[0][name]=value&order[0][dir]=desc"
    best = run.sql("SELECT example_id FROM shapley ORDER BY value DESC, example_id")
    found = person.rows(order)
    values = [row["value"] for row in found["data"]]
    assert values == sorted(values, reverse=True)
    assert {row["example_id"] for row in found["data"]} == {row for (row,) in best.fetchall()}
    assert [int(row["id"]) for row in found["data"]] == [r["example_id"] for r in found["data"]]
    pages = [
        person.get(f"/rows.json?draw=1&start={at}&length=10&{order}").json["data"]
        for at in range(0, 50, 10)
    ]
    joined = [row["example_id"] for page in pages for row in page]
    assert joined == [row["example_id"] for row in found["data"]]


def test_columns_of_the_source_are_listed_beside_those_of_the_viewer(
    namesakes: Path, tmp_path: Path
) -> None:
    desk = Desk(namesakes, tmp_path / "review.csv", NAMESAKES)
    person = desk.person()
    listed = person.rows("decided=undecided")["data"]
    assert len(listed) == 40
    assert {row["split"] for row in listed} == {"train", "test"}
    chosen = person.rows("where=source_decision+%3D+%27x%27")["data"]
    assert len(chosen) == 20
    assert {row["decision"] for row in chosen} == {None}
    assert person.decide(int(listed[0]["example_id"]), "accept").status_code == 200
    assert len(person.rows("decided=undecided")["data"]) == 39
    assert desk.viewer.rows.has_flags


def test_rows_are_found_by_words_of_the_whole_text(shared: Desk) -> None:
    person = shared.person()
    # The text goes on for a million signs more than are listed.
    assert person.rows(f"words={'x' * 500}")["recordsFiltered"] == 4
    assert person.rows("words=ONERROR+IMG")["recordsFiltered"] == 4
    assert person.rows("words=onerror+bell")["recordsFiltered"] == 0
    assert person.rows(f"words={quote(chr(39))}")["recordsFiltered"] == 4
    assert person.rows("words=100%25")["recordsFiltered"] == 0


def test_conditions_are_sql_that_reads(shared: Desk) -> None:
    person = shared.person()
    every = person.rows()["data"]
    for condition, expected in (
        ("label_score < 0.5", [r for r in every if r["label_score"] < 0.5]),
        ("value > 0 -- positive", [r for r in every if r["value"] > 0]),
        ("origin LIKE '<script%'", [r for r in every if r["origin"][:7] == "<script"]),
    ):
        assert person.rows(f"where={quote(condition)}")["data"] == expected
    for condition in (
        "true); DROP TABLE viewer.rows; --",
        "nothing = 1",
        "true) UNION SELECT * FROM read_text('/etc/passwd') WHERE (true",
        "example_id IN (SELECT 1 FROM read_csv('/etc/passwd'))",
        "(",
    ):
        found = person.get(f"/rows.json?draw=1&start=0&length=10&where={quote(condition)}")
        assert found.status_code == 400, condition
        assert "found" in found.json["error"]
        assert "root:" not in found.text
    assert person.rows()["recordsFiltered"] == 48
    wrong = person.get("/rows.json?draw=1&start=0&length=1&order[0][name]=x;y&order[0][dir]=asc")
    assert wrong.status_code == 400


def test_statements_read_and_come_to_an_end(shared: Desk) -> None:
    person = shared.person()
    shown = person.get(f"/sql?q={quote('SELECT count(*) AS n FROM examples')}")
    assert "48" in Page(shown.text).words
    for statement in ("DELETE FROM viewer.rows", "SELECT 1; SELECT 2", "COPY examples TO 'x.csv'"):
        refused = person.get(f"/sql?q={quote(statement)}")
        assert refused.status_code == 400
        assert "expected" in Page(refused.text).words
    questions: Questions = shared.viewer.questions
    endless = "SELECT sum(a.range * b.range) FROM range(10000000) AS a, range(10000000) AS b"
    with pytest.raises(StorageError, match=r"longer than 0\.2 s"):
        questions.ask(endless, seconds=0.2)
    assert questions.ask("SELECT 1").rows == [(1,)]


def test_decisions_are_on_disk_before_they_are_counted(desk: Desk) -> None:
    person = desk.person()
    first = person.next()
    label = person.rows(f"where=example_id={first['id']}")["data"][0]["suggested_label"]
    assert person.decide(first["id"], "fix").json == {"made": 1, "others": [], "file": 1}
    assert desk.file() == {first["id"]: ("fix", label)}
    second = person.next()
    assert second["id"] != first["id"]
    assert second["progress"]["fix"] == 1
    person.decide(second["id"], "drop")
    third = person.next()
    person.post("/skip", {"id": str(third["id"])})
    assert person.next()["id"] not in (first["id"], second["id"], third["id"])
    assert set(desk.file()) == {first["id"], second["id"]}
    undone = person.post("/undo", {}).json
    assert (undone["made"], undone["rows"]) == (1, [str(second["id"])])
    assert set(desk.file()) == {first["id"]}
    assert person.rows("decided=decided")["recordsFiltered"] == 1
    again = Desk(desk.viewer.questions.run.folder.path, desk.review).person()
    assert [row["example_id"] for row in again.rows("decided=fix")["data"]] == [first["id"]]


@pytest.mark.parametrize(
    ("verdict", "label"), [("fix", "no class"), ("perhaps", ""), ("fix", "<b>bad</b> ")]
)
def test_what_is_no_decision_changes_nothing(desk: Desk, verdict: str, label: str) -> None:
    person = desk.person()
    refused = person.decide(person.next()["id"], verdict, label)
    assert refused.status_code == 400
    assert "expected" in refused.json["error"]
    assert not desk.review.exists()
    assert person.decide(12345, "drop").status_code == 400


def test_taking_back_brings_back_the_suggestion(desk: Desk) -> None:
    person = desk.person()
    row = person.rows()["data"][0]
    given, suggested = row["given_label"], row["suggested_label"]
    assert given != suggested
    person.decide(row["example_id"], "fix", given)
    assert desk.file()[row["example_id"]] == ("fix", given)
    person.post("/undo", {})
    (line,) = lines(desk.review)
    assert (line["decision"], line["new_label"]) == ("", suggested)


def test_two_people_do_not_lose_each_others_decisions(desk: Desk, hostile: Path) -> None:
    one, two = desk.person(), desk.person()
    other = Desk(hostile, desk.review).person()  # through another server
    first, second = one.next()["id"], two.next()["id"]
    assert first != second
    one.decide(first, "accept")
    late = two.decide(first, "drop").json
    assert late["made"] == 0
    assert late["others"] == [{"id": str(first), "now": ["accept", ""]}]
    late = other.decide(first, "drop").json
    assert late["others"] == [{"id": str(first), "now": ["accept", ""]}]
    other.decide(second, "drop")
    two.decide(other.next()["id"], "accept")
    assert len(desk.file()) == 3
    assert desk.file()[second] == ("drop", desk.file()[second][1])
    assert two.decide(first, "drop", seen=["accept", ""]).json["made"] == 1
    assert one.post("/undo", {}).json["made"] == 0  # somebody changed it since
    assert desk.file()[first][0] == "drop"


def test_nobody_who_decides_waits_for_the_overview(desk: Desk) -> None:
    person = desk.person()
    made: list[Any] = []

    def decide() -> None:
        made.append(person.decide(person.next()["id"], "accept").json["made"])

    with desk.viewer.slow:  # as while the overview is made, or a query explained
        thread = threading.Thread(target=decide, daemon=True)
        thread.start()
        thread.join(30)
        assert made == [1]


def test_many_rows_are_decided_at_once_and_taken_back(desk: Desk) -> None:
    person = desk.person()
    row = person.next()["id"]
    person.decide(row, "accept")
    wanted = person.rows("where=label_score+<+0.9")["recordsFiltered"]
    asked = {"filter": {"where": "label_score < 0.9"}, "verdict": "drop"}
    made = person.post("/decide-all", asked).json
    assert made["made"] == wanted - 1
    assert made["kept"] == 1
    assert desk.file()[row][0] == "accept"
    assert person.rows("decided=drop")["recordsFiltered"] == wanted - 1
    assert person.post("/undo", {}).json["made"] == wanted - 1
    assert list(desk.file()) == [row]
    fixed = person.post("/decide-all", {"filter": {}, "verdict": "fix"}).json
    assert fixed["made"] + fixed["kept"] == 48
    for given, label in desk.file().values():
        assert given == "accept" or label


def test_apply_takes_what_was_decided(desk: Desk, hostile: Path, tmp_path: Path) -> None:
    person = desk.person()
    fixed, dropped, kept = (row["example_id"] for row in person.rows()["data"][:3])
    person.decide(fixed, "fix")
    person.decide(dropped, "drop")
    person.decide(kept, "accept")
    assay("apply", hostile, desk.review, "--to", tmp_path / "corrected")
    corrected = open_run(tmp_path / "corrected")
    rows = dict(corrected.sql("SELECT example_id, label_name FROM examples").fetchall())
    assert dropped not in rows
    assert rows[fixed] == desk.file()[fixed][1]
    after = Desk(tmp_path / "corrected", tmp_path / "second.csv").person()
    assert after.rows("decided=accept")["data"][0]["example_id"] == kept
    assert after.rows("decided=undecided")["recordsFiltered"] == 45
    assert b"was executed again" not in after.get("/rows").data
    record = corrected.folder.read_record()
    record["tables"]["corpus"]["label"]["manifest"] = "0" * 16
    corrected.folder.record.write_text(sealed_json(record))
    assert b"was executed again" in after.get("/rows").data


def test_a_review_for_a_spreadsheet_is_gone_on_with(hostile: Path, tmp_path: Path) -> None:
    review = tmp_path / "review.csv"
    assay("flag", hostile, "--top", 6, "--review", review)
    desk = Desk(hostile, review)
    person = desk.person()
    before = lines(review)
    row = person.rows()["data"][1]["example_id"]
    person.decide(row, "drop")
    assert desk.file()[row][0] == "drop"
    assert [{**after, "decision": ""} for after in lines(review)] == before


@pytest.mark.parametrize(
    "spoiled", [lambda cell: f"{int(cell):.5E}", lambda cell: cell[:-4] + "0000"]
)
def test_a_review_is_taken_by_source_id_as_apply_takes_it(
    hostile: Path, tmp_path: Path, spoiled: Callable[[str], str]
) -> None:
    """A spreadsheet keeps 15 digits of an example_id, and may show fewer."""
    review = tmp_path / "review.csv"
    assay("flag", hostile, "--top", 6, "--review", review)
    rows = lines(review)
    right = [int(row["example_id"]) for row in rows]

    def save(ids: list[str]) -> None:
        with review.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["source_id", "decision", "example_id"])
            for row, given in zip(rows, ids, strict=True):
                writer.writerow([row["source_id"], "accept", given])

    ids = [spoiled(row["example_id"]) for row in rows]
    save([*ids[:-1], rows[0]["example_id"]])
    with pytest.raises(RunError, match=r"found in line 7 the row"):
        Desk(hostile, review)
    save(ids)
    desk = Desk(hostile, review)
    desk.person().decide(right[0], "drop", seen=("accept", ""))
    assert desk.file() == {right[0]: ("drop", ""), **{row: ("accept", "") for row in right[1:]}}


def test_a_row_known_by_its_example_id_gets_its_source_id_back(
    hostile: Path, tmp_path: Path
) -> None:
    """As pandas writes 7 for 007, which `assay apply` would not know."""
    review = tmp_path / "review.csv"
    assay("flag", hostile, "--top", 2, "--review", review)
    rows = lines(review)
    rewritten = [f"{at},accept,{row['example_id']}\n" for at, row in enumerate(rows)]
    review.write_text("source_id,decision,example_id\n" + "".join(rewritten))
    Desk(hostile, review).person().decide(int(rows[0]["example_id"]), "drop", seen=("accept", ""))
    assert [line["source_id"] for line in lines(review)] == [row["source_id"] for row in rows]


def test_a_file_that_is_no_review_stays_as_it_is(hostile: Path, tmp_path: Path) -> None:
    for text in (
        "name,age\nx,3\n",
        "decision,example_id\nperhaps,3\n",
        "decision,source_id\ndrop,nobody\n",
        "decision,example_id\ndrop,99\n",
    ):
        path = tmp_path / "mine.csv"
        path.write_text(text)
        with pytest.raises((RunError, DataError), match=r"found .* expected"):
            Desk(hostile, path)
        assert path.read_text() == text


def test_a_full_disk_loses_no_decision(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    person = desk.person()
    row, other = (found["example_id"] for found in person.rows()["data"][:2])
    person.decide(row, "drop")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.viewer.review_file.write_whole", full)
        refused = person.decide(other, "drop")
    assert refused.status_code == 400
    assert "nothing was decided" in refused.json["error"]
    assert list(desk.file()) == [row]
    assert person.decide(other, "accept").json["file"] == 2


def test_the_json_of_a_page_is_json(shared: Desk) -> None:
    page = Page(shared.person().get("/rows").text)
    found = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert [column["name"] for column in found[0]["columns"]][:2] == ["source_id", "origin"]


def test_targets_are_fixed_to_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", vectors)
    rows = [
        {"y": float(target), "id": f"row {at}", "image": [[0, at], [29, 1]] if at % 2 else None}
        for at, target in enumerate(vectors[:, 0])
    ]
    corpus = {
        "path": write_lines(tmp_path / "x.jsonl", rows),
        "task": "regression",
        "text": None,
        "label": "y",
        "id": "id",
        "features": str(tmp_path / "x.npy"),
    }
    assay(
        "run",
        write_run(tmp_path, corpus=corpus, stages={"kernel_regression": {"kernel": ["features"]}}),
    )
    desk = Desk(tmp_path / "run", tmp_path / "review.csv")
    person = desk.person()
    row = person.next()
    assert "predicted" in Page(row["html"]).words
    page = Page(person.get("/rows").text)
    (told,) = (json.loads(text) for kind, text in page.scripts if kind == "application/json")
    assert told["has_images"]
    pictures = {row["source_id"]: row["picture"] for row in person.rows()["data"]}
    assert pictures["row 2"] is None
    shown = PIL.Image.open(io.BytesIO(base64.b64decode(pictures["row 15"].split(",")[1])))
    corners = np.array(shown.convert("L"))
    np.testing.assert_allclose(corners, [[0, 255 * 15 / 29], [255, 255 / 29]], atol=1)
    assert person.decide(row["id"], "fix", "much").status_code == 400
    assert person.decide(row["id"], "fix", "2.5").json["made"] == 1
    assay("apply", tmp_path / "run", desk.review, "--to", tmp_path / "corrected")
    fixed = open_run(tmp_path / "corrected").sql(
        f"SELECT target FROM examples WHERE example_id = {row['id']}"
    )
    assert fixed.fetchall() == [(2.5,)]
