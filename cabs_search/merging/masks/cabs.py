"""CABS: n:m of vectors pruned one after another (arXiv 2503.01874)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.n_m import select_blocks
from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.settings import (
    NM,
    NM_SETTING,
    ORDER,
    OVERLAP,
    TAIL,
    PerExpert,
    setting,
    value_for,
)


@dataclass(frozen=True, kw_only=True)
class Cabs(MaskRule):
    """Conflict-aware and balanced sparsification (arXiv 2503.01874)."""

    nm: PerExpert[NM] = setting(NM_SETTING)
    order: tuple[str, ...] = setting(ORDER)
    overlap: str = setting(OVERLAP, default="fill")
    tail: str = setting(TAIL, default="keep")
    name: ClassVar[str] = "cabs"

    def select(self, view: TensorView) -> Selection:
        """Select n of every m weights among the positions no earlier vector kept."""
        nm = value_for(self.nm, view.expert)
        return select_blocks(view.delta, *nm, view.taken, self.overlap, self.tail)
