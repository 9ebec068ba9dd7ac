"""n:m masks, alone and one vector after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cabs_search.merging.chunks import CHUNK, chunks, parallel_map
from cabs_search.merging.masks.rules import check_choice, check_nm
from cabs_search.merging.masks.top_k import Bools, Floats, flat, largest
from cabs_search.merging.sparse import Kept
from cabs_search.merging.task_vector import Delta


def kept_of_blocks(
    delta: Delta, n: int, m: int, taken: Bools | None, overlap: str, tail: str
) -> Kept | None:
    """What n:m keeps, some whole blocks at a time: τ never leaves the cache."""
    mask = np.zeros(delta.numel, dtype=np.bool_)

    def some(part: slice) -> Floats:
        weights = flat(delta.part(part))
        mask[part] = next_mask(weights, n, m, None if taken is None else taken[part], overlap, tail)
        kept: Floats = weights.take(np.flatnonzero(mask[part]))
        return kept

    values = np.concatenate(parallel_map(some, chunks(delta.numel, max(1, CHUNK // m) * m)))
    return Kept(torch.from_numpy(values), torch.from_numpy(mask)) if len(values) else None


def nm_mask(
    delta: Tensor,
    n: int,
    m: int,
    eligible: Tensor | None = None,
    *,
    tail: Literal["keep", "drop"] = "keep",
) -> Tensor:
    """Keep the n largest magnitudes of every m consecutive weights.

    Args:
        delta: task vector of one tensor, any shape, read in row-major order; not modified.
        n, m: weights kept per block, weights per block; density = n / m.
        eligible: bool, delta's shape; weights that may be kept. None: all.
        tail: a last block of r < m weights keeps floor(n r / m + 1/2), or nothing.

    Returns:
        Bool mask of delta's shape. Ties keep the lower index; a weight that is exactly 0 is never
        kept.

    Raises:
        ValueError: unless 0 < n <= m and eligible has delta's shape.
    Source: CABS, arXiv 2503.01874, section 4 (balanced sparsification).

    """
    check_nm(n, m)
    check_choice("tail", tail, ("keep", "drop"))
    free = None if eligible is None else _flat_bools(eligible, delta)
    mask = _nm_mask(flat(delta), n, m, free, tail)
    return torch.from_numpy(mask).reshape(delta.shape).to(delta.device)


def conflict_aware(
    deltas: Sequence[Tensor],
    n: int,
    m: int,
    *,
    overlap: Literal["fill", "drop"] = "fill",
    tail: Literal["keep", "drop"] = "keep",
) -> list[Tensor]:
    """n:m masks of several task vectors, pruned one after another so that they do not overlap.

    Args:
        deltas: τ of one tensor for each vector, in pruning order, all of one shape; not modified.
        n, m: weights kept per block, weights per block.
        overlap: what a block with u < n free positions does: ``fill`` takes the n - u largest taken
            ones as well
            (appendix A.3), ``drop`` keeps just the u.
        tail: as in ``nm_mask``.

    Returns:
        Bool masks in the given order; disjoint in every block that has n free positions for each
        vector.

    Raises:
        ValueError: unless 0 < n <= m and the shapes are equal.
    Source: CABS, arXiv 2503.01874, section 4 (conflict-aware sparsification).

    """
    check_nm(n, m)
    check_choice("tail", tail, ("keep", "drop"))
    check_choice("overlap", overlap, ("fill", "drop"))
    if len({tuple(d.shape) for d in deltas}) > 1:
        raise ValueError(
            f"task vectors must have one shape, but got {[tuple(d.shape) for d in deltas]}"
        )
    masks: list[Bools] = []
    taken: Bools | None = None
    for delta in deltas:
        masks.append(next_mask(flat(delta), n, m, taken, overlap, tail))
        taken = masks[-1] if taken is None else taken | masks[-1]
    return [
        torch.from_numpy(mask).reshape(d.shape).to(d.device)
        for mask, d in zip(masks, deltas, strict=True)
    ]


def next_mask(
    weights: Floats, n: int, m: int, taken: Bools | None, overlap: str, tail: str
) -> Bools:
    """The mask of a vector that is pruned after those whose positions are taken."""
    mask = _nm_mask(weights, n, m, None if taken is None else ~taken, tail)
    if (
        taken is not None
        and overlap == "fill"
        and np.count_nonzero(mask) < _wanted(weights.size, n, m, tail)
    ):
        mask |= _fill(weights, n, m, taken, tail)
    return mask


def _wanted(size: int, n: int, m: int, tail: str) -> int:
    """How many of ``size`` weights n:m keeps where none is 0."""
    return sum(
        count * -(-(rows.stop - rows.start) // m) for rows, count in _blocks(size, n, m, tail)
    )


def _nm_mask(weights: Floats, n: int, m: int, free: Bools | None, tail: str) -> Bools:
    mask = np.zeros(weights.size, dtype=np.bool_)
    for rows, count in _blocks(weights.size, n, m, tail):
        shape = (-1, min(m, rows.stop - rows.start))
        largest(
            weights[rows].reshape(shape),
            count,
            None if free is None else free[rows].reshape(shape),
            out=mask[rows].reshape(shape),
        )
    return mask


def _fill(weights: Floats, n: int, m: int, taken: Bools, tail: str) -> Bools:
    """In blocks with u < n free positions, the n - u largest of the taken ones."""
    mask = np.zeros(weights.size, dtype=np.bool_)
    for rows, count in _blocks(weights.size, n, m, tail):
        width = min(m, rows.stop - rows.start)
        blocks, used = weights[rows].reshape(-1, width), taken[rows].reshape(-1, width)
        missing = count - (width - used.sum(axis=1))
        out = mask[rows].reshape(-1, width)
        for k in np.unique(missing[missing > 0]):
            short = missing == k
            out[short] = largest(blocks[short], int(k), used[short])
    return mask


def _blocks(size: int, n: int, m: int, tail: str) -> Iterator[tuple[slice, int]]:
    """The whole blocks, then the tail; with how many weights each block keeps."""
    whole = size - size % m
    if whole:
        yield slice(0, whole), n
    if whole < size and tail == "keep":
        yield slice(whole, size), (2 * n * (size - whole) + m) // (2 * m)


def _flat_bools(eligible: Tensor, delta: Tensor) -> Bools:
    if eligible.shape != delta.shape:
        raise ValueError(
            f"eligible must have delta's shape, but got {eligible.shape} against {delta.shape}"
        )
    found: Bools = eligible.reshape(-1).to("cpu", torch.bool).numpy()
    return found
