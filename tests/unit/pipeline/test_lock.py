"""One driver per run: who holds the lock is told, and a lock that nobody holds is none."""

import os
from pathlib import Path

import pytest
from runs import check_grammar

import pipeline.lock
from pipeline.errors import RunFolderError
from pipeline.lock import driver_of, hold


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.lock, "ASK_S", 0.02)


def test_a_second_driver_is_told_who_works(tmp_path: Path) -> None:
    assert driver_of(tmp_path) is None
    with hold(tmp_path):
        driver = driver_of(tmp_path)
        assert driver is not None
        assert driver.pid == os.getpid()
        with pytest.raises(RunFolderError, match=f"process {os.getpid()} on ") as caught:
            with hold(tmp_path):
                pass
        check_grammar(str(caught.value))
    assert driver_of(tmp_path) is None
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", '{"pid": 3}', '{"pid": 1, "host": "h", "since": "s"}'])
def test_a_file_that_a_killed_driver_left_is_no_lock(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.lock").write_text(text)
    assert driver_of(tmp_path) is None
    with hold(tmp_path):
        assert driver_of(tmp_path) is not None


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(pipeline.lock.fcntl, "flock", refuse)
    with hold(tmp_path):
        pass
    assert "has no locks" in caplog.text
