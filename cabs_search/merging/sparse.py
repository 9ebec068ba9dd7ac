"""Kept weights of one tensor of a pruned vector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Kept:
    """Weights that one vector keeps of one tensor."""

    values: Tensor
    """Float32, [kept]; every weight of the tensor, flat, if ``mask`` is None."""
    mask: Tensor | None
    """Bool, [weights], of the flattened tensor."""

    @cached_property
    def positions(self) -> Tensor | None:
        """Int64, [kept], ascending, into the flattened tensor; None: all."""
        return None if self.mask is None else torch.from_numpy(np.flatnonzero(self.mask.numpy()))

    @property
    def nonzero(self) -> tuple[Tensor, Tensor]:
        """Positions and values of the weights that are not 0, both [not 0]."""
        if self.positions is not None:
            return self.positions, self.values
        positions = self.values.nonzero().reshape(-1)
        return positions, self.values[positions]

    def scaled(self, factor: float) -> Kept:
        """Multiply all values."""
        return Kept(self.values * factor, self.mask)

    def dense(self) -> Tensor:
        """Return the flattened tensor, 0 where nothing is kept: float32, [weights]."""
        if self.mask is None:
            return self.values
        whole = torch.zeros(len(self.mask))
        whole[self.mask] = self.values
        return whole

    @classmethod
    def at(cls, positions: Tensor, values: Tensor, numel: int) -> Kept | None:
        """Make it from values at some positions of a tensor of ``numel`` weights; None for none."""
        mask = torch.zeros(numel, dtype=torch.bool)
        mask[positions] = True
        return cls(values, mask) if len(values) else None
