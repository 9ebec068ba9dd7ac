"""What a pruned vector keeps of one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cabs_search.merging.chunks import chunks, parallel_map


@dataclass(frozen=True, eq=False)
class Kept:
    """What one vector keeps of one tensor."""

    values: Tensor
    """Float32, [kept]; every weight of the tensor, flat, where ``mask`` is None."""
    mask: Tensor | None
    """Bool, [weights], of the flattened tensor."""

    @cached_property
    def positions(self) -> Tensor | None:
        """Int64, [kept], ascending, into the flattened tensor; None: all."""
        return None if self.mask is None else torch.from_numpy(np.flatnonzero(self.mask.numpy()))

    @classmethod
    def at(cls, positions: Tensor, values: Tensor, numel: int) -> Kept | None:
        """Of a tensor of ``numel`` weights the values at some positions; None for none."""
        mask = torch.zeros(numel, dtype=torch.bool)
        mask[positions] = True
        return cls(values, mask) if len(values) else None


def kept_by(delta: Tensor, mask: Tensor) -> Kept | None:
    """The weights of ``delta`` that ``mask`` keeps; None where it keeps none."""
    weights, chosen = delta.reshape(-1).numpy(), mask.reshape(-1).numpy()
    values = np.concatenate(
        parallel_map(
            lambda part: weights[part].take(np.flatnonzero(chosen[part])), chunks(len(weights))
        )
    )
    return Kept(torch.from_numpy(values), mask.reshape(-1)) if len(values) else None
