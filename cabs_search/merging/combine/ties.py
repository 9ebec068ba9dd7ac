"""Sign election where pruned vectors meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cabs_search.merging.combine.rules import Combine, Sum, Ties, TiesSum
from cabs_search.merging.sparse import Kept


def combined(combine: Combine, vectors: Sequence[Kept | None], numel: int) -> list[Kept | None]:
    """What is left of each vector on one tensor, so that Σ λᵢ times it is the merged model's
    change.

    λ has no part in it: what is made ready once serves every λ.
    """
    match combine:
        case Sum():
            return list(vectors)
        case Ties():
            return _elected(vectors, numel, mean=True)
        case TiesSum():
            return _elected(vectors, numel, mean=False)


def _elected(vectors: Sequence[Kept | None], numel: int, *, mean: bool) -> list[Kept | None]:
    """Of each vector the weights whose sign is that of the vectors' sum (0 counts as +), shared out
    where ``mean``.
    """
    parts = [None if v is None else _sparse(v) for v in vectors]
    total, count = torch.zeros(numel), torch.zeros(numel)
    for part in parts:
        if part is not None:
            positions, values = part
            total[positions] += values
    left: list[tuple[Tensor, Tensor] | None] = []
    for part in parts:
        if part is None:
            left.append(None)
            continue
        positions, values = part
        agrees = (values > 0) == (total[positions] >= 0)
        left.append((positions[agrees], values[agrees]))
        count[positions[agrees]] += 1
    return [
        None if p is None else Kept.at(p[0], p[1] / count[p[0]] if mean else p[1], numel)
        for p in left
    ]


def _sparse(kept: Kept) -> tuple[Tensor, Tensor]:
    """Positions and values, without weights that are 0."""
    positions = kept.values.nonzero().reshape(-1) if kept.positions is None else kept.positions
    return positions, kept.values[positions] if kept.positions is None else kept.values
