"""The check of the models of a run before its first shard, once for each model.

That a model passed is noted in the store, under a hash of all that decides it, so that it is loaded
for this once. Random words stand for the corpus (`stages.model.check`): what is known of a model
then holds for every corpus of the same form.
"""

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterator

from pipeline.errors import ConfigFileError
from pipeline.node import Node
from pipeline.plan import Plan
from stages.corpus.preferences import SIDE_FORMS
from stages.model.spec import ModelSpec, Trained
from stages.stage import StageError
from storage.manifest import digest
from storage.schema import CorruptError
from storage.table import Store

NOTES = ".checks"
"""Folder of the store with the notes."""
VERSION = 1


def check_models(plan: Plan, store: Store, is_dry: bool = False) -> Iterator[str]:
    """Checks the models that the missing tasks of a plan run; yields sentences for the user.

    A dry check leaves no note where there is no store yet.

    Raises:
        ConfigFileError: a model does not pass.
    """
    seen = set()
    for node in plan.nodes:
        if not node.missing or not isinstance(node.stage.model_ref, ModelSpec):
            continue
        if "text" not in node.reads:
            # Its rows come from tables, not from the model.
            continue
        form = str(plan.corpus.tables["text"].details.get("format", "text"))
        form = SIDE_FORMS.get(form, form)
        model = _checked_part(node, node.stage.model_ref)
        name = _name(node, model, form)
        if name in seen or _has_note(store, name):
            continue
        seen.add(name)
        note = _check(node, model, form)
        if note is not None:
            yield note
        elif not is_dry or store.fs.exists(store.root):
            store.write_note(NOTES, name, {"model": model.path, "passed": True})


def _has_note(store: Store, name: str) -> bool:
    """Whether the store has the note; a damaged one is written anew."""
    try:
        return store.read_note(NOTES, name) is not None
    except CorruptError:
        return False


def _checked_part(node: Node, model: ModelSpec) -> ModelSpec:
    """The model without what the check does not depend on; without its head if only the trunk."""
    model = dataclasses.replace(
        model, train=Trained(), class_order=None, dtype="float32", attn_implementation=None
    )
    if "model.head" in node.stage.outside_key or model.kind.is_fitted:
        # An adapter that was trained with a head is part of the trunk all the same.
        return ModelSpec(
            model.path,
            model.revision,
            max_length=model.max_length,
            adapter=model.adapter,
            trust_remote_code=model.trust_remote_code,
        )
    return model


def _name(node: Node, model: ModelSpec, form: str) -> str:
    """The name of the note: a hash of all that the result of the check depends on."""
    fields = dataclasses.asdict(model)
    for place in ("path", "revision", "adapter", "dtype", "attn_implementation"):
        del fields[place]
    weights = node.fields.get("model", {}).get("fingerprint")
    packages = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    return digest([VERSION, weights, fields, form, packages])


def _check(node: Node, model: ModelSpec, form: str) -> str | None:
    """Checks one model; a sentence where it is too large for that, None where it passed."""
    from stages.model.check import check_model  # torch takes seconds, and most plans have a note
    from stages.model.size import network_size

    try:
        n_bytes = 4 * network_size(model, 2).n_parameters
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if n_bytes > memory / 2:
            return (
                f"{model.path} is not checked before the first shard: its weights take "
                f"{n_bytes / 1e9:.0f} GB, and half of this machine's memory is {memory / 2e9:.0f} "
                "GB."
            )
        check_model(model, form)
    except StageError as error:
        raise ConfigFileError(f"stages.{node.instance}: {error}") from error
    return None
