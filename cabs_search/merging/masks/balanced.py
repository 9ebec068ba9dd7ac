"""The BS of CABS: n:m of each vector alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.n_m import select_blocks
from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.settings import NM, NM_SETTING, TAIL, PerExpert, setting, value_for


@dataclass(frozen=True, kw_only=True)
class Balanced(MaskRule):
    """Keep the n largest |τ| of every m, each vector alone: the BS of CABS."""

    nm: PerExpert[NM] = setting(NM_SETTING)
    tail: str = setting(TAIL, default="keep")
    name: ClassVar[str] = "bs"

    def select(self, view: TensorView) -> Selection:
        """Select n of every m weights."""
        return select_blocks(view.delta, *value_for(self.nm, view.expert), None, "fill", self.tail)
