"""CABS whose later vectors keep more."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from cabs_search.merging.masks.cabs import Cabs
from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.settings import (
    NM,
    NM_SETTING,
    ORDER,
    OVERLAP,
    TAIL,
    PerExpert,
    Setting,
    number_between,
    setting,
    value_for,
)

GROWTH = Setting(
    name="growth",
    parse=number_between("growth", 0, 100),
    text="{:g}".format,
    default=lambda experts, before: 2.0,
    is_searched=True,
    metavar="G",
    help="how many times what the first vector keeps the last one keeps, in cabs-growing"
    " (default 2)",
)


@dataclass(frozen=True, kw_only=True)
class CabsGrowing(MaskRule):
    """Prune as CABS does, with an n that grows from place to place in the order: the last vector's
    is G times the first one's, and their mean is the given n.

    Source: an idea for later of CABS, arXiv 2503.01874.
    """

    nm: PerExpert[NM] = setting(NM_SETTING)
    order: tuple[str, ...] = setting(ORDER)
    growth: float = setting(GROWTH)
    overlap: str = setting(OVERLAP, default="fill")
    tail: str = setting(TAIL, default="keep")
    name: ClassVar[str] = "cabs-growing"

    def alike(self, expert: str) -> MaskRule:
        """Return CABS with the n of the expert's place."""
        nm = self.nm_of(expert)
        return Cabs(nm=nm, order=self.order, overlap=self.overlap, tail=self.tail)

    def nm_of(self, expert: str) -> NM:
        """Return n·2·(1 + (G - 1)·i/(K - 1))/(1 + G) of m at place i of K, from 0.

        It is rounded, halves to even numbers, so that the n of all places add up to K·n; at least
        1, at most m.
        """
        n, m = value_for(self.nm, expert)
        last = len(self.order) - 1
        if not last:
            return NM(n, m)
        growth = Fraction(str(self.growth))  # as written, so that halves are halves
        through = Fraction(self.order.index(expert), last)
        own = round(n * 2 * (1 + (growth - 1) * through) / (1 + growth))
        return NM(min(max(own, 1), m), m)

    def select(self, view: TensorView) -> Selection:
        """Select as CABS with the n of the vector's place."""
        return self.alike(view.expert).select(view)
