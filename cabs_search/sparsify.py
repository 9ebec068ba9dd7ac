"""Which weights of a task vector are kept: masks as pure functions of tensors.

Symbols: n, m   weights kept per block, weights per block
         τ      a task vector's tensor; read in row-major order as blocks of m, the last may be shorter
         u      positions of a block that no earlier vector kept

Source: CABS, arXiv 2503.01874, section 4 and appendix A.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.recipe import Cabs, Method, TaskArithmetic, check_nm

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
CHUNK = 1 << 18
"""Weights handled at a time, so that the work stays in cache."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What one vector keeps of one tensor."""

    values: Tensor
    """Float32, [kept]; every weight of the tensor, flat, where ``positions`` is None."""
    positions: Tensor | None
    """Int64, [kept], ascending, into the flattened tensor."""


def keep(
    method: Method,
    delta: Callable[[str], Tensor],
    experts: Sequence[str],
    numel: int,
    known: Mapping[str, Kept | None] | None = None,
) -> Iterator[tuple[str, Kept | None]]:
    """Prune one tensor of every task vector by a method, in the order the method prunes.

    Args:
        method: the method with its settings.
        delta: gives τ of the tensor by expert, all of one shape; asked only for vectors that are not known.
        experts: the experts' names, in the family's order.
        numel: the tensor's number of weights.
        known: what some vectors keep of the tensor already.

    Yields:
        (expert, what it keeps, or None for nothing).

    """
    found = dict(known or {})
    match method:
        case TaskArithmetic():
            for name in experts:
                if name not in found:
                    whole = delta(name)
                    found[name] = Kept(whole.reshape(-1), None) if whole.any() else None
                yield name, found[name]
        case Cabs(nm=(n, m), order=order, overlap=overlap, tail=tail):
            taken: Bools | None = None
            for name in order:
                if name not in found:
                    whole = delta(name)
                    mask = _next_mask(_magnitudes(whole), n, m, taken, overlap, tail)
                    found[name] = kept_by(whole, torch.from_numpy(mask))
                kept = found[name]
                if kept is not None and kept.positions is not None:
                    taken = np.zeros(numel, dtype=np.bool_) if taken is None else taken
                    taken[kept.positions.numpy()] = True
                yield name, kept


def kept_by(delta: Tensor, mask: Tensor) -> Kept | None:
    """The weights of ``delta`` that ``mask`` keeps; None where it keeps none."""
    positions = mask.reshape(-1).nonzero().reshape(-1)
    return Kept(delta.reshape(-1)[positions], positions) if len(positions) else None


def nm_mask(
    delta: Tensor, n: int, m: int, eligible: Tensor | None = None, *, tail: Literal["keep", "drop"] = "keep"
) -> Tensor:
    """Keep the n largest magnitudes of every m consecutive weights.

    Args:
        delta: task vector of one tensor, any shape, read in row-major order; not modified.
        n, m: weights kept per block, weights per block; density = n / m.
        eligible: bool, delta's shape; weights that may be kept. None: all.
        tail: a last block of r < m weights keeps floor(n r / m + 1/2), or nothing.

    Returns:
        Bool mask of delta's shape. Ties keep the lower index; a weight that is exactly 0 is never kept.

    Raises:
        ValueError: unless 0 < n <= m and eligible has delta's shape.
    Source: CABS, arXiv 2503.01874, section 4 (balanced sparsification).

    """
    check_nm(n, m)
    _check_choice("tail", tail, ("keep", "drop"))
    free = None if eligible is None else _flat_bools(eligible, delta)
    mask = _nm_mask(_magnitudes(delta), n, m, free, tail)
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
        overlap: what a block with u < n free positions does: ``fill`` takes the n - u largest taken ones as well
            (appendix A.3), ``drop`` keeps just the u.
        tail: as in ``nm_mask``.

    Returns:
        Bool masks in the given order; disjoint in every block that has n free positions for each vector.

    Raises:
        ValueError: unless 0 < n <= m and the shapes are equal.
    Source: CABS, arXiv 2503.01874, section 4 (conflict-aware sparsification).

    """
    check_nm(n, m)
    _check_choice("tail", tail, ("keep", "drop"))
    _check_choice("overlap", overlap, ("fill", "drop"))
    if len({tuple(d.shape) for d in deltas}) > 1:
        raise ValueError(f"task vectors must have one shape, but got {[tuple(d.shape) for d in deltas]}")
    masks: list[Bools] = []
    taken: Bools | None = None
    for delta in deltas:
        masks.append(_next_mask(_magnitudes(delta), n, m, taken, overlap, tail))
        taken = masks[-1] if taken is None else taken | masks[-1]
    return [torch.from_numpy(mask).reshape(d.shape).to(d.device) for mask, d in zip(masks, deltas, strict=True)]


def _next_mask(magnitudes: Floats, n: int, m: int, taken: Bools | None, overlap: str, tail: str) -> Bools:
    """The mask of a vector that is pruned after those whose positions are taken."""
    if not magnitudes.any():
        return np.zeros(magnitudes.size, dtype=np.bool_)
    if taken is None:
        return _nm_mask(magnitudes, n, m, None, tail)
    mask = _nm_mask(magnitudes, n, m, ~taken, tail)
    if overlap == "fill":
        mask |= _fill(magnitudes, n, m, taken, tail)
    return mask


def _nm_mask(magnitudes: Floats, n: int, m: int, free: Bools | None, tail: str) -> Bools:
    if free is not None:
        magnitudes = np.where(free, magnitudes, np.float32(0))
    mask = np.zeros(magnitudes.size, dtype=np.bool_)
    for rows, count in _blocks(magnitudes.size, n, m, tail):
        mask[rows] = largest(magnitudes[rows].reshape(-1, min(m, rows.stop - rows.start)), count).reshape(-1)
    return mask


def _fill(magnitudes: Floats, n: int, m: int, taken: Bools, tail: str) -> Bools:
    """In blocks with u < n free positions, the n - u largest of the taken ones."""
    mask = np.zeros(magnitudes.size, dtype=np.bool_)
    for rows, count in _blocks(magnitudes.size, n, m, tail):
        width = min(m, rows.stop - rows.start)
        blocks, used = magnitudes[rows].reshape(-1, width), taken[rows].reshape(-1, width)
        missing = count - (width - used.sum(axis=1))
        out = mask[rows].reshape(-1, width)
        for k in np.unique(missing[missing > 0]):
            short = missing == k
            out[short] = largest(np.where(used[short], blocks[short], np.float32(0)), int(k))
    return mask


def _blocks(size: int, n: int, m: int, tail: str) -> Iterator[tuple[slice, int]]:
    """Runs of whole blocks of some CHUNK weights, then the tail; with how many weights each block keeps."""
    whole = size - size % m
    step = max(1, CHUNK // m) * m
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole)), n
    if whole < size and tail == "keep":
        yield slice(whole, size), (2 * n * (size - whole) + m) // (2 * m)


def largest(magnitudes: Floats, k: int) -> Bools:
    """The k largest of every row, [rows, width]: ties keep the lower index, zeros are never kept."""
    width = magnitudes.shape[1]
    if k == 0:
        return np.zeros(magnitudes.shape, dtype=np.bool_)
    if k >= width:
        return magnitudes > 0
    threshold = np.partition(magnitudes, width - k, axis=1)[:, width - k, None]
    mask = magnitudes >= threshold
    mask &= magnitudes > 0
    surplus = mask.sum(axis=1) > k
    if surplus.any():
        rows, bound = magnitudes[surplus], threshold[surplus]
        above, ties = rows > bound, rows == bound
        room = k - above.sum(axis=1, keepdims=True)
        mask[surplus] = above | (ties & (ties.cumsum(axis=1) <= room))
    return mask


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(choices)}, but got {value!r}")


def _magnitudes(delta: Tensor) -> Floats:
    found: Floats = delta.detach().reshape(-1).to("cpu", torch.float32).abs().numpy()
    return found


def _flat_bools(eligible: Tensor, delta: Tensor) -> Bools:
    if eligible.shape != delta.shape:
        raise ValueError(f"eligible must have delta's shape, but got {eligible.shape} against {delta.shape}")
    found: Bools = eligible.reshape(-1).to("cpu", torch.bool).numpy()
    return found
