"""DARE: random masks, rescaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cabs_search.merging.masks.draws import draw_mask
from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept
from cabs_search.merging.masks.settings import DENSITY, SEED, PerExpert, setting, value_for


@dataclass(frozen=True, kw_only=True)
class Dare(MaskRule):
    """Keep each weight with probability d, divided by d (DARE, arXiv 2311.03099)."""

    density: PerExpert[float] = setting(DENSITY)
    seed: int = setting(SEED)
    name: ClassVar[str] = "dare"

    def select(self, view: TensorView) -> Selection:
        """Select by Bernoulli draws."""
        weights, density = view.weights, value_for(self.density, view.expert)
        return kept(weights / np.float32(density), draw_mask("dare", self.seed, view, density))
