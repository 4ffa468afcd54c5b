import numpy as np
import pytest
import torch

from stages.reading.feature_rows import FeatureRows
from stages.stage import Vectors


@pytest.mark.parametrize("length", [1e-25, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_of_any_length_are_scaled_to_one(dtype: torch.dtype, length: float) -> None:
    """Of lengths whose squares float32 cannot hold, too; a zero vector stays one."""
    directions = np.array([[0.6, 0.8], [0.0, -1.0], [0.0, 0.0]])
    table = Vectors(np.array([5, 7, 9]), (directions * length).astype(np.float32))
    rows = FeatureRows([table], np.array([9, 5, 7]), True, dtype)
    found = rows(torch.arange(3))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), directions[[2, 0, 1]], rtol=0, atol=1e-6)
