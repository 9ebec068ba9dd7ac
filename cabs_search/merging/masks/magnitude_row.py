"""The largest magnitudes of each row of a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept, largest_of_rows
from cabs_search.merging.masks.settings import DENSITY, PerExpert, setting, value_for


@dataclass(frozen=True, kw_only=True)
class RowMagnitude(MaskRule):
    """Keep the largest |τ| of each row: of the weights that share a tensor's first index."""

    density: PerExpert[float] = setting(DENSITY)
    name: ClassVar[str] = "magnitude-row"

    def select(self, view: TensorView) -> Selection:
        """Select the share that the density keeps of each row; a vector is one row."""
        rows = 1 if view.tau.ndim < 2 else view.tau.shape[0]
        weights, density = view.weights, value_for(self.density, view.expert)
        return kept(weights, largest_of_rows(weights, len(weights) // rows, density))
