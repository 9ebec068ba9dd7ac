"""The CA of CABS: vectors pruned one after another, by magnitude of each tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.n_m import select_blocks
from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import share
from cabs_search.merging.masks.settings import (
    DENSITY,
    ORDER,
    OVERLAP,
    PerExpert,
    setting,
    value_for,
)


@dataclass(frozen=True, kw_only=True)
class ConflictAware(MaskRule):
    """Keep the largest |τ| of each tensor among the positions no earlier vector kept: the CA of
    CABS.
    """

    density: PerExpert[float] = setting(DENSITY)
    order: tuple[str, ...] = setting(ORDER)
    overlap: str = setting(OVERLAP, default="fill")
    name: ClassVar[str] = "ca"

    def select(self, view: TensorView) -> Selection:
        """Select the density's share of the tensor as one block."""
        count = view.delta.numel
        n = share(value_for(self.density, view.expert), count)
        return select_blocks(view.delta, n, count, view.taken, self.overlap, "keep")
