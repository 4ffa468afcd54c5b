from typing import Any

import pytest

from pipeline.record_check import odd_in

RECORD: dict[str, Any] = {
    "run_id": "run-1",
    "path": "/runs/run",
    "store": "/runs/store",
    "splits": {"example": "train"},
    "tables": {"corpus": {"text": {"manifest": "0123456789abcdef", "shards": []}}},
}


def test_a_record_as_it_is_written() -> None:
    assert odd_in(RECORD) is None
    assert odd_in({**RECORD, "store": None}) is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"store": "\0"}, "store: '\\x00'"),
        ({"store": 3}, "store: '3'"),
        ({"splits": {"example": 1}}, "splits: {'example': 1}"),
        ({"tables": []}, "tables that are no mapping"),
        ({"tables": {"../x": {}}}, "the stage '../x'"),
    ],
)
def test_what_assay_does_not_write(changed: dict[str, Any], told: str) -> None:
    assert told in str(odd_in({**RECORD, **changed}))
