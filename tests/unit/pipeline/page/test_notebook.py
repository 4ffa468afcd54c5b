from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.page import notebook

LONG = "a complaint about something that took place in the branch office: "


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run that judged labels, and has nothing else."""
    given = SimpleNamespace(
        task="classification", judged="label_issues", values=None, has_texts=False
    )
    given.instance = lambda _: None
    monkeypatch.setattr(notebook, "Subject", lambda _: given)
    return given


@pytest.mark.parametrize("names", [["a", "b"], [f"{LONG}hours", f"{LONG}staff", "x" * 400, "b"]])
def test_every_class_has_a_column(
    subject: Any, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    cells = {(name, name): {"n": at, "flagged": 0} for at, name in enumerate(names)}
    found = SimpleNamespace(names=names, cells=cells)
    monkeypatch.setattr(notebook, "labels", lambda _: found)
    shown = notebook.show(None, "matrix").data
    assert shown.shape == (len(names), len(names) + 1)
    assert [shown.iloc[at, at + 1] for at in range(len(names))] == [*map(str, range(len(names)))]


def test_a_column_named_as_markup_is_text(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(rows=[{"name": "<i>", "n": 1}], has_flags=False, has_values=False)
    monkeypatch.setattr(notebook, "groups", lambda *_: found)
    assert "<b" not in notebook.show(None, by="<b>x</b>").to_html()
