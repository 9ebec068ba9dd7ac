"""n:m masks: the n largest magnitudes of every m consecutive weights, alone or vector after vector.

Symbols:
    n, m   weights kept per block, weights per block; the last block may be shorter
    τ      a task vector's tensor, read in row-major order
    u      positions of a block that no earlier vector kept
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from cabs_search.merging.chunks import CHUNK, chunks, parallel_map
from cabs_search.merging.masks.rule import Bools, Floats, Selection
from cabs_search.merging.masks.selection import largest
from cabs_search.merging.masks.settings import check_choice, check_nm

if TYPE_CHECKING:
    from torch import Tensor

    from cabs_search.merging.task_vector import Delta

Turn: TypeAlias = tuple[int, int]
"""Place of a round, from 0, and the number of rounds in which a vector's share is kept."""


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
        Bool mask of delta's shape. Ties keep the lower index; a weight that is exactly 0 is
        never kept.

    Raises:
        ValueError: unless 0 < n <= m and eligible has delta's shape.

    Source: CABS, arXiv 2503.01874, section 4 (balanced sparsification).

    """
    if eligible is not None and eligible.shape != delta.shape:
        raise ValueError(
            f"eligible must have delta's shape, but got {eligible.shape} against {delta.shape}"
        )
    taken = None if eligible is None else ~eligible.bool().reshape(-1).cpu().numpy()
    return _mask_like(delta, n, m, taken, "drop", tail)


def conflict_aware(
    deltas: Sequence[Tensor],
    n: int,
    m: int,
    *,
    overlap: Literal["fill", "drop"] = "fill",
    tail: Literal["keep", "drop"] = "keep",
) -> list[Tensor]:
    """Make n:m masks of several task vectors, pruned one after another so that they do not
    overlap.

    Args:
        deltas: τ of one tensor for each vector, in pruning order, all of one shape; not
            modified.
        n, m: weights kept per block, weights per block.
        overlap: what a block with u < n free positions does: ``fill`` takes the n - u largest
            taken
            ones as well (appendix A.3), ``drop`` keeps just the u.
        tail: as in ``nm_mask``.

    Returns:
        Bool masks in the given order; disjoint in every block that has n free positions for
        each vector.

    Raises:
        ValueError: unless 0 < n <= m and the shapes are equal.

    Source: CABS, arXiv 2503.01874, section 4 (conflict-aware sparsification).

    """
    if len({tuple(d.shape) for d in deltas}) > 1:
        raise ValueError(
            f"task vectors must have one shape, but got {[tuple(d.shape) for d in deltas]}"
        )
    masks: list[Tensor] = []
    taken: Bools | None = None
    for delta in deltas:
        masks.append(_mask_like(delta, n, m, taken, overlap, tail))
        mask = masks[-1].reshape(-1).cpu().numpy()
        taken = mask if taken is None else taken | mask
    return masks


def _mask_like(
    delta: Tensor, n: int, m: int, taken: Bools | None, overlap: str, tail: str
) -> Tensor:
    """Return the mask of what ``select_blocks`` selects, in delta's shape and on its device."""
    import torch

    check_nm(n, m)
    check_choice("tail", tail, ("keep", "drop"))
    check_choice("overlap", overlap, ("fill", "drop"))
    weights = delta.detach().reshape(-1).to("cpu", torch.float32).numpy()
    mask = next_mask(weights, n, m, taken, overlap, tail)
    return torch.from_numpy(mask).reshape(delta.shape).to(delta.device)


def select_blocks(
    delta: Delta, n: int, m: int, taken: Bools | None, overlap: str, tail: str
) -> Selection:
    """Select n of every m weights, some whole blocks at a time, so that τ stays in the cache.

    Args:
        delta: τ of one tensor.
        n, m: weights kept per block, weights per block.
        taken: positions that earlier vectors keep, [weights]; None: none.
        overlap, tail: as in ``conflict_aware``.

    """
    mask = np.zeros(delta.numel, dtype=np.bool_)

    def select(part: slice) -> Floats:
        weights: Floats = delta.part(part).numpy()
        mask[part] = next_mask(weights, n, m, None if taken is None else taken[part], overlap, tail)
        values: Floats = weights.take(np.flatnonzero(mask[part]))
        return values

    parts = parallel_map(select, chunks(delta.numel, max(1, CHUNK // m) * m))
    return Selection(np.concatenate([np.empty(0, np.float32), *parts]), mask)


def next_mask(
    weights: Floats,
    n: int,
    m: int,
    taken: Bools | None,
    overlap: str,
    tail: str,
    turn: Turn = (0, 1),
) -> Bools:
    """Return the mask of a vector that is pruned after those whose positions are taken.

    Args:
        weights: some whole blocks of τ, and the tail if they are the last: [weights].
        n, m: weights kept per block, weights per block.
        taken: positions that may be kept only where masks must meet, [weights]; None: none.
        overlap, tail: as in ``conflict_aware``.
        turn: part of each block's share to keep.

    """
    mask = _free_mask(weights, n, m, None if taken is None else ~taken, tail, turn)
    if taken is not None and overlap == "fill":
        wanted = sum(
            count * -(-(rows.stop - rows.start) // m)
            for rows, count in blocks(weights.size, n, m, tail, turn)
        )
        if np.count_nonzero(mask) < wanted:
            mask |= fill(weights, n, m, taken, tail, turn)
    return mask


def _free_mask(weights: Floats, n: int, m: int, free: Bools | None, tail: str, turn: Turn) -> Bools:
    """Mark the n largest free weights of every block."""
    mask = np.zeros(weights.size, dtype=np.bool_)
    for rows, count in blocks(weights.size, n, m, tail, turn):
        shape = (-1, min(m, rows.stop - rows.start))
        free_rows = None if free is None else free[rows].reshape(shape)
        largest(weights[rows].reshape(shape), count, free_rows, out=mask[rows].reshape(shape))
    return mask


def fill(weights: Floats, n: int, m: int, taken: Bools, tail: str, turn: Turn = (0, 1)) -> Bools:
    """Mark, in blocks with u < n free positions, the n - u largest of the taken ones."""
    mask = np.zeros(weights.size, dtype=np.bool_)
    for rows, count in blocks(weights.size, n, m, tail, turn):
        width = min(m, rows.stop - rows.start)
        of_rows, used = weights[rows].reshape(-1, width), taken[rows].reshape(-1, width)
        missing = count - (width - used.sum(axis=1))
        out = mask[rows].reshape(-1, width)
        for k in np.unique(missing[missing > 0]):
            short = missing == k
            out[short] = largest(of_rows[short], int(k), used[short])
    return mask


def blocks(
    size: int, n: int, m: int, tail: str, turn: Turn = (0, 1)
) -> Iterator[tuple[slice, int]]:
    """Yield the whole blocks, then the tail, each with how many weights a block keeps."""
    whole = size - size % m
    if whole:
        yield slice(0, whole), _part(n, turn)
    if whole < size and tail == "keep":
        count = (2 * n * (size - whole) + m) // (2 * m)
        yield slice(whole, size), _part(count, turn)


def _part(count: int, turn: Turn) -> int:
    """Return a turn's part of a block's share; those of all turns add up to it."""
    place, turns = turn
    return count * (place + 1) // turns - count * place // turns
