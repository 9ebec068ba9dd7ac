"""Vectors of a tensor that are pruned together, some whole blocks at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from cabs_search.merging.chunks import CHUNK, chunks, parallel_map
from cabs_search.merging.masks.rule import Bools, Floats, Selection, TensorView
from cabs_search.merging.masks.settings import NM


def select_together(
    views: Sequence[TensorView],
    nms: Sequence[NM],
    choose: Callable[[Sequence[Floats]], Sequence[Bools]],
) -> list[Selection]:
    """Select weights of one tensor of several vectors.

    Args:
        views: the tensor, as each vector has it.
        nms: n:m of each vector.
        choose: makes the mask of each vector, [weights], from the weights of each on some whole
            blocks, [weights]; the last of them may be shorter.

    """
    numel = views[0].delta.numel
    masks = np.zeros((len(views), numel), dtype=np.bool_)

    def select(part: slice) -> list[Floats]:
        weights: list[Floats] = [view.delta.part(part).numpy() for view in views]
        for mask, found in zip(masks, choose(weights), strict=True):
            mask[part] = found
        return [w.take(np.flatnonzero(mask[part])) for w, mask in zip(weights, masks, strict=True)]

    width = common_width(nms)
    parts = parallel_map(select, chunks(numel, max(1, CHUNK // width) * width))
    none = np.empty(0, np.float32)
    return [
        Selection(np.concatenate([none, *(part[place] for part in parts)]), mask)
        for place, mask in enumerate(masks)
    ]


def common_width(nms: Sequence[NM]) -> int:
    """Return the least number of weights that is a whole number of blocks of every vector."""
    return math.lcm(*(nm.m for nm in nms))
