"""What is said of a node with other packages than this machine's."""

import pytest
from runs import check_grammar

from pipeline.errors import TaskError
from pipeline.node_versions import PACKAGES, check_versions, installed
from pipeline.task import Worker


def test_a_worker_tells_the_versions_of_its_process() -> None:
    import numpy
    import torch

    node, versions = Worker().versions()
    assert node
    assert versions == installed()
    assert set(versions) == {"python", *PACKAGES}
    assert versions["numpy"] == numpy.__version__
    assert versions["torch"] == torch.__version__.partition("+")[0]
    check_versions(versions, node)


@pytest.mark.parametrize(
    ("other", "found", "advice"),
    [
        ({"torch": "1.0.0"}, "torch 1.0.0", "pip install torch=="),
        ({"torch": "1.0.0", "pyarrow": "2.0"}, "pyarrow 2.0, torch 1.0.0", "pip install pyarrow=="),
        ({"pyarrow": None}, "pyarrow none", "pip install pyarrow=="),
        ({"python": "3.8"}, "python 3.8", "Use the same Python there"),
        ({"python": "3.8", "numpy": "1.0"}, "python 3.8, numpy 1.0", ", and use the same Python"),
    ],
)
def test_other_versions_are_refused_with_both(
    other: dict[str, str | None], found: str, advice: str
) -> None:
    versions = {name: v for name, v in {**installed(), **other}.items() if v is not None}
    with pytest.raises(TaskError) as caught:
        check_versions(versions, "10.0.0.3")
    said = str(caught.value)
    check_grammar(said)
    assert f"found {found} on the node 10.0.0.3" in said
    assert all(f"{name} {installed()[name]}" in said for name in other)
    assert advice in said


def test_builds_of_one_version_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes with and without GPUs have builds of their own."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.1+cpu")
    here = installed()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.1+cu126")
    check_versions(here, "a node")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9.0+cpu")
    with pytest.raises(TaskError):
        check_versions(here, "a node")
