"""The callback of a Trainer, by the calls that a Trainer makes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from stages.model.checkpoints import RecordCheckpoints
from stages.stage import ConfigError


class Training:
    """Saves a checkpoint every other step, as a Trainer does."""

    def __init__(
        self,
        folder: Path,
        callback: RecordCheckpoints,
        model: Any = None,
        arguments: type = SimpleNamespace,
        is_adapter: bool = True,
    ) -> None:
        self.args = arguments(output_dir=str(folder / "out"))
        self.callback, self.model = callback, model
        self.has_adapters = model is not None and is_adapter

    def go(self, start: int, stop: int) -> None:
        """Goes on from a step to another."""
        state = SimpleNamespace(global_step=start)
        self.callback.on_train_begin(self.args, state, None)
        while state.global_step < stop:
            rates = SimpleNamespace(get_last_lr=lambda: [1 / (1 + state.global_step)])
            self.callback.on_step_begin(self.args, state, None, lr_scheduler=rates)
            state.global_step += 1
            if state.global_step % 2 == 0:
                folder = Path(self.args.output_dir) / f"checkpoint-{state.global_step}"
                folder.mkdir(parents=True, exist_ok=True)
                if self.has_adapters:
                    (folder / "adapter_config.json").touch()
                self.callback.on_save(self.args, state, None, model=self.model)


def stages_of(out: Path) -> Any:
    return yaml.safe_load(out.read_text())["stages"]


@pytest.mark.parametrize(
    ("method", "field"), [("tracin", "gradients"), ("less", "steps")], ids=["tracin", "less"]
)
def test_a_training_that_is_resumed_goes_on_with_its_checkpoints(
    tmp_path: Path, method: Any, field: str
) -> None:
    out = tmp_path / "checkpoints.yaml"
    Training(tmp_path, RecordCheckpoints(out, method=method)).go(0, 6)
    # Another process; step 6 is taken again.
    Training(tmp_path, RecordCheckpoints(out, method=method)).go(4, 8)
    stages = stages_of(out)
    assert stages[method][field] == ["step_2", "step_4", "step_6", "step_8"]
    assert stages[method]["rates"] == pytest.approx([1 / 2, 1 / 4, 1 / 6, 1 / 8])
    assert stages["step_2"]["model"]["path"] == str(tmp_path / "out" / "checkpoint-2")


def test_a_training_that_is_killed_as_it_writes_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "checkpoints.yaml"
    Training(tmp_path, RecordCheckpoints(out)).go(0, 4)

    def cut(path: Path, text: str) -> None:
        path.write_bytes(b"")
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Path, "write_text", cut)
        with pytest.raises(KeyboardInterrupt):
            Training(tmp_path, RecordCheckpoints(out)).go(4, 6)
    Training(tmp_path, RecordCheckpoints(out)).go(4, 6)
    assert stages_of(out)["tracin"]["gradients"] == ["step_2", "step_4", "step_6"]


def test_a_new_training_has_no_checkpoints_of_an_older_one(tmp_path: Path) -> None:
    out = tmp_path / "checkpoints.yaml"
    training = Training(tmp_path, RecordCheckpoints(out))
    training.go(0, 4)
    training.go(0, 2)
    assert stages_of(out)["tracin"]["gradients"] == ["step_2"]


@pytest.mark.parametrize("is_named", [True, False])
def test_a_model_beside_the_training_is_found_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    for name, path in (("base", str(tmp_path / "base")), ("owner/name", "owner/name")):
        config = SimpleNamespace(name_or_path=name)
        model = SimpleNamespace(get_base_model=lambda own=config: SimpleNamespace(config=own))
        callback = RecordCheckpoints(tmp_path / "c.yaml", name if is_named else None)
        Training(tmp_path, callback, model).go(0, 2)
        assert stages_of(tmp_path / "c.yaml")["step_2"]["model"]["path"] == path


class DPOConfig(SimpleNamespace):
    """The arguments of TRL's DPO, by their class's name."""

    beta = 0.3


@pytest.mark.parametrize("is_adapter", [True, False])
def test_checkpoints_of_dpo_have_its_beta_and_reference(tmp_path: Path, is_adapter: bool) -> None:
    config = SimpleNamespace(config=SimpleNamespace(name_or_path="owner/begun"))
    model = SimpleNamespace(get_base_model=lambda: config, **vars(config))
    callback = RecordCheckpoints(tmp_path / "c.yaml", head="completion")
    Training(tmp_path, callback, model, DPOConfig, is_adapter).go(0, 4)
    stages = stages_of(tmp_path / "c.yaml")
    assert stages["tracin"]["gradients"] == ["step_2", "step_4"]
    for step in stages["tracin"]["gradients"]:
        margins = stages[stages[step]["margins"]]
        assert (margins["stage"], margins["beta"]) == ("answer_margin", 0.3)
        assert margins["model"] == stages[step]["model"]
        begun = None if is_adapter else {"path": "owner/begun", "head": "completion"}
        assert margins.get("reference") == begun
    assert "&id" not in (tmp_path / "c.yaml").read_text()
    # Another process: margins are written anew.
    Training(tmp_path, callback, model, DPOConfig, is_adapter).go(4, 6)
    assert len(stages_of(tmp_path / "c.yaml")) == 7


@pytest.mark.parametrize("other", [{"loss_type": ["ipo"]}, {"label_smoothing": 0.1}])
def test_another_loss_than_that_of_the_stages_is_refused(tmp_path: Path, other: Any) -> None:
    training = Training(tmp_path, RecordCheckpoints(tmp_path / "c.yaml"), None, DPOConfig)
    vars(training.args).update(other)
    with pytest.raises(ConfigError, match=r"loss_type.*expected sigmoid and 0"):
        training.go(0, 2)
    vars(training.args).update(loss_type=["sigmoid"], label_smoothing=0.0)
    training.go(0, 1)
