"""The viewer's server: a run's pages, and the decisions of people about its rows.

Flask over waitress: requests wait for DuckDB, each in a thread of its own, and Flask's templates
are those of the report. Starlette over uvicorn is as small; it is for handlers that never block.
"""

import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, jsonify, redirect, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from pipeline.errors import RunError
from pipeline.open_run import OpenedRun, open_run
from pipeline.page.document import asset, part, readable
from pipeline.page.report import contents
from pipeline.page.rows_table import cell, table_script
from pipeline.page.subject import Subject
from pipeline.viewer.desk import Desk
from pipeline.viewer.guard import guard
from pipeline.viewer.one_row import OneRow
from pipeline.viewer.queries import Queries
from pipeline.viewer.questions import Questions
from pipeline.viewer.review_file import Change, Decision
from pipeline.viewer.rows import DECIDED, Filter, Rows
from stages.stage import StageError
from storage.schema import StorageError
from storage.views import SUMS

MOST_ROWS = 1000
"""Rows of a statement that are shown."""
PAGES = (("/", "Overview"), ("/rows", "Rows"), ("/review", "Review"), ("/queries", "Queries"),
         ("/sql", "SQL"))  # fmt: skip


class Viewer:
    """The pages of one run."""

    def __init__(self, run: OpenedRun, review: Path, by: Sequence[str] = ()):
        """Reads what all pages need.

        Args:
            run: Opened with `is_shut_in`.
            review: The file of decisions.
            by: Columns of the source that are listed and filtered by.

        Raises:
            RunError: the source has no such column, or the file is no review of this run.
        """
        self.questions = Questions(run)
        # For what takes long, on a connection of its own: nobody who decides waits for it.
        self.subject = Subject(open_run(run.folder.path, is_shut_in=True), str(review))
        self.slow = threading.Lock()
        self.rows = Rows(self.questions, self.subject, by)
        self.desk = Desk(self.rows, review, self.subject.task, self.subject.classes)
        self.one_row = OneRow(self.questions, self.subject, self.rows)
        self.queries = Queries(self.questions, self.subject, self.slow)
        self._by = by
        self._cookie = ""
        self._report: dict[str, Any] | None = None

    def app(self, token: str, names: frozenset[str], port: int) -> Flask:
        """The server, which answers those who know `token`; see `pipeline.viewer.guard`."""
        app = Flask("assay", static_folder=None)
        guard(app, token, names, port)
        pages: dict[str, Callable[..., Any]] = {
            "/": self._overview,
            "/rows": self._rows_page,
            "/rows.json": self._rows_json,
            "/review": self._review_page,
            "/review/next": self._next,
            "/example/<int(signed=True):example_id>": self._example,
            "/example/<int(signed=True):example_id>/near": self._near,
            "/queries": self._queries_page,
            "/query/<int(signed=True):query_id>": self._query,
            "/text": self._text_page,
            "/sql": self._sql,
            "/assets/<name>": _asset,
        }
        for path, answer in pages.items():
            app.add_url_rule(path, path, self._told(answer))
        for path, answer in (
            ("/decide", self._decide),
            ("/decide-all", self._decide_all),
            ("/skip", self._skip),
            ("/undo", self._undo),
        ):
            app.add_url_rule(path, path, self._told(answer), methods=["POST"])
        app.register_error_handler(HTTPException, self._refused)
        self._cookie = app.config["PERSON_COOKIE"]
        return app

    def _person(self) -> str:
        """Who asks: a name that the browser was given."""
        return request.cookies[self._cookie]

    def _told(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        """The handler; errors that a person can do something about are answers."""

        @functools.wraps(answer)
        def handle(**named: Any) -> Any:
            try:
                return answer(**named)
            except (RunError, StageError, StorageError) as error:
                return self._failed(str(error), 400)

        return handle

    def _refused(self, error: HTTPException) -> Any:
        return self._failed(error.description or error.name, error.code or 500)

    def _failed(self, message: str, code: int) -> Any:
        if request.path.endswith(".json") or request.method == "POST" or "part" in request.args:
            return jsonify(error=readable(message)), code
        if code == 403:
            return Response(message, code, mimetype="text/plain")
        return self._page("viewer/failed.html", "Not shown", message=message), code

    def _page(self, template: str, title: str, **values: Any) -> str:
        return part(
            template,
            pages=PAGES,
            here=request.path,
            title=title,
            run_id=self.subject.run.record["run_id"],
            run_path=self.subject.path,
            review=str(self.desk.file.path),
            review_argument=self.subject.review,
            is_outdated=self._is_outdated(),
            n_decided=self.desk.n_decided,
            verdicts=self.desk.verdicts,
            classes=self.subject.classes,
            task=self.subject.task,
            has_suggestions=self.rows.has_suggestions,
            **values,
        )

    def _is_outdated(self) -> bool:
        """Whether the run has other results by now, or is on the way to them."""
        run = self.subject.run
        try:
            return _results(run.record) != _results(run.folder.read_record())
        except RunError:  # it is being written, or gone
            return True

    def _overview(self) -> str:
        with self.slow:
            if self._report is None:
                self._report = contents(self.subject, self._by, without=("rows", "queries"))
        shown = {k: v for k, v in self._report.items() if k not in ("run_id", "run_path")}
        return self._page(
            "viewer/overview.html",
            shown["top"].headline,
            has_flags=self.rows.has_flags,
            in_viewer=True,
            **shown,
        )

    def _rows_page(self) -> str:
        return self._page(
            "viewer/rows.html",
            "Rows",
            columns=[{**c.shown, "name": c.name} for c in self.rows.columns],
            has_images=self.one_row.has_images,
            filters=self._filters(),
            total=self.rows.total,
            names=self.rows.names,
        )

    def _filters(self) -> dict[str, Any]:
        """What the form of filters offers."""
        choices = [
            (column.name, column.title, self.rows.choices[column.name])
            for column in self.rows.columns
            if self.rows.choices.get(column.name)
        ]
        decided = [d for d in DECIDED if d in (*DECIDED[:2], *self.desk.verdicts)]
        return {"choices": choices, "has_flags": self.rows.has_flags, "decided": decided}

    def _rows_json(self) -> Any:
        """What DataTables asks for: a page of rows in an order, and how many there are."""
        given = request.args
        at, n = (given.get(name, 0, type=int) for name in ("start", "length"))
        order = given.get("order[0][name]", "")
        is_descending = given.get("order[0][dir]") == "desc"
        count, rows = self.rows.page(
            _filter(given), order, is_descending, max(0, at), min(max(1, n), 200)
        )
        images = self.one_row.images([row["example_id"] for row in rows])
        return jsonify(
            draw=given.get("draw", 0, type=int),
            recordsTotal=self.rows.total,
            recordsFiltered=count,
            data=[
                {name: cell(value) for name, value in row.items()}
                | {"id": str(row["example_id"]), "picture": images.get(row["example_id"])}
                for row in rows
            ],
        )

    def _review_page(self) -> str:
        self.desk.begin(self._person())
        return self._page("viewer/review.html", "Review", filters=self._filters())

    def _next(self) -> Any:
        """The next row to decide about, or one that is asked for, as JSON with a part of HTML."""
        chosen = _filter(request.args)
        example_id = request.args.get("id", type=int)
        if example_id is None:
            example_id = self.desk.next(self._person(), chosen)
        whole = Filter(chosen.words, chosen.values, chosen.is_flagged, "", chosen.condition)
        progress = {**self.rows.progress(whole), "file": self.desk.n_decided}
        progress["held"] = self.desk.n_held(self._person())
        if example_id is None:
            return jsonify(id=None, progress=progress)
        seen = self.desk.known(example_id)
        return jsonify(
            id=str(example_id),
            html=part("viewer/row.html", is_linked=True, **self.one_row.shown(example_id)),
            seen=seen,
            progress=progress,
        )

    def _example(self, example_id: int) -> str:
        shown = self.one_row.shown(example_id)
        seen = self.desk.known(example_id)
        return self._page("viewer/example.html", f"Row {shown['row']['source_id']}", seen=seen,
                          supported=self.one_row.supported(example_id), **shown)  # fmt: skip

    def _near(self, example_id: int) -> str:
        near = self.one_row.near(example_id)
        images = self.one_row.images([row["example_id"] for side in near for row in side["rows"]])
        return part("viewer/near.html", near=near, images=images)

    def _queries_page(self) -> str:
        words, at = request.args.get("words", ""), max(0, request.args.get("at", 0, type=int))
        found = self.queries.page(words, request.args.get("wrong") == "1", at)
        return self._page("viewer/queries.html", "Queries", words=words, at=at, found=found)

    def _query(self, query_id: int) -> str:
        found = self.queries.one(query_id)
        if found["failed"]:
            found |= self.one_row.query(query_id)
            alike = [row["example_id"] for side in found["near"] for row in side["rows"]]
            found["images"] = self.one_row.images(alike)
        return self._page("viewer/query.html", "Query", **found)

    def _text_page(self) -> Any:
        text = request.args.get("text", "").strip()
        if not text:
            return redirect("/queries")
        return self._page(
            "viewer/query.html", "Text", **self.queries.of_text(text, request.args.get("text_b"))
        )

    def _sql(self) -> Any:
        statement = request.args.get("q", "").strip()
        found, message = None, ""
        if statement:
            try:
                found = self.questions.ask(statement, MOST_ROWS + 1)
            except StorageError as error:
                message = str(error)
        return self._page("viewer/sql.html", "SQL", statement=statement, found=found,
                          message=message, most=MOST_ROWS, views=self.subject.run.views(),
                          ), 400 if message else 200  # fmt: skip

    def _decide(self) -> Any:
        """Decides about rows: `rows` of `{id, verdict, new_label, seen}`."""
        wanted = {}
        for given in _list(_body().get("rows")):
            row, seen = _id(given.get("id")), _list(given.get("seen", []))
            decision = Decision(_text(given.get("verdict")), _text(given.get("new_label")))
            wanted[row] = Change(decision, Decision(*map(_text, seen[:2])))
        others = self.desk.decide(self._person(), wanted)
        return jsonify(
            made=len(wanted) - len(others),
            others=[{"id": str(row), "now": now} for row, now in others.items()],
            file=self.desk.n_decided,
        )

    def _decide_all(self) -> Any:
        """Decides alike about all undecided rows of a filter."""
        body = _body()
        chosen = _filter(body.get("filter") or {})
        made, kept = self.desk.decide_all(self._person(), chosen, _text(body.get("verdict")))
        return jsonify(made=made, kept=kept, file=self.desk.n_decided)

    def _skip(self) -> Any:
        row = _id(_body().get("id"))
        self.desk.skip(self._person(), row)
        return jsonify(skipped=str(row))

    def _undo(self) -> Any:
        made, rows = self.desk.undo(self._person())
        return jsonify(made=made, rows=[str(row) for row in rows[:1]], file=self.desk.n_decided)


def _filter(given: Mapping[str, Any]) -> Filter:
    """The filter that the fields of a form describe."""
    values = {
        name.removeprefix("is."): _text(value).removeprefix("=")
        for name, value in given.items()
        if name.startswith("is.") and value != ""
    }
    decided = _text(given.get("decided"))
    return Filter(
        words=_text(given.get("words")),
        values=values,
        is_flagged=_text(given.get("flagged")) == "1",
        decided=decided if decided in DECIDED else "",
        condition=_text(given.get("where")),
    )


def _body() -> Mapping[str, Any]:
    body = request.get_json(silent=True)
    return body if isinstance(body, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _id(value: Any) -> int:
    """The id of a row, which JSON gives as text: JavaScript's numbers hold 53 of its 64 bits."""
    if not isinstance(value, str) or re.fullmatch(r"-?\d{1,19}", value) is None:
        abort(400, "Found a decision without the id of a row, expected example_id as text.")
    return int(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@functools.cache
def _assets() -> Mapping[str, tuple[str, str]]:
    """The files that pages load, with their kinds."""
    script = "text/javascript"
    return {
        "style.css": (asset("style.css") + asset("viewer.css"), "text/css"),
        "page.js": (asset("page.js"), script),
        "rows.js": (asset("decisions.js") + table_script("viewer_rows.js"), script),
        "desk.js": (asset("decisions.js") + asset("desk.js"), script),
        "row.js": (asset("decisions.js") + asset("row.js"), script),
        "asked.js": (asset("asked.js"), script),
    }


def _asset(name: str) -> AnyResponse:
    if name not in _assets():
        abort(404)
    text, kind = _assets()[name]
    answer = Response(text, mimetype=kind)
    answer.headers["Cache-Control"] = "private, no-cache"
    answer.add_etag()
    return answer.make_conditional(request)


def _results(record: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """The manifest of every table, by instance and name; sums are made when somebody asks."""
    return {
        (instance, table): state["manifest"]
        for instance, tables in record["tables"].items()
        for table, state in tables.items()
        if table != SUMS
    }
