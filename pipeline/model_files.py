"""Whether models are still those that keys name: rows of other weights are never stored as theirs.

A run may wait hours between its plan and the task that loads a model, and a node of a cluster may
have another model at the same path. So whoever has loaded one compares its files with the
fingerprint that is part of the key of what it computes.
"""

from collections.abc import Mapping
from typing import Any

from stages.model.hub import fingerprint
from stages.stage import Stage


def fingerprints_in(fields: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of each model among the `fields` of a stage, as a key has it, by name."""
    models = {name: value for name, value in fields.items() if isinstance(value, Mapping)}
    return {name: str(m["fingerprint"]) for name, m in models.items() if "fingerprint" in m}


def changed_model(stage: Stage, known: Mapping[str, str], has_chats: bool) -> str | None:
    """The path of a model of the stage whose files have another fingerprint than is `known`.

    None where all are the same. `has_chats` says whether the corpus holds conversations. Cost: the
    bytes of the files, once in a process.
    """
    for name, was in known.items():
        model = getattr(stage, name, None)
        if model is not None and fingerprint(model, has_chats) != was:
            return str(model.path)
    return None
