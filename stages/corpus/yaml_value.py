"""A value as it is written in the YAML of a run, for hints that people copy."""

import sys
from typing import Any

import yaml


def in_yaml(value: Any) -> str:
    """The value in one line of YAML, with quotes where it would be read as another without.

    A text such as `yes`, `1.0`, `a: b` or `#x` gets quotes, `label` none; a list is written in
    brackets. It may stand in brackets itself.
    """
    value = list(value) if isinstance(value, tuple) else value
    # As an item of a list, where a comma or a bracket needs quotes, too.
    plain = _dumped([value], allow_unicode=True)
    # The end of a line and the like are escaped between double quotes alone.
    is_one_line = plain.isprintable() and yaml.safe_load(plain) == [value]
    return (plain if is_one_line else _dumped([value], default_style='"'))[1:-1]


def _dumped(value: Any, **style: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, **style)).strip()
