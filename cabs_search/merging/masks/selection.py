"""Selection of the largest magnitudes, in chunks that stay in a core's cache.

Magnitudes are compared by their bits, which are ordered alike: comparing whole numbers is much
faster.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt

from cabs_search.merging.chunks import CHUNK, chunks, parallel_map
from cabs_search.merging.masks.rule import Bools, Floats, Selection

Bits = npt.NDArray[np.uint32]
"""Magnitudes as the bits of float32 numbers without their signs."""


def share(density: float, count: int) -> int:
    """Return how many of ``count`` weights a density keeps: floor(density · count + 1/2)."""
    return int(density * count + 0.5)


def magnitude_bits(weights: Floats) -> Bits:
    """Return the bits of |weights|."""
    bits: Bits = weights.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return bits


def kept(weights: Floats, mask: Bools) -> Selection:
    """Select the weights that ``mask`` marks, both [weights]."""
    parts = parallel_map(
        lambda part: weights[part].take(np.flatnonzero(mask[part])), chunks(len(weights))
    )
    return Selection(np.concatenate(parts), mask)


def largest_of_rows(weights: Floats, width: int, density: float) -> Bools:
    """Mark the largest of every ``width`` consecutive weights, [weights]."""
    return largest(weights.reshape(-1, width), share(density, width)).reshape(-1)


def largest(weights: Floats, k: int, free: Bools | None = None, out: Bools | None = None) -> Bools:
    """Mark the k largest magnitudes of every row: ties keep the lower index, zeros are never kept.

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

    def mark(rows: slice) -> None:
        sizes, room = _buffers(weights[rows].shape)
        np.bitwise_and(weights[rows].view(np.uint32), np.uint32(0x7FFFFFFF), out=sizes)
        if free is not None:
            sizes *= free[rows]
        _mark_largest(sizes, k, mask[rows], room)

    parallel_map(mark, chunks(len(weights), max(1, CHUNK // weights.shape[1])))
    return mask


_thread = threading.local()


def _buffers(shape: tuple[int, ...]) -> tuple[Bits, Bits]:
    """Return two arrays of the calling thread's own."""
    # Allocating them anew for every chunk would cost as much as what is done in them.
    size = math.prod(shape)
    if size > CHUNK:  # one long row
        return np.empty(shape, np.uint32), np.empty(shape, np.uint32)
    if not hasattr(_thread, "buffers"):
        _thread.buffers = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint32)
    first, second = _thread.buffers
    return first[:size].reshape(shape), second[:size].reshape(shape)


def _mark_largest(sizes: Bits, k: int, mask: Bools, room: Bits) -> None:
    """Mark the k largest of rows that fit in cache; ``room`` is overwritten."""
    width = sizes.shape[1]
    if k >= width:
        np.greater(sizes, 0, out=mask)
        return
    np.copyto(room, sizes)
    room.partition(width - k, axis=1)
    bound = room[:, width - k].copy()
    least = np.maximum(bound, 1)  # a weight that is 0 is never kept
    np.greater_equal(sizes, least[:, None], out=mask)
    if np.count_nonzero(mask) == k * len(mask) and bound.all():
        return
    # Rows with ties at the bound hold too many: of the ties, the first ones stay.
    surplus = mask.sum(axis=1) > k
    if surplus.any():
        rows, bound = sizes[surplus], least[surplus, None]
        above, ties = rows > bound, rows == bound
        left = k - above.sum(axis=1, keepdims=True)
        mask[surplus] = above | (ties & (ties.cumsum(axis=1) <= left))
