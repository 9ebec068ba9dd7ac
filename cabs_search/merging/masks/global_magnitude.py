"""The largest magnitudes of a whole vector, found in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cabs_search.merging.masks.top_k import Bools, Sizes, share


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a whole vector's largest |τ| end."""

    bound: int
    """What is larger is kept; the bits of a float32."""
    ties: Mapping[str, int]
    """By tensor, how many that equal the bound are kept, the first ones."""


def find_cut(sizes: Callable[[str], Sizes], tensors: Mapping[str, int], density: float) -> Cut:
    """The bound above which share(density) of all weights lie, exactly, in a few passes and
    constant memory.

    Tensors that the expert never changed do not count, as no other rule keeps anything of them.

    One pass counts magnitudes by their upper 16 bits, one those of the bound's group by their lower
    16.
    """
    upper, weights = np.zeros(1 << 16, np.int64), 0
    for found in map(sizes, tensors):
        upper += np.bincount(found >> 16, minlength=1 << 16)
        weights += len(found) if found.any() else 0
    wanted = share(density, weights)
    group, above = _reached(upper, wanted)
    lower = np.zeros(1 << 16, np.int64)
    for found in map(sizes, tensors):
        lower += np.bincount(found[found >> 16 == group] & 0xFFFF, minlength=1 << 16)
    last, more = _reached(lower, wanted - above)
    bound = group << 16 | last
    room, ties = wanted - above - more, {}
    for tensor in tensors if bound > 0 else ():
        if room == 0:
            break
        ties[tensor] = min(room, int(np.count_nonzero(sizes(tensor) == bound)))
        room -= ties[tensor]
    return Cut(bound=bound, ties=ties)


def _reached(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The group in which the ``wanted`` largest end, and how many lie above that group."""
    from_top = counts[::-1].cumsum()
    place = min(int(np.searchsorted(from_top, wanted)), len(counts) - 1)
    return len(counts) - 1 - place, int(from_top[place] - counts[::-1][place])


def above_cut(sizes: Sizes, cut: Cut, tensor: str) -> Bools:
    mask: Bools = sizes > cut.bound
    if room := cut.ties.get(tensor, 0):
        mask[np.flatnonzero(sizes == cut.bound)[:room]] = True
    return mask
