"""CABS without an order: a position goes to the vector in which it stands out most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cabs_search.merging.chunks import chunks, parallel_map
from cabs_search.merging.masks.joint import common_width, select_together
from cabs_search.merging.masks.n_m import blocks, fill
from cabs_search.merging.masks.rule import Bools, Floats, JointRule, Selection, TensorView
from cabs_search.merging.masks.settings import (
    NM,
    NM_SETTING,
    OVERLAP,
    TAIL,
    PerExpert,
    is_pairs,
    setting,
    value_for,
)

Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
MOST_WIDTH = 4096
"""Most weights of a block: what a weight costs grows with it."""


@dataclass(frozen=True, kw_only=True)
class CabsRelative(JointRule):
    """Keep n of every m weights of each vector; a position for which several compete goes to the
    one with the largest |τ|/‖τ‖, with the norm of that vector's tensor.

    All pairs (vector, position) of a block are gone through, the largest |τ|/‖τ‖ first: a vector
    gets the position if no other has it and its own n are not reached. Ties go to the vector named
    first, then to the lower index.
    """

    nm: PerExpert[NM] = setting(NM_SETTING)
    overlap: str = setting(OVERLAP, default="fill")
    tail: str = setting(TAIL, default="keep")
    name: ClassVar[str] = "cabs-relative"

    def __post_init__(self) -> None:
        """Raise ValueError if blocks are so long that a contest would take minutes a tensor."""
        width = common_width([nm for _, nm in self.nm] if is_pairs(self.nm) else [self.nm])  # type: ignore[list-item, misc]
        if width > MOST_WIDTH:
            raise ValueError(
                f"nm: {self.name} takes n:m of m (of all experts, their least common multiple) up"
                f" to {MOST_WIDTH}, but got {width}"
            )

    def select_all(self, views: Sequence[TensorView]) -> list[Selection]:
        """Select n of every m weights of each vector."""
        nms = [value_for(self.nm, view.expert) for view in views]
        norms = [_norm(view) for view in views]

        def choose(weights: Sequence[Floats]) -> list[Bools]:
            scores = np.stack([np.abs(w, dtype=np.float64) for w in weights])
            scores /= np.array(norms)[:, None]
            masks = self._contest(scores, nms)
            if self.overlap == "fill":
                self._fill(masks, weights, nms)
            return list(masks)

        return select_together(views, nms, choose)

    def _contest(self, scores: Doubles, nms: Sequence[NM]) -> Bools:
        """Hand positions out, disjoint, [vectors, weights]."""
        masks = np.zeros(scores.shape, np.bool_)
        size, width = scores.shape[1], common_width(nms)
        whole = size - size % width
        for part in (slice(0, whole), slice(whole, size)):
            length = min(width, part.stop - part.start)
            if length:
                shape = (len(nms), -1, length)
                rooms = [_rooms(length, nm, self.tail) for nm in nms]
                found = contest(scores[:, part].reshape(shape), rooms, [nm.m for nm in nms])
                masks[:, part] = found.reshape(len(nms), -1)
        return masks

    def _fill(self, masks: Bools, weights: Sequence[Floats], nms: Sequence[NM]) -> None:
        """Let vectors with too few positions meet others, each with the largest |τ| that it can."""
        holders = masks.sum(axis=0)
        extra = [
            fill(tau, *nm, holders > own, self.tail)
            for tau, own, nm in zip(weights, masks, nms, strict=True)
        ]
        masks |= np.stack(extra)


def contest(scores: Doubles, rooms: Sequence[Counts], widths: Sequence[int]) -> Bools:
    """Hand the positions of each row out, the largest score first.

    Args:
        scores: of each vector's weights, [vectors, rows, weights]; one that is 0 gets nothing.
        rooms: how many positions each vector may have of each of its blocks in a row, [blocks].
        widths: weights of a block of each vector; the last block may be shorter.

    Returns:
        Masks, [vectors, rows, weights]; no two mark the same position of a row.

    """
    vectors, rows, length = scores.shape
    flat = np.ascontiguousarray(scores.transpose(1, 0, 2)).reshape(rows, -1)
    # one column is what all rows do at a time: the next (vector, position) of each
    ranking = np.ascontiguousarray(np.argsort(-flat, axis=1, kind="stable").T)
    firsts = np.cumsum([0, *(len(room) for room in rooms)])
    places = np.arange(length)
    slots = np.concatenate([first + places // m for first, m in zip(firsts, widths, strict=False)])
    left = np.tile(np.concatenate(rooms), (rows, 1))
    free = np.ones((rows, length), np.bool_)
    found = np.zeros(flat.shape, np.bool_)
    every = np.arange(rows)
    for pair in ranking:
        stands = flat[every, pair] > 0
        if not (stands.any() and left.any()):
            break
        place, slot = pair % length, slots[pair]
        wins = np.flatnonzero(stands & free[every, place] & (left[every, slot] > 0))
        found[wins, pair[wins]] = True
        free[wins, place[wins]] = False
        left[wins, slot[wins]] -= 1
    return found.reshape(rows, vectors, length).transpose(1, 0, 2)


def _rooms(length: int, nm: NM, tail: str) -> Counts:
    """Return how many weights a vector keeps of each of its blocks in ``length`` weights."""
    rooms = np.zeros(-(-length // nm.m), np.int64)
    for rows, count in blocks(length, *nm, tail):
        rooms[rows.start // nm.m : -(-rows.stop // nm.m)] = count
    return rooms


def _norm(view: TensorView) -> float:
    """Return ‖τ‖₂ of the tensor; 1 if it is 0."""

    def square(part: slice) -> float:
        return float(np.square(view.delta.part(part).numpy(), dtype=np.float64).sum())

    return math.sqrt(math.fsum(parallel_map(square, chunks(view.delta.numel)))) or 1.0
