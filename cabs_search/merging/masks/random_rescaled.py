"""The random mask with rescaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cabs_search.merging.masks.draws import draw_mask
from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept
from cabs_search.merging.masks.settings import DENSITY, SEED, PerExpert, setting, value_for


@dataclass(frozen=True, kw_only=True)
class RandomRescaled(MaskRule):
    """Keep what ``Random`` keeps, divided by d: DARE by definition, with another draw."""

    density: PerExpert[float] = setting(DENSITY)
    seed: int = setting(SEED)
    name: ClassVar[str] = "random-rescaled"

    def select(self, view: TensorView) -> Selection:
        """Select by Bernoulli draws."""
        weights, density = view.weights, value_for(self.density, view.expert)
        return kept(weights / np.float32(density), draw_mask("random", self.seed, view, density))
