"""A model folder's own Python code: it runs where the YAML says so, and nowhere else."""

import ast
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel, BertTokenizerFast
Path({marker!r}).write_text("ran")
class Config(BertConfig):
    model_type = {kind!r}
class Model(BertModel):
    config_class = Config
class Tokenizer(BertTokenizerFast):
    pass
"""
TOKENIZER = {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}


@pytest.fixture(params=["of its own", "bert"])
def hostile(
    request: pytest.FixtureRequest,
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path]:
    """A model folder with code, of a kind that transformers lacks or has; the file it writes."""
    folder, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(encoder_folder, folder)
    kind = "bert" if request.param == "bert" else f"own_{tmp_path.name}"
    (folder / "own.py").write_text(CODE.format(marker=str(marker), kind=kind))
    mapped = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    for name, changes in {
        "config.json": {"auto_map": mapped, "model_type": kind},
        "tokenizer_config.json": {"auto_map": TOKENIZER},
    }.items():
        read = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**read, **changes}))
    # transformers asks on stdin where nobody has told it, and takes a `y`.
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    return folder, marker


def configured(write_config: Any, folder: Path, model: dict[str, Any]) -> Path:
    return write_config(
        folder, 12, 0, model=model, queries=None, stages={"embedding": {}}, shard_size=6
    )


def test_no_code_of_a_model_runs_unasked(
    assay: Any, complaint: Any, write_config: Any, hostile: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, marker = hostile
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    config = configured(write_config, tmp_path, {"path": str(folder), "max_length": 24})
    if kind == "bert":
        # transformers has such a model itself, so that the folder's code is not needed.
        assay("run", config)
    else:
        said = complaint("run", config)
        assert "own.py" in said
        assert "trust_remote_code: true" in said
    assert not marker.exists()


def test_code_runs_where_the_yaml_says_so(
    assay: Any, write_config: Any, hostile: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, marker = hostile
    model = {"path": str(folder), "max_length": 24, "trust_remote_code": True}
    config = configured(write_config, tmp_path, model)
    planned = assay("plan", config)
    assert "Python code runs with your rights" in " ".join(planned.output.split())
    assay("run", config)
    assert marker.exists()
    # The code is part of the model: another code computes again.
    (folder / "own.py").write_text((folder / "own.py").read_text() + "# changed\n")
    again = json.loads(assay("plan", config, "--json").stdout)
    (embedding,) = [row for row in again["stages"] if row["stage"] == "embedding"]
    assert "model changed" in str(embedding["reasons"])
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["model"]["trust_remote_code"] is True


def test_every_loader_is_told_whether_code_may_run() -> None:
    calls = 0
    for file in sorted((ROOT / "stages").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr not in ("from_pretrained", "from_config") or "peft" in owner:
                continue
            said = {keyword.arg or ast.unparse(keyword.value) for keyword in node.keywords}
            assert said & {"trust_remote_code", "loading(model)", "trust"}, (file, node.lineno)
            calls += 1
    assert calls >= 6


def test_code_does_not_run_because_another_run_says_so(
    assay: Any, complaint: Any, write_config: Any, hostile: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = hostile
    model = {"path": str(folder), "max_length": 24, "trust_remote_code": True}
    config = write_config(
        tmp_path, 12, 4, model=model, stages={"embedding": {}, "similarity": {}}, shard_size=6
    )
    assay("run", config)
    asked = ["--text", "a film", "--method", "similarity"]
    assert "similarity" in assay("explain", tmp_path / "run", *asked).stdout
    unpacked = tmp_path / "unpacked"
    shutil.copytree(tmp_path / "run", unpacked)
    assert "trust_remote_code" in complaint("explain", unpacked, *asked)
    # To build its catalog is no consent to run code.
    assay("status", unpacked)
    assert "trust_remote_code" in complaint("explain", unpacked, *asked)
