import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from stages.model.heads.probe import read_probe
from stages.model.hub import fingerprint
from stages.model.measurement import cross_entropy
from stages.model.networks import mean_pool
from stages.model.spec import ModelSpec
from stages.stage import ConfigError, DataError, ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_mean_pool_ignores_padding() -> None:
    hidden = torch.tensor(
        [[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0], [9.0, 9.0], [1, 1]]]
    )
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert mean_pool(hidden, mask).tolist() == [[2.0, 4.0], [5.0, 5.0]]


def test_cross_entropy_is_exact_where_the_model_is_sure() -> None:
    logits = torch.tensor([[20.0, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 1]))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-20)), math.log(2)], rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    # In float32, 1 - p would be 0 here.
    assert gradient[0, 0].item() == pytest.approx(-1 / (1 + math.exp(20)), rel=1e-6)


@pytest.mark.parametrize("path", ["./missing", "/missing/model", "some/deep/folder", "missing"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(ModelError, match=f"{path}: found no such folder.*Correct model.path"):
        fingerprint(ModelSpec(path))


def test_a_folder_needs_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"found no config.json"):
        fingerprint(ModelSpec(str(tmp_path)))


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(ModelError, match="found no installed package .* Install it, or correct"):
        fingerprint(ModelSpec("package:no_such_package/model"))


def test_an_unreachable_hub_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"owner/name: found neither .* \(OSError\)"):
        fingerprint(ModelSpec("owner/name"))


def test_a_hub_id_without_safetensors_asks_for_bin(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, "*.bin" in allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    fingerprint(ModelSpec("owner/name", revision="v1"))
    assert asked == [("owner/name", "v1", False)]
    (folder / "model.safetensors").unlink()
    fingerprint(ModelSpec("owner/name"))
    assert asked[1:] == [("owner/name", None, False), ("owner/name", None, True)]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"head": "random"}, "num_labels: None"),
        ({"head": "probe", "num_labels": 2}, "num_labels: 2"),
        ({"head": "random", "num_labels": 0}, "num_labels: 0"),
        ({"max_length": 2}, "max_length: 2"),
    ],
)
def test_fields_that_cannot_be_used(fields: dict, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        ModelSpec("x", **fields)


def test_a_probe_is_read_in_class_order() -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array([3.0, 4.0, 1.0, 2.0], pa.float32()), 2)
    probe = pa.table({"class": [1, 0], "weight": lists, "bias": pa.array([6.0, 5.0], pa.float32())})
    weight, bias = read_probe(probe)
    assert weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert bias.tolist() == [5.0, 6.0]
    with pytest.raises(DataError, match=r"found classes \[1\]"):
        read_probe(probe.slice(0, 1))
    # A regression's probe has one row.
    assert read_probe(probe.slice(1))[0].tolist() == [[1.0, 2.0]]
