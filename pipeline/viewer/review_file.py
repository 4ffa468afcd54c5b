"""The review file of a desk: what people decided, on disk before they see it counted.

It is the CSV that `assay flag --review` writes and `assay apply` takes. Several people may decide
at once, also through several servers: each change is made under a lock of the file's folder, over
the file as it is then, and only where a row still is as the one who decided saw it.
"""

import codecs
import contextlib
import csv
import fcntl
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import RunError
from stages.corpus.review import read_cells
from storage.files import write_whole
from storage.spreadsheet import escaped

VERDICTS = ("accept", "fix", "drop")
Find = Callable[[Sequence[tuple[str, str]]], list[tuple[int, str] | None]]
"""Rows that cells name by source_id and example_id, of which one may be empty or rewritten by a
program: the example_id of each, and its source_id."""


class Decision(NamedTuple):
    """What was decided about a row; nothing where `verdict` is empty."""

    verdict: str = ""
    new_label: str = ""
    """With `fix`: the label, where the task has labels."""


class Change(NamedTuple):
    """A decision about a row, and what had been decided when it was made."""

    decision: Decision
    seen: Decision


class ReviewFile:
    """The decisions in one file, by example_id."""

    def __init__(self, path: Path, columns: Sequence[str], find: Find):
        """Reads the file where there is one already.

        Args:
            path: The CSV.
            columns: Those of a new file; `decision` and `example_id` are among them, and
                `new_label` where a label can be fixed.
            find: Finds the rows that the file names.

        Raises:
            RunError: it is no review of this run.
            stages.stage.DataError: it cannot be read.
        """
        self.path, self._find = path, find
        self._columns = list(columns)
        self._rows: dict[int, dict[str, str]] = {}
        self._given: dict[int, str] = {}
        """Labels that stood in the file, or were suggested, before anybody decided here."""
        self._state: tuple[int, ...] | None = None
        if path.suffix != ".csv":
            raise RunError(f"{path}: found the ending {path.suffix!r}, expected .csv. Rename it.")
        with self._locked():
            self._refresh()

    def decisions(self) -> dict[int, Decision]:
        """What is decided now, by whomever, by example_id."""
        with self._locked():
            self._refresh()
        return {row: found for row in self._rows if (found := self._decision(row)).verdict}

    def decide(
        self, changes: Mapping[int, Change], shown: Mapping[int, Mapping[str, str]]
    ) -> dict[int, Decision]:
        """Makes changes of decisions; returns what stands of the rows that others decided about.

        All others are on disk when this returns.

        Args:
            changes: By example_id.
            shown: The other cells of rows that the file does not have yet.

        Raises:
            RunError: the file cannot be read or written; nothing is changed.
        """
        with self._locked():
            self._refresh()
            others = {
                row: now
                for row, change in changes.items()
                if (now := self._decision(row)) not in (change.seen, change.decision)
            }
            made = {row: c.decision for row, c in changes.items() if row not in others}
            before = {row: self._rows[row] for row in made if row in self._rows}
            for row, decision in made.items():
                cells = dict(self._rows.get(row) or shown[row])
                given = self._given.setdefault(row, cells.get("new_label", ""))
                cells["decision"] = decision.verdict
                if "new_label" in self._columns:
                    cells["new_label"] = decision.new_label or given
                self._rows[row] = cells
            try:
                self._write()
            except BaseException:
                self._rows = {k: v for k, v in self._rows.items() if k not in made} | before
                raise
        return others

    def _decision(self, row: int) -> Decision:
        cells = self._rows.get(row)
        if cells is None or not cells["decision"]:
            return Decision()
        is_fixed = cells["decision"] == "fix"
        return Decision(cells["decision"], cells.get("new_label", "") if is_fixed else "")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Within this context no other process changes a review in the folder."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY)
        except OSError as error:
            raise RunError(
                f"{self.path}: found that its folder cannot be used ({error}), expected one that "
                "can be written to. Name another file with --review."
            ) from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _refresh(self) -> None:
        """Reads the file again where another process or person changed it."""
        state = self._state_now()
        if state == self._state:
            return
        self._rows = self._read() if state else {}
        self._state = state

    def _state_now(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> dict[int, dict[str, str]]:
        given: list[tuple[str, dict[str, str]]] = []
        for where, read in read_cells(str(self.path)):
            if "decision" not in read or not {"example_id", "source_id"} & set(read):
                raise self._no_review(f"the columns {', '.join(read)}")
            if not given:
                self._columns = [*read, *(c for c in self._columns if c not in read)]
            cells = {name: read.get(name, "") for name in self._columns}
            cells["decision"] = cells["decision"].strip().lower()
            if cells["decision"] not in ("", *VERDICTS):
                raise self._no_review(f"in {where} the decision {cells['decision']!r:.60}")
            given.append((where, cells))
        names = [(cells.get("source_id", ""), cells["example_id"]) for _, cells in given]
        rows: dict[int, dict[str, str]] = {}
        for (where, cells), named, found in zip(given, names, self._find(names), strict=True):
            if found is None:
                raise self._no_review(f"in {where} the row {named[0] or named[1]!r:.60}")
            row, source_id = found
            if row in rows:
                raise self._no_review(f"in {where} a row that stands above, too")
            own = {"example_id": str(row), "source_id": source_id}
            rows[row] = cells | {name: own[name] for name in own if name in cells}
        return rows

    def _no_review(self, found: str) -> RunError:
        return RunError(
            f"{self.path}: found {found}, expected a review as `assay flag --review` writes it: "
            "example_id or source_id of rows of this run, and decision (accept, fix, drop or "
            "nothing). Correct the file, or name another with --review."
        )

    def _write(self) -> None:
        out = io.StringIO(newline="")
        lines = csv.writer(out)
        lines.writerow(self._columns)
        for cells in self._rows.values():
            lines.writerow([escaped(cells.get(name, "")) for name in self._columns])
        text = out.getvalue()
        try:
            write_whole(self.path, (b"" if text.isascii() else codecs.BOM_UTF8) + text.encode())
        except OSError as error:
            raise RunError(
                f"{self.path}: found that it cannot be written ({error}), expected a folder with "
                "room. Make room; nothing was decided."
            ) from error
        self._state = self._state_now()
