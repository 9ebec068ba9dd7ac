"""Work in chunks that stay in a core's cache, over as many threads as torch is told to use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
CHUNK = 1 << 18
"""Weights handled at a time."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # values of malloc.h
KEPT_BYTES, MAPPED_BYTES = 256 << 20, 32 << 20
"""Freed memory that a process keeps; size from which a buffer goes back to the system anyway."""


def chunks(total: int, step: int = CHUNK) -> list[slice]:
    """Cut 0 … total into slices of ``step``; the last may be shorter."""
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def parallel_map(act: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Return ``[act(part) for part in parts]``, over threads.

    Threads pay where ``act`` spends its time in numpy and torch.
    """
    import torch  # late: mask rules are read without it

    threads = torch.get_num_threads()
    if min(threads, len(parts)) < 2:
        return [act(part) for part in parts]

    def act_alone(part: Part) -> Result:
        # torch's own threads within ours would be in each other's way
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        return act(part)

    try:
        return list(_pool(threads).map(act_alone, parts))
    finally:
        # new threads begin with the setting of the thread that starts them
        torch.set_num_threads(threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="chunks")


if hasattr(os, "register_at_fork"):  # threads do not outlive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


def keep_memory() -> None:
    """Let the process keep what it frees, if its C library is glibc, and take it in large pages.

    Otherwise glibc returns a batch's buffers, or a tensor's, to the system, and the next one's are
    faulted in again, page by page: a tenth of a forward pass on a CPU, half of a merge. To be
    called before torch takes any memory.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch when it first does
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
