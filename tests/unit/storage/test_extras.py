import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from storage.extras import install_command
from storage.remote import EXTRAS, open_file_system
from storage.schema import StorageError

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
DECLARED = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", DECLARED)
def test_a_command_installs_what_the_extra_declares_for_this_python(extra: str) -> None:
    python, *words = shlex.split(install_command(extra, "--no-deps"))
    assert python == sys.executable
    assert words == ["-m", "pip", "install", "--no-deps", *DECLARED[extra]]


def test_every_extra_that_is_told_of_is_declared() -> None:
    assert set(EXTRAS.values()) < set(DECLARED)
    assert DECLARED["lora"]
    assert DECLARED["demo"]


def test_a_protocol_without_its_package_names_that_package() -> None:
    with pytest.raises(StorageError, match=r"pip install 'adlfs>=.*'`\.$"):
        open_file_system("abfs://box/folder")
    with pytest.raises(StorageError, match=r"Correct `store:`\.$"):
        open_file_system("nowhere://box/folder")
