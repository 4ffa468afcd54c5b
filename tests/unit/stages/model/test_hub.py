"""What a fingerprint knows of a model: the content of its files, never the name of their folder."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import stages.model.hub
from stages.model.hub import fingerprint
from stages.model.pretrained import load_config, load_trunk
from stages.model.spec import ModelSpec
from stages.stage import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def folder_of(place: Path, weights: str = "1") -> Path:
    """A folder that looks like a model's."""
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_text(weights)
    return place


def test_a_copy_elsewhere_is_the_same_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "one")
    first = fingerprint(ModelSpec(str(folder)))
    assert len(first) == 16
    int(first, 16)
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (copy / "README.md").write_text("no matter")
    assert fingerprint(ModelSpec(str(copy))) == first


# The formula is part of every key in every store.
def test_the_formula_stays(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "one")
    (folder / "tokenizer.json").write_text("words")
    assert fingerprint(ModelSpec(str(folder))) == "f147a061399b931c"


@pytest.mark.parametrize(
    "place",
    [
        "plain",
        "snapshots/latest",
        f"snapshots/{COMMIT}",
        "models--someone--model/snapshots/latest",
        f"models--someone--model/snapshots/{COMMIT[:39]}",
        f"models--someone--model/snapshots/{COMMIT.upper()}",
        f"backup/models--someone/refs/{COMMIT}",
    ],
)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "vocab.txt", "spiece.model", "source.spm"]
)
def test_changed_content_under_the_same_path_is_another_model(
    tmp_path: Path, place: str, name: str
) -> None:
    folder = folder_of(tmp_path / place)
    first = fingerprint(ModelSpec(str(folder)))
    (folder / name).write_text("2")
    assert fingerprint(ModelSpec(str(folder))) != first


def test_a_snapshot_in_the_cache_of_the_hub_is_its_commit(tmp_path: Path) -> None:
    snapshot = folder_of(tmp_path / "models--someone--model" / "snapshots" / COMMIT)
    assert fingerprint(ModelSpec(str(snapshot))) == COMMIT[:16]


def test_an_adapter_is_known_by_its_content(tmp_path: Path) -> None:
    snapshot = folder_of(tmp_path / "models--someone--model" / "snapshots" / COMMIT)
    adapter = tmp_path / "snapshots" / "adapter"
    adapter.mkdir(parents=True)
    seen = {fingerprint(ModelSpec(str(snapshot)))}
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        (adapter / name).write_text("1")
        (adapter / "adapter_config.json").touch()
        seen.add(fingerprint(ModelSpec(str(snapshot), adapter=str(adapter))))
    (adapter / "adapter_model.safetensors").write_text("2")
    seen.add(fingerprint(ModelSpec(str(snapshot), adapter=str(adapter))))
    assert len(seen) == 5


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"]
)
def test_a_chat_template_counts_where_the_corpus_holds_chats(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "one")
    spec = ModelSpec(str(folder))
    plain, chats = fingerprint(spec), fingerprint(spec, reads_chats=True)
    assert plain == chats
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{{ messages }}")
    assert fingerprint(spec) == plain
    changed = fingerprint(spec, reads_chats=True)
    (folder / name).write_text("{{ messages[0] }}")
    assert len({plain, changed, fingerprint(spec, reads_chats=True)}) == 3


def test_a_model_saved_anew_in_its_folder_is_another(saved: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("bert"), tmp_path / "snapshots" / "latest"))
    first = fingerprint(ModelSpec(str(folder)))
    shutil.copytree(saved("bert", num_labels=5), folder, dirs_exist_ok=True)
    assert fingerprint(ModelSpec(str(folder))) != first


PAD = {"added_tokens": [{"id": 2, "content": "<pad>"}]}
CLASSIFIER = ["LlamaForSequenceClassification"]


@pytest.mark.parametrize(
    ("config", "told", "is_other"),
    [
        ({}, {"truncation_side": "left"}, True),
        ({}, {"truncation_side": "right"}, False),
        ({"is_encoder_decoder": True}, {}, True),
        ({"architectures": CLASSIFIER, "pad_token_id": 1}, {"pad_token": "<pad>"}, True),
        (
            {"architectures": CLASSIFIER, "pad_token_id": 1},
            {"pad_token": {"content": "<pad>"}},
            True,
        ),
        ({"architectures": CLASSIFIER, "pad_token_id": 2}, {"pad_token": "<pad>"}, False),
        ({"architectures": CLASSIFIER}, {"pad_token": "<pad>"}, False),
        ({"architectures": ["LlamaModel"], "pad_token_id": 1}, {"pad_token": "<pad>"}, False),
        ({"model_type": "gemma3_text"}, {}, True),
        ({"model_type": "xglm", "scale_embedding": True}, {}, True),
        ({"model_type": "xglm", "scale_embedding": False}, {}, False),
    ],
)
@pytest.mark.parametrize("place", ["plain", f"models--someone--model/snapshots/{COMMIT}"])
def test_models_that_were_misread_once_have_another_fingerprint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: Any,
    told: Any,
    is_other: bool,
    place: str,
) -> None:
    folder = folder_of(tmp_path / place)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "tokenizer.json").write_text(json.dumps(PAD))
    found = fingerprint(ModelSpec(str(folder)))
    monkeypatch.setattr(stages.model.hub, "_misreading", lambda _: 0)
    assert (found != fingerprint(ModelSpec(str(folder)))) == is_other


@pytest.mark.parametrize(
    ("config", "is_other"),
    [
        ({"init_lora_weights": True}, False),
        ({"init_lora_weights": "pissa"}, True),
        ({"modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"}, True),
        ({"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}, False),
    ],
)
def test_adapters_that_were_misread_once_have_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], is_other: bool
) -> None:
    folder = folder_of(tmp_path / "model")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    spec = ModelSpec(str(folder), adapter=str(tmp_path))
    found = fingerprint(spec)
    monkeypatch.setattr(stages.model.hub, "_was_adapter_misread", lambda _: False)
    assert (found != fingerprint(spec)) == is_other


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 10**6}, {"num_labels": 10**8}, {"x": {"n_layer": 1e9}}]
)
def test_a_config_of_too_many_layers_is_refused_at_once(
    encoder_folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    shutil.copytree(encoder_folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    began = time.process_time()
    for load in (load_config, load_trunk):
        with pytest.raises(ModelError, match=r"config.json, expected at most .+ Correct"):
            load(ModelSpec(str(tmp_path / "model")))
    assert time.process_time() - began < 1
