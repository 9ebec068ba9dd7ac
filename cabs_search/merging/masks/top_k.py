"""Selection of the largest magnitudes, in chunks that stay in cache."""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.merging.chunks import CHUNK, chunks, parallel_map


def share(density: float, count: int) -> int:
    """How many of ``count`` weights a density keeps: floor(density · count + 1/2)."""
    return int(density * count + 0.5)


Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Sizes = npt.NDArray[np.uint32]
"""Magnitudes as their bits, which are ordered alike; comparing whole numbers is much faster."""


def largest_of_each(weights: Floats, width: int, density: float) -> Bools:
    """The largest of every ``width`` weights."""
    return largest(weights.reshape(-1, width), share(density, width)).reshape(-1)


def largest(weights: Floats, k: int, free: Bools | None = None, out: Bools | None = None) -> Bools:
    """The k largest magnitudes of every row: ties keep the lower index, zeros are never kept.

    Args:
        weights: [rows, width].
        k: how many of each row.
        free: those that may be kept, [rows, width]; None: all.
        out: where to write the mask, [rows, width].

    """
    mask = np.zeros(weights.shape, dtype=np.bool_) if out is None else out
    if k == 0:
        mask[:] = False
        return mask

    def some(rows: slice) -> None:
        sizes, room = _scratch(weights[rows].shape)
        np.bitwise_and(weights[rows].view(np.uint32), np.uint32(0x7FFFFFFF), out=sizes)
        if free is not None:
            sizes *= free[rows]
        _largest(sizes, k, mask[rows], room)

    parallel_map(some, chunks(len(weights), max(1, CHUNK // weights.shape[1])))
    return mask


_own = threading.local()


def _scratch(shape: tuple[int, ...]) -> tuple[Sizes, Sizes]:
    """Two arrays of the thread's own: new ones each time would cost as much as what is done in
    them.
    """
    size = math.prod(shape)
    if size > CHUNK:  # one long row
        return np.empty(shape, np.uint32), np.empty(shape, np.uint32)
    if not hasattr(_own, "arrays"):
        _own.arrays = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint32)
    first, second = _own.arrays
    return first[:size].reshape(shape), second[:size].reshape(shape)


def _largest(sizes: Sizes, k: int, mask: Bools, room: Sizes) -> None:
    """``largest`` of rows that fit in cache; ``room`` is overwritten."""
    width = sizes.shape[1]
    if k >= width:
        np.greater(sizes, 0, out=mask)
        return
    np.copyto(room, sizes)
    room.partition(width - k, axis=1)
    bound = room[:, width - k].copy()
    some = np.maximum(bound, 1)  # a weight that is 0 is never kept
    np.greater_equal(sizes, some[:, None], out=mask)
    if np.count_nonzero(mask) == k * len(mask) and bound.all():
        return
    surplus = mask.sum(axis=1) > k
    if surplus.any():
        rows, bound = sizes[surplus], some[surplus, None]
        above, ties = rows > bound, rows == bound
        room = k - above.sum(axis=1, keepdims=True)
        mask[surplus] = above | (ties & (ties.cumsum(axis=1) <= room))


def flat(delta: Tensor) -> Floats:
    found: Floats = delta.detach().reshape(-1).to("cpu", torch.float32).numpy()
    return found


def magnitude_bits(weights: Floats) -> Sizes:
    found: Sizes = weights.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return found
