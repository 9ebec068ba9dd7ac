"""The bound above which a whole vector's largest magnitudes lie, found in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cabs_search.merging.masks.rule import Bools
from cabs_search.merging.masks.selection import Bits, share


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Bound between the magnitudes of a whole vector that are kept and those that are not."""

    bound: int
    """Larger magnitudes are kept; bits of a float32."""
    ties: Mapping[str, int]
    """Number of magnitudes equal to the bound that are kept, the first ones, by tensor."""

    def mask(self, bits: Bits, tensor: str) -> Bools:
        """Mark what is kept of one tensor, [weights]."""
        mask: Bools = bits > self.bound
        if room := self.ties.get(tensor, 0):
            mask[np.flatnonzero(bits == self.bound)[:room]] = True
        return mask


def find_cut(bits_of: Callable[[str], Bits], tensors: Iterable[str], density: float) -> Cut:
    """Find the bound above which share(density) of all weights lie, exactly.

    Tensors that the expert never changed do not count, as no other rule keeps anything of them.
    One pass over the vector counts magnitudes by their upper 16 bits, one those of the bound's
    group by their lower 16.

    Args:
        bits_of: gives a tensor's magnitudes.
        tensors: names, in the vector's order.
        density: share of the weights to keep.

    """
    names = list(tensors)
    upper, weights = np.zeros(1 << 16, np.int64), 0
    for name in names:
        bits = bits_of(name)
        upper += np.bincount(bits >> 16, minlength=1 << 16)
        weights += len(bits) if bits.any() else 0
    wanted = share(density, weights)
    group, above = _reached(upper, wanted)
    lower = np.zeros(1 << 16, np.int64)
    for name in names:
        bits = bits_of(name)
        lower += np.bincount(bits[bits >> 16 == group] & 0xFFFF, minlength=1 << 16)
    last, more = _reached(lower, wanted - above)
    bound = group << 16 | last
    room, ties = wanted - above - more, {}
    for name in names if bound > 0 else ():
        if room == 0:
            break
        ties[name] = min(room, int(np.count_nonzero(bits_of(name) == bound)))
        room -= ties[name]
    return Cut(bound=bound, ties=ties)


def _reached(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """Return the group in which the ``wanted`` largest end, and how many lie above that group."""
    from_top = counts[::-1].cumsum()
    place = min(int(np.searchsorted(from_top, wanted)), len(counts) - 1)
    return len(counts) - 1 - place, int(from_top[place] - counts[::-1][place])
