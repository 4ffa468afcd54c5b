"""Models are checked at `plan` and before the first shard, once each, and refused in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import write_lines, write_run

import stages.model.check
from pipeline import api, open_run
from pipeline.errors import RunError
from pipeline.progress import Progress

TEXTS = ["good film", "a very dull plot", "the film was slow but good", "not bad", "bright"] * 2


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run over ten texts with the model in `folder`."""

    def write(folder: Path, stages: Any, task: str = "classification", **model: Any) -> Path:
        rows = [{"text": t, "label": at % 3, "id": at} for at, t in enumerate(TEXTS)]
        rows = [{**row, "question": "good ?"} for row in rows]
        source = {"path": write_lines(tmp_path / "rows.jsonl", rows), "id": "id", "task": task}
        if task == "question_answering":
            source |= {"text": "text", "text_b": "question"}
        return write_run(
            tmp_path,
            corpus=source,
            queries={**source, "split": "train[:3]"},
            model={"path": str(folder), "max_length": 24, **model},
            stages=stages,
        )

    return write


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The heads of the models that are checked, in turn."""
    seen: list[str] = []
    check = stages.model.check.check_model

    def checking(model: Any, form: str) -> None:
        seen.append(model.head)
        check(model, form)

    monkeypatch.setattr(stages.model.check, "check_model", checking)
    return seen


def test_a_model_is_checked_once_for_all_stages_and_runs(
    saved: Any, config_of: Any, assay: Any, checked: list[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved("bert", "SequenceClassification"), tmp_path / "model"))
    stages = {"embedding": {}, "prediction": {}, "gradient": {"projection": {"dim": 8}}}
    config = config_of(folder, stages, head="checkpoint")
    # Without a store there is no place for a note, and planning makes none.
    for _ in range(2):
        assay("plan", config)
        assert checked == ["probe", "checkpoint"]
        assert not (tmp_path / "run/store").exists()
        checked.clear()
    assay("run", config)
    assert checked == ["probe", "checkpoint"]
    shutil.rmtree(tmp_path / "run/store/gradient")
    shutil.rmtree(tmp_path / "run/store/embedding")
    assay("plan", config)
    assay("run", config)
    assert checked == ["probe", "checkpoint"]
    # The rows are there, so the model is not run: no other check of it is due.
    assay("plan", config, "--set", "model.max_length=24")
    assert checked == ["probe", "checkpoint"]
    # Another length is another question, and so is another model in the same folder.
    assay("plan", config, "--set", "model.max_length=20")
    assert checked == ["probe", "checkpoint"] * 2
    other = saved("bert", "SequenceClassification", initializer_range=0.3)
    shutil.copytree(other, folder, dirs_exist_ok=True)
    assay("plan", config)
    assert checked == ["probe", "checkpoint"] * 3


def broken(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("kind", "task", "model", "changes", "said"),
    [
        ("bert", "", {"max_length": 200}, {}, "at most 160"),
        ("bert", "", {}, {"vocab_size": 99}, "word_embeddings.weight"),
        ("bert", "", {}, {"hidden_size": 36}, "of shape"),
        (
            "bert",
            "SequenceClassification",
            {"head": "checkpoint"},
            {"id2label": {"0": "0", "1": "1"}},
            "'2'",
        ),
        ("gpt2", "", {"head": "checkpoint"}, {}, "found no weights for score"),
        ("t5", "", {"head": "completion"}, {}, "causal language model"),
    ],
)
def test_what_does_not_hold_is_refused_before_anything_is_computed(
    saved: Any,
    config_of: Any,
    complaint: Any,
    tmp_path: Path,
    kind: str,
    task: str,
    model: Any,
    changes: Any,
    said: str,
) -> None:
    folder = Path(shutil.copytree(saved(kind, task), tmp_path / "model"))
    broken(folder, **changes)
    is_completion = model.get("head") == "completion"
    stages = {"embedding": {}} if not task and not model.get("head") else {"prediction": {}}
    config = config_of(folder, stages, "completion" if is_completion else "classification", **model)
    for command in ("plan", "run"):
        told = complaint(command, config)
        assert said in told
        assert "shard 0" not in told
    assert not (tmp_path / "run/store/embedding").exists()
    assert not (tmp_path / "run/store/prediction").exists()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_are_read_as_encoders(
    saved: Any, config_of: Any, assay: Any, tmp_path: Path, kind: str
) -> None:
    stages = {
        "prediction": {},
        "gradient": {"projection": {"dim": 8}},
        "ig": {"steps": 4, "baseline": "pad"},
        "occlusion": {"baseline": "pad"},
        "attention": {},
    }
    config = config_of(saved(kind), stages, head="random", num_labels=3)
    assay("run", config)
    run = open_run(tmp_path / "run")
    # Occlusion by another token moves the output, so that words do reach it.
    ((moved, count),) = run.sql(
        "SELECT max(abs(score)), count(DISTINCT method) FROM tokens"
    ).fetchall()
    assert moved > 1e-3
    assert count == 3


def test_a_saved_head_of_an_encoder_decoder_predicts_and_has_no_token_scores(
    saved: Any, config_of: Any, assay: Any, complaint: Any, tmp_path: Path
) -> None:
    folder = saved("bart", "SequenceClassification")
    assay("run", config_of(folder, {"prediction": {}}, head="checkpoint"))
    assert open_run(tmp_path / "run").sql("SELECT count(*) FROM predictions").fetchall() == [(13,)]
    for stage in ("ig", "occlusion", "attention", "udig"):
        said = complaint("plan", config_of(folder, {stage: {}}, head="checkpoint"))
        assert "encoder-decoder" in said


def test_label_words_are_told_in_the_order_of_the_classes(
    saved: Any, config_of: Any, assay: Any, complaint: Any
) -> None:
    folder = saved("roberta", "MaskedLM")
    prompt = {"template": "{text} It was {mask}.", "label_words": ["good", "bad", "slow"]}
    planned = assay(
        "plan", config_of(folder, {"prediction": {}}, head="label_words", prompt=prompt)
    )
    assert "0 = good, 1 = bad, 2 = slow" in planned.stdout
    prompt["label_words"] = ["good", "bad"]
    config = config_of(folder, {"prediction": {}}, head="label_words", prompt=prompt)
    assert "found 2 label_words" in complaint("plan", config)


def test_a_model_that_changed_in_its_folder_is_computed_anew(
    saved: Any, config_of: Any, assay: Any, tmp_path: Path
) -> None:
    """Embeddings, the probe on them and its logits are those of the new weights, as if alone."""
    folder = Path(shutil.copytree(saved("bert"), tmp_path / "snapshots/latest"))
    config = config_of(folder, {"prediction": {}})
    assay("run", config)
    shutil.copytree(saved("bert", initializer_range=0.3), folder, dirs_exist_ok=True)
    assay("run", config)
    assay("run", config, "--set", f"run={tmp_path / 'alone'}")
    found, wanted = (
        open_run(tmp_path / name).sql("SELECT id, logits FROM predictions ORDER BY id").fetchall()
        for name in ("run", "alone")
    )
    assert found == wanted


class Swapping(Progress):
    """Puts the weights of another model in place once the run is planned."""

    def __init__(self, other: Path, folder: Path) -> None:
        self._other, self._folder = other, folder

    def planned(self, plan: Any) -> None:
        shutil.copytree(self._other, self._folder, dirs_exist_ok=True)


def test_rows_of_weights_that_changed_meanwhile_are_not_kept(
    saved: Any, config_of: Any, tmp_path: Path
) -> None:
    """Neither in a run at work, where they would count as those of the planned weights ever after,
    nor beside the stored rows where a new text is explained."""
    other = saved("bert", initializer_range=0.3)
    folder = Path(shutil.copytree(saved("bert"), tmp_path / "model"))
    stages = {"gradient": {"projection": {"dim": 8}}, "tracin": {}}
    config = config_of(folder, stages)
    with pytest.raises(RunError, match=r"embedding, example shard 0: .*changed since"):
        api.run(config, progress=Swapping(other, folder))
    assert not list((tmp_path / "run" / "store").glob("embedding/*.parquet"))
    shutil.copytree(saved("bert"), folder, dirs_exist_ok=True)
    done = api.run(config)
    done.explain(text="a good film", methods=["tracin"])
    shutil.copytree(other, folder, dirs_exist_ok=True)
    with pytest.raises(RunError, match="found other files of the model"):
        open_run(done.folder.path).explain(text="a good film", methods=["tracin"])
