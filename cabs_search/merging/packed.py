"""Kept weights of one tensor as the cache stores them and workers add them up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.merging.sparse import Kept

SPAN = 256
"""Weights whose place one byte can name."""
STRIDE = 1 << 16
"""Weights between two places at which a sum can begin; a multiple of SPAN."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Values and positions, at one bit a weight or one byte a kept weight, whichever is less."""

    values: Tensor
    """Float32, [kept]; every weight of the tensor if there are neither bits nor offsets."""
    numel: int
    """Number of weights of the tensor."""
    bits: Tensor | None = None
    """Uint8, [8 · words]: one bit a weight, the lowest first, filled up to words of 64."""
    offsets: Tensor | None = None
    """Uint8, [kept]: place of each in its span of 256 weights."""
    counts: Tensor | None = None
    """Int16, [spans]: number of weights that each span keeps."""

    @classmethod
    def of(cls, kept: Kept) -> Packed:
        """Pack what is kept."""
        if kept.mask is None:
            return cls(kept.values, len(kept.values))
        mask, numel = kept.mask.numpy(), len(kept.mask)
        spans = -(-numel // SPAN)
        if numel <= 8 * (len(kept.values) + 2 * spans):
            bits = np.zeros(-(-numel // 64) * 8, np.uint8)
            found = np.packbits(mask, bitorder="little")
            bits[: len(found)] = found
            return cls(kept.values, numel, bits=torch.from_numpy(bits))
        positions = np.flatnonzero(mask)
        counts = np.bincount(positions // SPAN, minlength=spans).astype(np.int16)
        offsets = (positions % SPAN).astype(np.uint8)
        return cls(
            kept.values, numel, offsets=torch.from_numpy(offsets), counts=torch.from_numpy(counts)
        )

    def kept(self) -> Kept:
        """Unpack the values and their mask."""
        if self.bits is not None:
            bits = np.unpackbits(self.bits.numpy(), count=self.numel, bitorder="little")
            return Kept(self.values, torch.from_numpy(bits.view(np.bool_)))
        if self.offsets is None or self.counts is None:
            return Kept(self.values, None)
        counts = self.counts.numpy()
        mask = np.zeros(self.numel, np.bool_)
        mask[
            np.repeat(np.arange(len(counts), dtype=np.int64) * SPAN, counts) + self.offsets.numpy()
        ] = True
        return Kept(self.values, torch.from_numpy(mask))

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Index of the first value of each STRIDE of weights, [strides]."""
        firsts = np.arange(0, self.numel, STRIDE, dtype=np.int64)
        if self.bits is not None:
            each = np.bitwise_count(self.bits.numpy().view(np.uint64))
            firsts //= 64
        elif self.counts is not None:
            each = self.counts.numpy()
            firsts //= SPAN
        else:
            return firsts
        sums = [
            int(each[a:b].sum(dtype=np.int64)) for a, b in pairwise([*firsts.tolist(), len(each)])
        ]
        return np.cumsum([0, *sums[:-1]])

    @property
    def bytes(self) -> int:
        """Memory taken or mapped."""
        return sum(
            t.nbytes for t in (self.values, self.bits, self.offsets, self.counts) if t is not None
        )
