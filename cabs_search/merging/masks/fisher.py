"""Fisher merging: weights averaged by how much each expert depends on them (arXiv 2111.09832)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.rule import MaskRule, Selection, Statistic, TensorView

FLOOR = 1e-6
"""Added to F, so that weights that no expert depends on are averaged."""


@dataclass(frozen=True, kw_only=True)
class Fisher(MaskRule):
    """Keep each vector's part of the mean weighted by Fisher information: τᵢ·Fᵢ/Σ Fⱼ.

    F is the diagonal of an expert's Fisher information on items of its own task, divided by its
    root mean square: else the expert that is least sure would have all the weight. (The authors'
    program divides by the norm.)
    """

    name: ClassVar[str] = "fisher"
    calibration: ClassVar[Statistic] = "fisher"
    sees_all: ClassVar[bool] = True

    def select(self, view: TensorView) -> Selection:
        """Select all weights, of the vector's part."""
        import torch

        total, own = torch.zeros(()), torch.zeros(())
        for expert in view.vectors:  # one at a time is in memory
            found = view.calibrations[expert].read(view.tensor)
            # A model that has no such tensor, or does not use it, does not depend on it.
            weight = FLOOR + (torch.zeros(()) if found is None else found.reshape(-1))
            total = total + weight
            own = weight if expert == view.expert else own
        return Selection((torch.from_numpy(view.weights) * (own / total)).numpy(), None)
