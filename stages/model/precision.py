"""Mixed precision: matrix products in bfloat16, weights, sums and results in float32."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from stages.stage import ConfigError

Precision = Literal["float32", "bfloat16"]


def mixed(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Within it a forward pass on `device` runs in this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def check_precision(device: str, precision: Precision) -> None:
    """Refuses bfloat16 on a device that would emulate it.

    Raises:
        ConfigError: the device does not compute in it.
    """
    if precision == "bfloat16" and not has_bfloat16(device):
        raise ConfigError(
            f"precision: found bfloat16 on {device}, expected a device that computes in it. Set "
            "precision: float32."
        )


def has_bfloat16(device: str) -> bool:
    """Whether the device computes matrix products in bfloat16 natively."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
