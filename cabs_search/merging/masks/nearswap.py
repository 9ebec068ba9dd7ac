"""NearSwap: changes cut off at a limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView
from cabs_search.merging.masks.settings import Setting, number_between, setting

LIMIT = Setting(
    name="limit",
    parse=number_between("limit", 0, 1),
    text="{:g}".format,
    default=lambda experts, before: 1e-4,
    is_searched=True,
    metavar="T",
    help="|τ| at which nearswap cuts changes off (default 1e-4)",
)


@dataclass(frozen=True, kw_only=True)
class NearSwap(MaskRule):
    """Keep everything, and cut |τ| off at a limit: near weights are swapped for the expert's.

    Source: mergekit's ``nearswap``; its t is the limit.
    """

    limit: float = setting(LIMIT)
    name: ClassVar[str] = "nearswap"

    def select(self, view: TensorView) -> Selection:
        """Select all weights, clipped."""
        limit = np.float32(self.limit)
        return Selection(np.clip(view.weights, -limit, limit), None)
