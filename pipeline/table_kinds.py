"""Whether fields name tables of the kind that they are for, before anything is computed.

A field that names an instance says by its default what kind of table it takes: `predictions:
prediction` one of logits, `features: embedding` one of vectors. Another instance of the same kind
will do, and nothing else.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pipeline.corpus import CORPUS
from stages.stage import ConfigError, Stage


class Kind(NamedTuple):
    """A kind of table."""

    told: str
    columns: frozenset[str]


_VECTORS = Kind("vectors", frozenset({"id", "role", "vector"}))
_LOGITS = Kind("predictions", frozenset({"id", "role", "logits"}))
KINDS = {
    **dict.fromkeys(("embedding", "gradient", "hidden_states", "ntk"), _VECTORS),
    "position_weighted": _VECTORS,
    **dict.fromkeys(("kernel_regression", "prediction"), _LOGITS),
    "curvature": Kind("curvature", frozenset({"block", "total"})),
    "label_noise": Kind("label noise", frozenset({"label", "rates"})),
}
"""What a field takes, by what stands there by default."""
Columns = Mapping[str, Collection[str]]


def columns_of(stages: Mapping[str, Stage]) -> Columns:
    """The columns of every table that these stages and the corpus have, by the table's name."""
    specs = [*CORPUS.values(), *(spec for stage in stages.values() for spec in stage.writes)]
    return {spec.name: spec.schema.names for spec in specs}


def check_kinds(owner: Any, columns: Columns) -> None:
    """Raises unless the tables that a stage or metric names are of the kinds that its fields take.

    `columns` holds those of the table behind each of its `reads`.

    Raises:
        ConfigError: a table is of another kind.
    """
    for f in dataclasses.fields(owner):
        usual = f.default if isinstance(f.default, tuple) else (f.default,)
        stands_there = str(usual[0]) if usual else "ntk" if f.name == "kernel" else ""
        if stands_there not in KINDS:
            continue
        kind, value = KINDS[stands_there], getattr(owner, f.name)
        for name in value if isinstance(value, tuple) else (value,):
            if name in columns and not kind.columns <= set(columns[name]):
                raise ConfigError(
                    f"{f.name}: found {name}, a table of {', '.join(columns[name])}, expected one "
                    f"of {kind.told}, such as {stands_there}. Name an instance that writes one."
                )
