"""The review desk: which row a person decides about next, decisions, and taking them back."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.viewer.review_file import VERDICTS, Change, Decision, ReviewFile
from pipeline.viewer.rows import Filter, Rows
from stages.corpus.review import exact_id
from stages.corpus.source import LABELLED
from stages.corpus.targets import parse_number

HELD_S = 120.0
"""Seconds for which a row that one person looks at is not given to another."""
ALLOWED = {
    "classification": VERDICTS,
    "regression": VERDICTS,
    "preference": VERDICTS,
    "completion": ("accept", "drop"),
    "question_answering": ("accept", "drop"),
}
CELLS = {
    "classification": ("text", "given_label", "label_score", "p_wrong"),
    "regression": ("text", "target", "predicted"),
    "preference": ("prompt", "chosen", "rejected", "reason", "p_wrong"),
    "completion": ("prompt", "answer", "reason", "p_wrong"),
    "question_answering": ("text",),
}
"""Cells of a row that stand in the review file, so that people can read it."""


@dataclass
class Person:
    """What the desk remembers of one browser."""

    skipped: set[int] = field(default_factory=set)
    actions: list[dict[int, Change]] = field(default_factory=list)
    """What was decided, last ones last: each row's decision then, and the one before."""


class Desk:
    """The decisions about a run's rows, by all who are at work on them."""

    def __init__(self, rows: Rows, path: Path, task: str, classes: Sequence[str]):
        """Opens the review file at `path`, or will begin it with the first decision.

        Raises:
            RunError: there is a file that is no review of this run.
        """
        self.rows, self._task, self._classes = rows, task, list(classes)
        names = [name for name in CELLS[task] if name in rows.names]
        new = ["new_label"] if task in LABELLED else []
        columns = ["source_id", "decision", *names, *new, "example_id"]
        self.file = ReviewFile(path, columns, self._find)
        self._people: dict[str, Person] = {}
        self._held: dict[int, tuple[str, float]] = {}
        self._known: dict[int, Decision] = {}
        self._lock = threading.RLock()
        with self._lock:
            self._take_over()
            unknown = self._known.keys() - rows.of_ids(list(self._known)).keys()
        if unknown:
            raise RunError(
                f"{path}: found the row {min(unknown)}, which this run does not have, expected a "
                "review of this run. Name another file with --review."
            )

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What may be decided."""
        return ALLOWED[self._task]

    @property
    def n_decided(self) -> int:
        """How many rows the file has a decision about."""
        return len(self._known)

    def _find(self, names: Sequence[tuple[str, str]]) -> list[tuple[int, str] | None]:
        """The rows that a file names by source_id and example_id, as `assay apply` takes them.

        The source_id is what counts: spreadsheets round numbers as long as an example_id. Where
        both name a row, and not the same, none is found.
        """
        ids = [exact_id(cell) for _, cell in names]
        known = self.rows.of_ids([row for row in ids if row is not None])
        found: list[tuple[int, str] | None] = []
        for (source_id, _), row in zip(names, ids, strict=True):
            own = known[row]["source_id"] if row in known else source_id
            if source_id not in ("", own) or row not in known:
                named = self.rows.find(source_id) if source_id else None
                if named is not None:
                    row, own = None if row in known else named, source_id
            found.append(None if row is None else (row, own))
        return found

    def next(self, name: str, chosen: Filter) -> int | None:
        """The next row for a person, which others are not given meanwhile; None after the last."""
        with self._lock:
            self._take_over()
            now = time.monotonic()
            held = {r for r, (who, until) in self._held.items() if who != name and until > now}
            row = self.rows.next(chosen, sorted(held | self._person(name).skipped))
            self._held = {r: h for r, h in self._held.items() if h[0] != name and h[1] > now}
            if row is not None:
                self._held[row] = (name, now + HELD_S)
            return row

    def n_held(self, name: str) -> int:
        """How many rows others look at just now."""
        with self._lock:
            now = time.monotonic()
            return sum(who != name and until > now for who, until in self._held.values())

    def skip(self, name: str, row: int) -> None:
        """Leaves a row out for a person, until the page is opened anew."""
        with self._lock:
            self._person(name).skipped.add(row)

    def begin(self, name: str) -> None:
        """Gives a person the rows that were skipped, again."""
        with self._lock:
            self._person(name).skipped.clear()

    def decide(self, name: str, wanted: Mapping[int, Change]) -> dict[int, Decision]:
        """Decides about rows; returns what stands of those that others decided about meanwhile.

        Raises:
            RunError: a decision is not possible here, or the file cannot be written.
        """
        with self._lock:
            self._take_over()
            rows = self.rows.of_ids(list(wanted))
            changes = {}
            for row, change in wanted.items():
                if row not in rows:
                    raise RunError(f"found the row {row}, expected one of this run. Reload.")
                changes[row] = Change(self._checked(change.decision, rows[row]), change.seen)
            shown = {row: _cells(found) for row, found in rows.items()}
            others = self.file.decide(changes, shown)
            made = {row: change for row, change in changes.items() if row not in others}
            if made:
                self._person(name).actions.append(made)
            self._take_over()
            return others

    def decide_all(self, name: str, chosen: Filter, verdict: str) -> tuple[int, int]:
        """Decides alike about all undecided rows that a filter takes; `fix` takes suggestions.

        Returns how many were decided, and how many were left as they are: decided before, or to
        be fixed without another label suggested.
        """
        with self._lock:
            self._take_over()
            ids = self.rows.ids(chosen)
            rows = self.rows.of_ids(ids)
            wanted = {}
            for row in ids:
                label = str(rows[row].get("suggested_label") or "")
                is_vain = self._task == "classification" and label in (
                    "",
                    rows[row].get("given_label"),
                )
                if rows[row]["decision"] is None and not (verdict == "fix" and is_vain):
                    wanted[row] = Change(Decision(verdict), Decision())
            others = self.decide(name, wanted) if wanted else {}
            made = len(wanted) - len(others)
            return made, len(ids) - made

    def undo(self, name: str) -> tuple[int, list[int]]:
        """Takes back what a person decided last; returns of how many rows, and which these are.

        Rows that others decided about since then stay as they are.
        """
        with self._lock:
            self._take_over()
            actions = self._person(name).actions
            if not actions:
                return 0, []
            made = actions.pop()
            back = {row: Change(c.seen, c.decision) for row, c in made.items()}
            shown = {row: _cells(found) for row, found in self.rows.of_ids(list(back)).items()}
            others = self.file.decide(back, shown)
            self._take_over()
            return len(back) - len(others), [row for row in back if row not in others]

    def known(self, row: int) -> Decision:
        """What is decided about a row."""
        with self._lock:
            return self._known.get(row, Decision())

    def _checked(self, decision: Decision, row: Mapping[str, Any]) -> Decision:
        """The decision with its label: the suggested one where none is named.

        Raises:
            RunError: the task does not know it, or the label is none.
        """
        verdict, label = decision
        if verdict not in ("", *self.verdicts):
            raise RunError(
                f"found the decision {verdict!r:.40}, expected one of {', '.join(self.verdicts)}."
            )
        if verdict != "fix" or self._task not in LABELLED:
            return Decision(verdict)
        label = label or str(row.get("suggested_label") or "")
        is_label = (
            label in self._classes
            if self._task == "classification"
            else parse_number(label) is not None
        )
        if not is_label:
            known = ", ".join(self._classes) or "a finite number"
            raise RunError(
                f"found {f'the label {label!r:.40}' if label else 'no label'} to be put in, "
                f"expected {'one of ' if self._classes else ''}{known}. Choose one."
            )
        return Decision(verdict, label)

    def _person(self, name: str) -> Person:
        return self._people.setdefault(name, Person())

    def _take_over(self) -> None:
        """Brings the table of decisions to what the file says now."""
        now = self.file.decisions()
        changed = {row: d for row, d in now.items() if self._known.get(row) != d}
        changed |= {row: Decision() for row in self._known if row not in now}
        if changed:
            self.rows.decide(changed)
        self._known = now


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a row as texts; the suggestion stands as the new label, too."""
    cells = {name: "" if value is None else str(value) for name, value in row.items()}
    return cells | {"decision": "", "new_label": cells.get("suggested_label", "")}
