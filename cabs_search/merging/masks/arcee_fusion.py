"""Arcee Fusion: changes that stand out in rows whose distribution has moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cabs_search.merging.chunks import CHUNK, chunks, parallel_map
from cabs_search.merging.masks.rule import Floats, MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept

FLOOR = 1e-8
"""Added to each probability."""
REACH = 1.5
"""Quartile distances above the median from which a weight stands out."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ArceeFusion(MaskRule):
    """Keep the weights of each tensor whose |τ|·KL(expert ‖ base) stands out: it is as large as the
    median and 1.5 times the distance of the quartiles, or larger.

    KL is that of the softmax of the weight's row (its last dimension). Source: mergekit's
    ``arcee_fusion``. Here it is computed in float64, as float32 would lose it in rows that hardly
    moved, and quartiles are those of all weights, not of a sample.
    """

    name: ClassVar[str] = "arcee-fusion"

    def select(self, view: TensorView) -> Selection:
        """Select the weights that stand out."""
        weights = view.weights
        importance = np.abs(weights) * np.repeat(_moves(view), _width(view))
        places = [int(q * (len(weights) - 1)) for q in (0.25, 0.5, 0.75)]
        first, median, third = np.partition(importance, places)[places]
        least = median + np.float32(REACH) * (third - first)
        return kept(weights, (importance >= least) & (weights != 0))


def _width(view: TensorView) -> int:
    return view.tau.shape[-1] if view.tau.ndim else 1


def _moves(view: TensorView) -> Floats:
    """Return KL(expert ‖ base) of each row, [rows]."""
    width = _width(view)
    deltas = view.weights.reshape(-1, width)
    base = view.delta.base().reshape(-1, width)

    def move(rows: slice) -> Floats:
        before: Doubles = base[rows].double().numpy()
        ours, theirs = _softmax(before + deltas[rows]) + FLOOR, _softmax(before) + FLOOR
        found: Floats = (ours * np.log(ours / theirs)).sum(axis=1).astype(np.float32)
        return found

    return np.concatenate(parallel_map(move, chunks(len(deltas), max(1, CHUNK // width))))


def _softmax(rows: Doubles) -> Doubles:
    found: Doubles = np.exp(rows - rows.max(axis=1, keepdims=True))
    found /= found.sum(axis=1, keepdims=True)
    return found
