"""Wanda: magnitudes weighed by the layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.masks.calibrated import select_by_layer, wanda_scores
from cabs_search.merging.masks.rule import MaskRule, Selection, Statistic, TensorView
from cabs_search.merging.masks.selection import largest, share
from cabs_search.merging.masks.settings import DENSITY, PerExpert, setting, value_for

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Wanda(MaskRule):
    """Keep the largest |τ|·‖x‖₂ of each output row (arXiv 2306.11695).

    ``Magnitude`` where no linear layer has the tensor.
    """

    density: PerExpert[float] = setting(DENSITY)
    name: ClassVar[str] = "wanda"
    calibration: ClassVar[Statistic] = "diagonal"

    def select(self, view: TensorView) -> Selection:
        """Select the density's share of each output row."""
        return select_by_layer(view, value_for(self.density, view.expert), _prune)


def _prune(tau: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
    import torch

    scores = wanda_scores(tau, gram).numpy()
    return tau, torch.from_numpy(largest(scores, share(density, tau.shape[1])))
