"""Work in chunks that stay in a core's cache, over as many threads as torch is told to use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")
CHUNK = 1 << 18
"""Weights handled at a time."""


def chunks(total: int, step: int = CHUNK) -> list[slice]:
    """0 … total in slices of ``step``, the last may be shorter."""
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def parallel_map(act: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``[act(part) for part in parts]``; its threads pay where ``act`` spends its time in numpy and
    torch.
    """
    threads = torch.get_num_threads()
    if min(threads, len(parts)) < 2:
        return [act(part) for part in parts]

    def alone(part: Part) -> Result:
        if (
            torch.get_num_threads() > 1
        ):  # torch's own threads within ours would be in each other's way
            torch.set_num_threads(1)
        return act(part)

    try:
        return list(_pool(threads).map(alone, parts))
    finally:
        torch.set_num_threads(threads)  # a thread's setting is what threads to come begin with


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="chunks")


if hasattr(os, "register_at_fork"):  # threads do not outlive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)
