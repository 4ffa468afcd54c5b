"""The small data sets of configs/ are what their script makes."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_script_makes_the_files_again(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("example_data", ROOT / "scripts/example_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    there = {name: (ROOT / "configs" / "data" / name).read_bytes() for name in made}
    assert len(made) == 12
    assert made == there
