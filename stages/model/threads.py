"""The number of threads of torch; it decides the last bits of sums, so it is pinned."""


def set_threads(threads: int) -> None:
    """Makes every torch operation of this process use `threads` threads from now on."""
    import torch  # reading a run imports this module, and does without torch

    torch.set_num_threads(threads)
