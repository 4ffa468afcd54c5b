"""A disk that is full, or may not be written to, is one message; with room, the command goes on."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from runs import assay, check_grammar, complaint

from pipeline.errors import told

STAGES = {"embedding": {}, "probe": {}}


@contextmanager
def limited(n_bytes: int) -> Iterator[None]:
    """Within, no file of this process may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n_bytes", [0, 1_500, 20_000])
def test_a_full_disk_is_a_message_and_the_run_goes_on_with_room(
    n_bytes: int, write_config: Any, tmp_path: Path
) -> None:
    """Nothing can be written; the shards of the corpus cannot; the catalog cannot."""
    config = write_config(tmp_path, n_examples=48, n_queries=8, stages=STAGES)
    with limited(n_bytes):
        said = complaint("run", config)
    assert "cannot be written" in said
    assert "oom" in said  # make room, or with room
    assert [f for f in tmp_path.rglob(".*.tmp*")] == []
    assay("run", config)
    assert json.loads(assay("status", tmp_path / "run", "--json").stdout)["is_whole"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("place", ["run", "store"])
def test_a_quota_and_a_read_only_disk_are_messages(
    code: int, place: str, write_config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the folder of the run, or of the store: the calls that write there are refused."""
    config = write_config(tmp_path, n_examples=48, n_queries=8, stages=STAGES)
    store, real = str(tmp_path / "run" / "store"), os.replace

    def refused(source: Any, target: Any) -> None:
        if str(target).startswith(store) == (place == "store"):
            raise OSError(code, os.strerror(code), str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", refused)
    said = complaint("run", config)
    assert os.strerror(code) in said
    assert str(tmp_path / "run") in said


def test_a_run_whose_folder_is_a_file_is_told_so(write_config: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "run").write_text("")
    assert "cannot be made" in complaint("run", config)


def test_other_errors_are_no_advice_about_disks() -> None:
    assert told(ValueError("x")) is None
    assert told(FileNotFoundError(errno.ENOENT, "none", "x")) is None
    check_grammar(str(told(OSError(errno.ENOSPC, "No space left on device", "x"))))
