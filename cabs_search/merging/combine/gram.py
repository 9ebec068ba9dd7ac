"""Inner products of task vectors on one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cabs_search.merging.chunks import CHUNK, chunks

if TYPE_CHECKING:
    from torch import Tensor

    from cabs_search.merging.sparse import Kept


def gram(vectors: Sequence[Kept | None], numel: int) -> Tensor:
    """Return ⟨τᵢ, τⱼ⟩ of each pair, 0 where a vector keeps nothing: float64, [vectors, vectors]."""
    import torch

    whole = [torch.zeros(1).expand(numel) if v is None else v.dense() for v in vectors]
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for part in chunks(numel, CHUNK):
        rows = torch.stack([values[part] for values in whole]).double()
        total += rows @ rows.T
    return total
