"""A value as it is written in the YAML of a run, for hints that people copy."""

import re
import sys
from typing import Any

import yaml

_SMALL = re.compile(r"[-+]?[0-9]+[eE][-+][0-9]+$")


def read_small_numbers(kind: Any) -> None:
    """Makes a class of readers or writers take 1e-6 for a number, as Python and people write it.

    YAML 1.1, which PyYAML follows, asks for 1.0e-6, and takes the other for text.
    """
    kind.add_implicit_resolver("tag:yaml.org,2002:float", _SMALL, list("-+0123456789"))


class _Reader(yaml.SafeLoader):
    """Reads a value as the YAML of a run does."""


read_small_numbers(_Reader)


def in_yaml(value: Any) -> str:
    """The value in one line of YAML, with quotes where it would be read as another without.

    A text such as `yes`, `1.0`, `a: b` or `#x` gets quotes, `label` none; a list is written in
    brackets. It may stand in brackets itself.
    """
    value = list(value) if isinstance(value, tuple) else value
    # As an item of a list, where a comma or a bracket needs quotes, too.
    plain = _dumped([value], allow_unicode=True)
    # The end of a line and the like are escaped between double quotes alone.
    is_one_line = plain.isprintable() and yaml.load(plain, Loader=_Reader) == [value]
    return (plain if is_one_line else _dumped([value], default_style='"'))[1:-1]


def _dumped(value: Any, **style: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, **style)).strip()
