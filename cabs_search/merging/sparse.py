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

    @classmethod
    def at(cls, positions: Tensor, values: Tensor, numel: int) -> Kept | None:
        """Make it from values at some positions of a tensor of ``numel`` weights; None for none."""
        mask = torch.zeros(numel, dtype=torch.bool)
        mask[positions] = True
        return cls(values, mask) if len(values) else None
