"""The checkpoints that a Trainer of transformers or TRL saves, as stages of a run."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import TrainerCallback

from stages.stage import ConfigError

ADAPTER = "adapter_config.json"


class RecordCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Writes a file with a `gradient` for every checkpoint, and `tracin` over all of them.

    With `method="less"` an `adam_step` for every checkpoint, `less` over all of them, and
    `query_relevance` by it: then rows are chosen as LESS does, and the training is its warm-up.

    `Trainer(..., callbacks=[RecordCheckpoints("checkpoints.yaml", head="completion")])`; its
    `stages:` go into the YAML of a run over the rows that were trained on. Of a LoRA training the
    checkpoints are adapters of the model `path`; else the Trainer is given the tokenizer, which is
    then saved with them (`processing_class=tokenizer`). Written anew with every checkpoint: a
    training that is killed leaves those it had, and one that is resumed goes on with them.

    Of TRL's DPO each checkpoint has an `answer_margin`, with the beta of the training; the
    reference is the model that adapters are of, or else the one that the training began with.

    Source: TracInCP, Pruthi et al. 2020, arXiv:2002.08484, eq. 3: each checkpoint counts by the
    learning rate at which it was left.
    """

    def __init__(
        self,
        out: str | Path,
        path: str | None = None,
        method: Literal["tracin", "less"] = "tracin",
        **model: Any,
    ) -> None:
        """Says where to write, and what `model:` says of the model beside its path.

        Args:
            out: The YAML file.
            path: The model that adapters are of, or the reference of DPO; by default the one that
                is trained.
            method: What the checkpoints are for.
            model: Fields of `model:`, such as `head` and `max_length`.
        """
        self._out, self._path, self._model = Path(out), path, model
        self._is_less = method == "less"
        self._found: dict[str, tuple[dict[str, Any], float]] = {}
        self._rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Takes up the checkpoints of the training that is resumed; of a new one there are none.

        Raises:
            ConfigError: it is of DPO with another loss than stages have.
        """
        if _is_dpo(args):
            _check_loss(args)
        before = _written(self._out) if state.global_step else ()
        self._found = {f"step_{n}": found for n, found in before if n <= state.global_step}

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Takes note of the rate of the step; when a checkpoint is saved it is the next one's."""
        (self._rate, *_) = map(float, given["lr_scheduler"].get_last_lr())

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Adds one checkpoint, and drops those that the Trainer has removed."""
        folder = Path(args.output_dir).resolve() / f"checkpoint-{state.global_step}"
        model = {**self._model, "path": str(folder)}
        if (folder / ADAPTER).is_file():
            model |= {"path": self._begun(given["model"].get_base_model()), "adapter": str(folder)}
        found = {**self._found, f"step_{state.global_step}": (model, self._rate)}
        # In the first step of a warm-up the rate is 0: nothing has been learned.
        self._found = {n: (m, r) for n, (m, r) in found.items() if _is_there(m) and r > 0}
        stage = "adam_step" if self._is_less else "gradient"
        stages: dict[str, Any] = {
            name: {"stage": stage, "model": model} for name, (model, _) in self._found.items()
        }
        if _is_dpo(args) and not self._is_less:
            stages = self._with_margins(stages, args.beta, given["model"])
        names, rates = list(self._found), [rate for _, rate in self._found.values()]
        if names and self._is_less:
            stages["less"] = {"steps": names, "rates": rates}
            stages["query_relevance"] = {"features": "less"}
        elif names:
            stages["tracin"] = {"gradients": names, "rates": rates}
        # Whole or not at all: a training that is killed now is resumed by it.
        begun = self._out.with_name(f".{self._out.name}.{os.getpid()}.tmp")
        # By way of JSON: what two stages share is written out in both.
        written = json.loads(json.dumps({"stages": stages}))
        begun.write_text(yaml.safe_dump(written, sort_keys=False))
        begun.replace(self._out)

    def _with_margins(self, stages: Mapping[str, Any], beta: float, trained: Any) -> dict[str, Any]:
        """Each gradient behind the margins that its loss is of."""
        found: dict[str, Any] = {}
        for name, stage in stages.items():
            margins = {"stage": "answer_margin", "model": stage["model"], "beta": float(beta)}
            if "adapter" not in stage["model"]:
                margins["reference"] = {**self._model, "path": self._begun(trained)}
            found |= {f"margins_{name}": margins, name: {**stage, "margins": f"margins_{name}"}}
        return found

    def _begun(self, model: Any) -> str:
        """Where the model lies that the training began with."""
        path = str(self._path or model.config.name_or_path)
        # In a YAML a path would be that of a folder beside it.
        local = Path(path).expanduser()
        return str(local.resolve()) if local.is_dir() else path


def _is_dpo(args: Any) -> bool:
    """Whether these are the arguments of TRL's DPO, which need not be installed."""
    return any(cls.__name__ == "DPOConfig" for cls in type(args).__mro__)


def _check_loss(args: Any) -> None:
    kinds = getattr(args, "loss_type", "sigmoid")
    smoothing = getattr(args, "label_smoothing", 0.0)
    if kinds not in ("sigmoid", ["sigmoid"]) or smoothing:
        raise ConfigError(
            f"record_checkpoints: found a DPO training with loss_type: {kinds}, label_smoothing: "
            f"{smoothing}, expected sigmoid and 0, the loss whose gradients a run takes. Train "
            "with it, or leave the callback out."
        )


def _written(out: Path) -> Iterator[tuple[int, tuple[dict[str, Any], float]]]:
    """The step, the model and the rate of each checkpoint in a file, where there is one."""
    read = yaml.safe_load(out.read_text()) if out.is_file() else {}
    stages = read.get("stages", {})
    for name, field in (("tracin", "gradients"), ("less", "steps")):
        over = stages.get(name, {field: [], "rates": []})
        for step, rate in zip(over[field], over["rates"], strict=True):
            yield int(step.removeprefix("step_")), (stages[step]["model"], rate)


def _is_there(model: Mapping[str, Any]) -> bool:
    return Path(model.get("adapter", model["path"])).is_dir()
