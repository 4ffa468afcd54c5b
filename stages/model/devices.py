"""The device that models of this process run on.

Reading a run imports this module, and does without torch.
"""

_may_use_gpu = True


def is_built_for_gpus() -> bool:
    """Whether this installation of torch could use a GPU, if there were one."""
    import torch

    return bool(torch.backends.cuda.is_built())  # type: ignore[no-untyped-call]


def use_gpu(is_given: bool) -> None:
    """Says whether models of this process may from now on take a GPU; at first they may."""
    global _may_use_gpu
    _may_use_gpu = is_given


def device() -> str:
    """`cuda`, the first GPU that this process sees, or `cpu`.

    A worker on Ray sees the GPUs that Ray gave it alone.
    """
    import torch

    return "cuda" if _may_use_gpu and torch.cuda.is_available() else "cpu"
