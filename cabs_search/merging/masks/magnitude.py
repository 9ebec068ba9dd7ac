"""The largest magnitudes of each tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept, largest_of_rows
from cabs_search.merging.masks.settings import DENSITY, PerExpert, setting, value_for


@dataclass(frozen=True, kw_only=True)
class Magnitude(MaskRule):
    """Keep the largest |τ| of each tensor (layer-wise)."""

    density: PerExpert[float] = setting(DENSITY)
    name: ClassVar[str] = "magnitude"

    def select(self, view: TensorView) -> Selection:
        """Select the share that the density keeps of the tensor."""
        weights, density = view.weights, value_for(self.density, view.expert)
        return kept(weights, largest_of_rows(weights, len(weights), density))
