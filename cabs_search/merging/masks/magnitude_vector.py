"""The largest magnitudes of a whole task vector, as TIES trims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.masks.global_magnitude import Cut, find_cut
from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import Bits, kept, magnitude_bits
from cabs_search.merging.masks.settings import DENSITY, PerExpert, setting, value_for

if TYPE_CHECKING:
    from cabs_search.merging.task_vector import Delta


@dataclass(frozen=True, kw_only=True)
class VectorMagnitude(MaskRule):
    """Keep the largest |τ| of the whole task vector (TIES' trim, arXiv 2306.01708).

    Tensors that the expert never changed are no part of the vector.
    """

    density: PerExpert[float] = setting(DENSITY)
    name: ClassVar[str] = "magnitude-vector"

    def survey(self, expert: str, vector: Mapping[str, Delta]) -> Cut:
        """Find the bound above which the density's share of the vector lies."""

        def bits(tensor: str) -> Bits:
            return magnitude_bits(vector[tensor].whole().reshape(-1).numpy())

        return find_cut(bits, vector, value_for(self.density, expert))

    def select(self, view: TensorView) -> Selection:
        """Select the weights above the vector's bound."""
        weights = view.weights
        return kept(weights, view.survey.mask(magnitude_bits(weights), view.tensor))
