import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.explain.interactive import interactive


def test_a_line_that_is_no_text_is_said_and_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9\ngood\n\nnever\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", lines)
    explained = []

    def explain(text: str, **_: Any) -> Any:
        if not text.isascii():
            raise RunError("found text that is not UTF-8, expected whole characters. Convert it.")
        explained.append(text)
        return SimpleNamespace(show=lambda is_json: None)

    run = SimpleNamespace(task=lambda: "classification", explain=explain)
    interactive(run, (), 3, 5, is_json=False)
    assert explained == ["good"]
    assert "not UTF-8" in capsys.readouterr().err
