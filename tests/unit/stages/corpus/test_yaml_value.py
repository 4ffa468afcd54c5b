"""What is told to be copied into a YAML is read there as what was meant."""

import csv
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import read_config
from pipeline.errors import ConfigFileError
from stages.corpus.columns import check_columns
from stages.corpus.source import Source
from stages.corpus.yaml_value import in_yaml
from stages.stage import DataError

TRICKY = ["yes", "no", "on", "off", "1.0", "1", "a: b", "#x", "null", "~", "", " a", "1:30"]
TRICKY += ["a, b", "[x", "{x}", "C:\\new\\rows.csv", "data/a: b.csv", "it's", 'say "so"', "- x"]
TRICKY += ["*", "&x", "!x", "%x", "@x", "`x`", "=", "2024-01-01", "é", "a\tb", "a\nb", "\x1b[0m"]


@pytest.mark.parametrize("text", TRICKY)
def test_a_value_is_read_as_it_was(text: str) -> None:
    line = in_yaml(text)
    assert "\n" not in line
    assert "\x1b" not in line
    assert yaml.safe_load(f"label: {line}") == {"label": text}
    assert yaml.safe_load(f"classes: [{line}, {line}]") == {"classes": [text, text]}
    assert yaml.safe_load(f"classes: {in_yaml(['a', text])}") == {"classes": ["a", text]}


@given(st.text())
def test_any_text_is_read_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"label: {in_yaml(text)}") == {"label": text}


def test_what_needs_no_quotes_has_none() -> None:
    assert [in_yaml(word) for word in ("label", "my label", "data/rows.csv")] == [
        "label",
        "my label",
        "data/rows.csv",
    ]
    assert in_yaml(None) == "null"
    assert in_yaml(("ntk", "yes")) == "[ntk, 'yes']"


@pytest.mark.parametrize("name", ["label: x", "labels#", "#labels", "yes"])
def test_a_column_that_is_meant_can_be_copied(name: str) -> None:
    asked = {"yes": "yess"}.get(name, "labels")
    with pytest.raises(DataError) as caught:
        check_columns(Source(path="rows.csv", label=asked), "example", ["text", name])
    (line,) = re.findall(r"did you mean (label: .*?)\?", str(caught.value))
    assert yaml.safe_load(line) == {"label": name}


@pytest.mark.parametrize(
    ("line", "found", "advice"),
    [
        ("label: yes", "found True", "Put quotes around it."),
        ("label: 1.0", "found 1.0", "Put quotes around it: '1.0'."),
        ("classes: [1, 2]", "found 1", "Put quotes around it: '1'."),
        ("classes: [on, off]", "found True", "such as 'yes' or 'on' without quotes"),
    ],
)
def test_a_word_that_yaml_takes_for_another_thing_is_told(
    line: str, found: str, advice: str, tmp_path: Path
) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "yes"], ["a", "b"]])
    path = tmp_path / "config.yaml"
    path.write_text(
        f"run: run\nmodel: {{path: m}}\nstages: {{embedding: {{}}}}\n"
        f"corpus:\n  path: rows.csv\n  {line}\n"
    )
    with pytest.raises(ConfigFileError) as caught:
        read_config(path)
    assert found in str(caught.value)
    assert advice in str(caught.value)
