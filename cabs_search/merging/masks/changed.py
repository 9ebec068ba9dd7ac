"""The weights that fine-tuning changed, as RAM counts them (arXiv 2601.13572)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept
from cabs_search.merging.masks.settings import Setting, number_between, setting

THRESHOLD = Setting(
    name="threshold",
    parse=number_between("threshold", 0, 1),
    text="{:g}".format,
    default=lambda experts, before: 1e-5,
    is_searched=True,
    metavar="T",
    help="|τ| above which ram counts a weight as changed (default 1e-5)",
)


@dataclass(frozen=True, kw_only=True)
class Changed(MaskRule):
    """Keep the |τ| above a threshold."""

    threshold: float = setting(THRESHOLD)
    name: ClassVar[str] = "changed"
    is_compared: ClassVar[bool] = False

    def select(self, view: TensorView) -> Selection:
        """Select the weights above the threshold."""
        return kept(view.weights, np.abs(view.weights) > np.float32(self.threshold))
