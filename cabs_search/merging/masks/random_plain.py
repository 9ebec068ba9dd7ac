"""Random masks without rescaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.draws import draw_mask
from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept
from cabs_search.merging.masks.settings import DENSITY, SEED, PerExpert, setting, value_for


@dataclass(frozen=True, kw_only=True)
class Random(MaskRule):
    """Keep each weight with probability d, as it is (the CABS paper's study of rescaling)."""

    density: PerExpert[float] = setting(DENSITY)
    seed: int = setting(SEED)
    name: ClassVar[str] = "random"

    def select(self, view: TensorView) -> Selection:
        """Select by Bernoulli draws."""
        weights, density = view.weights, value_for(self.density, view.expert)
        return kept(weights, draw_mask("random", self.seed, view, density))
