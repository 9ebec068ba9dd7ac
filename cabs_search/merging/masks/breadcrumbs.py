"""Model Breadcrumbs: large magnitudes without the largest (arXiv 2312.06795)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept, largest, share
from cabs_search.merging.masks.settings import (
    DENSITY,
    PerExpert,
    Setting,
    number_between,
    setting,
    value_for,
)

GAMMA = Setting(
    name="gamma",
    parse=number_between("gamma", 0, 1),
    text="{:g}".format,
    default=lambda experts, before: 0.01,
    is_searched=True,
    metavar="G",
    help="share of the largest weights that breadcrumbs drops (default 0.01)",
)


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(MaskRule):
    """Drop the largest |τ| of each tensor as outliers, and keep the next largest."""

    density: PerExpert[float] = setting(DENSITY)
    gamma: float = setting(GAMMA)
    name: ClassVar[str] = "breadcrumbs"

    def select(self, view: TensorView) -> Selection:
        """Select the density's share behind the outliers, of which fewer are dropped if too few
        weights would be left.
        """
        weights = view.weights
        count = share(value_for(self.density, view.expert), len(weights))
        outliers = min(share(self.gamma, len(weights)), len(weights) - count)
        row = weights.reshape(1, -1)
        mask = largest(row, outliers + count) & ~largest(row, outliers)
        return kept(weights, mask.reshape(-1))
