"""The file of a Ray cluster, by Ray's own checks of such files; no cloud is asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.config import read_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "configs/clusters/aws.yaml").read_text())
    return loaded


def test_ray_takes_the_file(cluster: dict[str, Any]) -> None:
    known = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert set(cluster) <= set(known["properties"])
    validate_config(prepare_config(cluster))


def test_a_misspelt_field_is_found(cluster: dict[str, Any]) -> None:
    """The check is one that can fail."""
    cluster["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepare_config(cluster))


def test_the_run_asks_for_nodes_that_the_cluster_has(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings = read_config(Path("configs/ray_cluster.yaml")).ray
    kinds = cluster["available_node_types"]
    declared = {name for kind in kinds.values() for name in kind["resources"]}
    asked = {name for wanted in settings.stages.values() for name in wanted.resources}
    assert asked
    assert asked <= declared
    assert settings.wait_minutes > 0
    # A head that takes no task cannot be what a run waits for.
    assert kinds[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert all(kind.get("min_workers", 0) == 0 for kind in kinds.values())
