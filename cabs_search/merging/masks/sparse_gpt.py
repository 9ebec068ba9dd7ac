"""SparseGPT: pruning by second order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.calibrated import select_by_layer, sparsegpt
from cabs_search.merging.masks.rule import MaskRule, Selection, Statistic, TensorView
from cabs_search.merging.masks.settings import DENSITY, PerExpert, setting, value_for


@dataclass(frozen=True, kw_only=True)
class SparseGpt(MaskRule):
    """Keep weights by second order, per output row (arXiv 2301.00774).

    ``Magnitude`` where no linear layer has the tensor.
    """

    density: PerExpert[float] = setting(DENSITY)
    name: ClassVar[str] = "sparsegpt"
    calibration: ClassVar[Statistic] = "gram"

    def select(self, view: TensorView) -> Selection:
        """Select the density's share of each output row; kept weights make up for pruned ones."""
        return select_by_layer(view, value_for(self.density, view.expert), sparsegpt)
