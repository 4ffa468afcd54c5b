"""Memory that was freed, given back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Returns the pages of freed memory to the system, where the C library can (glibc).

    It keeps them by itself: freed activations lie between others that are still in use, and are
    seldom used again, as aligned memory of the same size needs a larger gap. Cost: a walk through
    the gaps, and fresh pages where they are filled again.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
