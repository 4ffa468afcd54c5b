"""YAML as plain values, within bounds: no code, no key twice, nothing that grows when it is read.

A few hundred bytes of YAML can stand for gigabytes, as an alias counts like what it repeats. So the
size of the text, the depth of its values and their number, aliases written out, are bounded before
a value is made.
"""

from typing import Any

import yaml

from pipeline.errors import ConfigFileError
from stages.corpus.yaml_value import read_small_numbers

MOST_CHARACTERS = 1 << 18
MOST_VALUES = 6000
"""Keys and values of a file, each alias counted as what it stands for; they take a second."""
DEEPEST = 40
LARGEST = 10**40
"""The largest whole number, also where it is written as minutes and seconds (`1:30`)."""


def read_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; errors call it `name`.

    Raises:
        ConfigFileError: the text is no YAML, has a key twice, or is larger or deeper than bounds.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigFileError(
            f"{name}: found {len(text)} characters, expected at most {MOST_CHARACTERS} of YAML. "
            "Name the YAML of a run; rows belong into files of their own."
        )
    try:
        return yaml.load(text, Loader=_Bounded)
    # A number of many digits, or a day that there is not, is a ValueError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigFileError(
            f"{name}: found text that is not YAML ({_told(error)}), expected a mapping with run, "
            "corpus and stages. Check the indentation there; put quotes around a value with a "
            "colon in it, and braces around fields in the line of their stage: `ig: {steps: 20}`."
        ) from error


def write_yaml(values: Any) -> str:
    """Plain values as a YAML text, which `read_yaml` reads as they were."""
    return str(yaml.dump(values, Dumper=_Writer, sort_keys=False, allow_unicode=True))


def _told(error: Exception) -> str:
    """What is wrong, without what the parser calls a text."""
    words = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
    return words[:300]


class _Bounded(yaml.SafeLoader):
    """A loader that raises at a key that is there twice, and at the bounds of this module."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._n_composed = 0
        self._sizes: dict[int, int] = {}
        """Of each node that is whole: how many it is, with its aliases written out."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, counted."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        self._n_composed += 1
        if self._n_composed > MOST_VALUES:
            raise _refusal(f"more than {MOST_VALUES} values", event)
        if self._depth > DEEPEST:
            raise _refusal(f"values {DEEPEST} deep", event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and id(node) not in self._sizes:
            if isinstance(event, yaml.AliasEvent):
                raise _refusal("an alias of what it stands in", event)
            self._sizes[id(node)] = 1 + sum(self._sizes[id(inner)] for inner in _inner(node))
        if node is not None and self._sizes[id(node)] > MOST_VALUES:
            raise _refusal(f"more than {MOST_VALUES} values", event)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number."""
        # The length first: to convert `1:1:1...` takes the square of it.
        number: int = super().construct_yaml_int(node) if len(node.value) < 200 else LARGEST + 1
        if abs(number) > LARGEST:
            raise yaml.constructor.ConstructorError(
                None, None, "found a number of more than 40 digits", node.start_mark
            )
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen = set()
        for key_node, _ in node.value:
            key = str(getattr(key_node, "value", ""))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"found the key {key[:60]!r} twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Writer(yaml.SafeDumper):
    """A writer that puts quotes around text which this module reads as a number."""


read_small_numbers(_Bounded)
read_small_numbers(_Writer)
_Bounded.add_constructor("tag:yaml.org,2002:int", _Bounded.construct_yaml_int)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refusal(what: str, event: Any) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, f"found {what}", event.start_mark)
