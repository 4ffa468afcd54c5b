"""YAML that would grow when it is read ends in a sentence, in a second."""

import time

import pytest

from pipeline.errors import ConfigFileError
from pipeline.yaml_text import read_yaml, write_yaml
from stages.corpus.yaml_value import in_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
BOMBS = {
    "aliases": (LAUGHS, "more than 6000 values"),
    "merges": (
        "a: &a0 {x: 1}\n"
        + "".join(f"b{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)),
        "more than 6000 values",
    ),
    "itself": ("&a [*a]", "an alias of what it stands in"),
    "depth": ("[" * 100_000, "values 40 deep"),
    "depth of mappings": ("{a: " * 5000, "values 40 deep"),
    "keys": ("".join(f"k{i}: 1\n" for i in range(20_000)), "more than 6000 values"),
    "digits": (f"a: {'9' * 200_000}", "more than 40 digits"),
    "minutes": (f"a: {'1:' * 100_000}1", "more than 40 digits"),
    "size": ("#" * 300_000, "expected at most 262144"),
    "code": ("a: !!python/object/apply:os.system ['touch made']", "could not determine"),
    "no day": ("a: 2024-13-45", "month must be in 1..12"),
    "twice": ("a: 1\na: 2", "the key 'a' twice"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_grows_is_refused_in_a_second(name: str) -> None:
    text, said = BOMBS[name]
    began = time.process_time()
    with pytest.raises(ConfigFileError, match="f.yaml: found .* expected") as refused:
        read_yaml(text, "f.yaml")
    assert said in str(refused.value)
    assert len(str(refused.value)) < 700
    assert time.process_time() - began < 2


def test_what_people_write_is_read() -> None:
    text = "a: &a {x: 1, y: [1, 2.5, null, true]}\nb: {<<: *a, x: 2}\nc: *a\n"
    inner = {"x": 1, "y": [1, 2.5, None, True]}
    assert read_yaml(text, "f") == {"a": inner, "b": {**inner, "x": 2}, "c": inner}
    many = read_yaml("classes: [" + ", ".join(f"c{i}" for i in range(2000)) + "]", "f")
    assert len(many["classes"]) == 2000


def test_small_numbers_are_numbers_however_they_are_written() -> None:
    """Python writes 1e-06; YAML 1.1 takes that for text, and a commit such as 12e4567 is text."""
    assert read_yaml("[1e-6, -2E+3, 1.0e-6, 12e4567, '1e-6', 1e-6x]", "f.yaml") == [
        *(1e-6, -2000.0, 1e-6),
        *("12e4567", "1e-6", "1e-6x"),
    ]
    for values in (["1e-6", 1e-6, "12e4567"], "1e-6", 1e-6):
        for text in (write_yaml(values), in_yaml(values)):
            assert read_yaml(text, "f.yaml") == values
