"""The positions at which vectors differ most, as SCE selects them (arXiv 2408.07990)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cabs_search.merging.chunks import chunks, parallel_map
from cabs_search.merging.masks.rule import Floats, MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept, largest, share
from cabs_search.merging.masks.settings import DENSITY, PerExpert, setting, value_for


@dataclass(frozen=True, kw_only=True)
class Variance(MaskRule):
    """Keep the positions of each tensor at which τ varies most from expert to expert: SCE's
    select.
    """

    density: PerExpert[float] = setting(DENSITY)
    name: ClassVar[str] = "variance"
    sees_all: ClassVar[bool] = True
    is_compared: ClassVar[bool] = False

    def select(self, view: TensorView) -> Selection:
        """Select the density's share of the positions that vary at all.

        Raises:
            ValueError: there is one expert only.

        """
        if len(view.vectors) < 2:
            raise ValueError(f"{self.name}: two experts at the least are needed, to vary")
        varying = _variance(view)
        count = share(value_for(self.density, view.expert), int(np.count_nonzero(varying)))
        mask = largest(varying.reshape(1, -1), count).reshape(-1)
        return kept(view.weights, mask & (view.weights != 0))


def _variance(view: TensorView) -> Floats:
    """Return Σ (τᵢ - mean)² over experts at each position, [weights]."""
    deltas = [own[view.tensor] for own in view.vectors.values()]
    found = np.empty(len(view.weights), np.float32)

    def measure(part: slice) -> None:
        rows = np.stack([delta.part(part).numpy() for delta in deltas])
        found[part] = np.square(rows - rows.mean(axis=0)).sum(axis=0)

    parallel_map(measure, chunks(len(found)))
    return found
