"""The models of a run that read its texts, and the rows that one of them cannot read.

A row must be readable by every model that reads it, or it is rejected: a refusal of one model
would stop its stage. Stages that read plain texts, whatever the head, refuse no conversation.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stages.corpus.preferences import SIDE_FORMS, SIDES, side_columns
from stages.model.refusals import reading_fingerprint
from stages.model.spec import ModelSpec
from stages.stage import ModelError, Stage

_LOADED: dict[str, Any] = {}
"""The models that this process was asked about last, and their tokenizers: a `Readers` goes to
tasks, one after the other, as the names of its models."""


class Readers:
    """Models that read texts; tokenizers are loaded when the first row is asked about."""

    def __init__(self, stages: Iterable[Stage] = ()) -> None:
        """Finds the models of `stages`, all stages of a run, those that are added included.

        A model that cannot be found is left to the plan, which raises once it has checked stages.
        """
        self._models: dict[tuple[str, str], ModelSpec] = {}
        for stage in stages:
            model: ModelSpec | None = stage.model_ref
            if model is None or "text" not in stage.reads:
                continue
            if "model.head" in stage.outside_key:
                trusts = model.trust_remote_code
                model = ModelSpec(model.path, model.revision, trust_remote_code=trusts)
            with contextlib.suppress(ModelError):
                self._models.setdefault((model.head, reading_fingerprint(model)), model)

    @property
    def key(self) -> list[list[str]]:
        """What refusals depend on: the kind of each model, and how it reads; empty without any."""
        return sorted([head, reading] for head, reading in self._models)

    def refusals(
        self, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> list[str | None]:
        """Why each row is refused, with the model's path where there are several; None elsewhere.

        `form` is the content of the text columns: "text", "prompt_completion" or "messages".
        """
        refused: list[str | None] = [None] * len(texts)
        loaded = self._loaded()
        for model, head, tokenizer in loaded:
            where = f"{model.path}: " if len(loaded) > 1 else ""
            for row, reason in enumerate(_refusals(head, tokenizer, texts, pairs, form)):
                if reason is not None and refused[row] is None:
                    refused[row] = where + reason
        return refused

    @property
    def learns_completions(self) -> bool:
        """Whether one of the models is trained to write completions."""
        return any(map(_learns_completions, self._models.values()))

    def lengths(
        self, texts: Sequence[str], pairs: Sequence[str | None], form: str
    ) -> dict[str, np.ndarray]:
        """The lengths of completions (`stages.model.lengths`), by the `reading` of each model.

        Only models that are trained to write them measure them.
        """
        from stages.model.lengths import row_lengths  # as in `_load`

        return {
            reading: row_lengths(tokenizer, texts, pairs, form)
            for (_, reading), (model, _, tokenizer) in zip(
                self._models, self._loaded(), strict=True
            )
            if _learns_completions(model)
        }

    def _loaded(self) -> list[tuple[ModelSpec, Any, Any]]:
        """Each model with its head and tokenizer."""
        if _LOADED.get("models") != self._models:
            _LOADED.update(models=self._models, loaded=_load(self._models.values()))
        loaded: list[tuple[ModelSpec, Any, Any]] = _LOADED["loaded"]
        return loaded


def _learns_completions(model: ModelSpec) -> bool:
    return "completion" in model.kind.tasks


def _refusals(
    head: Any, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None], form: str
) -> list[str | None]:
    """Why a model refuses each row; of a pair, each of which it reads, the first side's reason."""
    if form not in SIDE_FORMS:
        refused: list[str | None] = head.refusals(tokenizer, texts, pairs, form)
        return refused
    of_sides = head.refusals(tokenizer, *side_columns(texts, pairs, form), SIDE_FORMS[form])
    found: list[str | None] = []
    for first in range(0, len(of_sides), 2):
        told = zip(SIDES, of_sides[first : first + 2], strict=True)
        found.append(next((f"{side}: {reason}" for side, reason in told if reason), None))
    return found


def _load(models: Iterable[ModelSpec]) -> list[tuple[ModelSpec, Any, Any]]:
    # Imported here: it takes seconds, and a corpus that was read before needs no tokenizer.
    from stages.model.heads.head import head_of
    from stages.model.pretrained import load_tokenizer

    return [(model, head_of(model), load_tokenizer(model)) for model in models]
