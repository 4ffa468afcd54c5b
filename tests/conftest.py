"""What all tests share; the fixtures themselves lie in tests/fixtures/, one file per subject."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = (
    "memory_inputs",
    "tiny_models",
    "gradients_by_loop",
    "runs",
    "pages",
    "plans",
    "processes",
    "web",
)
TESTS = Path(__file__).parent
# Longest first, so that no worker waits for the other at the end.
ORDER = ("system", "endtoend", "oracle", "unit")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of processes, and puts the rooms in order."""
    rooms = {item: item.path.relative_to(TESTS).parts[0] for item in items}
    for item, room in rooms.items():
        if room == "system" and not item.get_closest_marker("smoke"):
            item.add_marker("system")
    items.sort(key=lambda item: ORDER.index(rooms[item]))


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No hub, no cluster of somebody else's, maps and Ray's files in folders that are removed."""
    from processes import short_folder

    ray_folder = short_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("ASSAY_MAPS", str(tmp_path_factory.mktemp("maps")))
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
    shutil.rmtree(ray_folder, ignore_errors=True)
