"""The speed of matrix products on this machine, from which `assay plan` estimates times."""

import time

import torch

from stages.model.precision import Precision


def flops_per_second(dtype: Precision = "float32", size: int = 768, seconds: float = 0.2) -> float:
    """Floating-point operations per second of one thread that has a core to itself.

    Measured by products of (size, size) matrices, for about `seconds`; time in which other
    processes have the core does not count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.ones(size, size, dtype=getattr(torch, dtype))
        matrix @ matrix
        count, start = 0, time.thread_time()
        while time.thread_time() - start < seconds:
            matrix @ matrix
            count += 1
        return count * 2.0 * size**3 / (time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
