"""Mixed precision is for devices that have it."""

import pytest

from stages.model import precision
from stages.model.precision import check_precision
from stages.stage import ConfigError


def test_bfloat16_is_refused_where_it_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    check_precision("cpu", "float32")
    with pytest.raises(ConfigError, match=r"found bfloat16 on cpu.*precision: float32"):
        check_precision("cpu", "bfloat16")
