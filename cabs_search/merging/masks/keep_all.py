"""Task Arithmetic's mask: everything (arXiv 2212.04089)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cabs_search.merging.masks.rule import MaskRule, Selection, TensorView


@dataclass(frozen=True, kw_only=True)
class KeepAll(MaskRule):
    """Keep everything: Task Arithmetic where vectors are summed."""

    name: ClassVar[str] = "task-arithmetic"

    def select(self, view: TensorView) -> Selection:
        """Select all weights."""
        return Selection(view.weights, None)
