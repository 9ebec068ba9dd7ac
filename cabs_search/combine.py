"""How pruned task vectors add up on one tensor: merged = base + Σ λᵢ·maskᵢ⊙τᵢ, in float32.

A resident model and a fresh merge run this same code, product then sum, vector after vector, so that both give the
same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from cabs_search.sparsify import Kept


@dataclass(frozen=True)
class Sum:
    """Σ λᵢ·τ̃ᵢ."""

    name: ClassVar[str] = "sum"
    beside: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Ties:
    """Where vectors meet, the sign of their sum is elected; the mean of those that agree (arXiv 2306.01708)."""

    name: ClassVar[str] = "ties"
    beside: ClassVar[tuple[str, ...]] = ("magnitude-vector", "magnitude", "dare", "cabs")
    """Mask rules that the papers compare with it."""


@dataclass(frozen=True)
class TiesSum:
    """As ``Ties``, with the sum of those that agree."""

    name: ClassVar[str] = "ties-sum"
    beside: ClassVar[tuple[str, ...]] = ("magnitude-vector", "magnitude")


Combine = Sum | Ties | TiesSum
COMBINES: dict[str, type[Combine]] = {rule.name: rule for rule in get_args(Combine)}
"""Every rule by its name."""


def combined(combine: Combine, vectors: Sequence[Kept | None], numel: int) -> list[Kept | None]:
    """What is left of each vector on one tensor, so that Σ λᵢ times it is the merged model's change.

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
    """Of each vector the weights whose sign is that of the vectors' sum (0 counts as +), shared out where ``mean``."""
    parts = [_sparse(v) for v in vectors]
    total, count = torch.zeros(numel), torch.zeros(numel)
    for kept in parts:
        if kept is not None:
            total[kept.positions] += kept.values
    left: list[Kept | None] = []
    for kept in parts:
        if kept is None:
            left.append(None)
            continue
        agrees = (kept.values > 0) == (total[kept.positions] >= 0)
        positions = kept.positions[agrees]  # type: ignore[index]
        count[positions] += 1
        left.append(Kept(kept.values[agrees], positions) if len(positions) else None)
    if not mean:
        return left
    return [None if kept is None else Kept(kept.values / count[kept.positions], kept.positions) for kept in left]


def _sparse(kept: Kept | None) -> Kept | None:
    """With positions, and without weights that are 0."""
    if kept is None or kept.positions is not None:
        return kept
    positions = kept.values.nonzero().reshape(-1)
    return Kept(kept.values[positions], positions)


@dataclass(frozen=True, eq=False)
class TensorSum:
    """One tensor's sum, made ready for any λ."""

    positions: Tensor | None
    """Int64, [p]: the weights that some vector keeps; None: all of them."""
    base: Tensor
    """The base's values at ``positions``, float32, [p]."""
    parts: tuple[tuple[Tensor | slice, Tensor] | None, ...]
    """For each vector, where its values stand in ``base`` and the values; None where it keeps nothing."""

    def write(self, out: Tensor, lambdas: Sequence[float]) -> None:
        """Write the sum into ``out`` (any dtype, the tensor's shape, contiguous) at the positions, and only there."""
        total = self.base.clone()
        for part, lambda_ in zip(self.parts, lambdas, strict=True):
            if part is not None:
                where, values = part
                total[where] += values * lambda_
        self._put(out, total)

    def undo(self, out: Tensor) -> None:
        """Write the base's values back."""
        self._put(out, self.base)

    def _put(self, out: Tensor, values: Tensor) -> None:
        if self.positions is None:
            out.view(-1).copy_(values)
        else:
            out.view(-1)[self.positions] = values.to(out.dtype)

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        tensors = [self.positions, self.base]
        for part in self.parts:
            tensors += [t for t in part or () if isinstance(t, Tensor)]
        return sum(t.nbytes for t in tensors if t is not None)


def tensor_sum(base: Tensor, vectors: Sequence[Kept | None], device: torch.device | str = "cpu") -> TensorSum | None:
    """Make ready the sum of ``vectors`` on one tensor; None where none of them keeps anything.

    Args:
        base: the base's tensor, any floating dtype.
        vectors: what each vector keeps of it, in the order they are added.
        device: where the sum is to be computed.

    """
    kept = [v for v in vectors if v is not None]
    if not kept:
        return None
    flat = base.reshape(-1)
    sparse = [v.positions for v in kept if v.positions is not None]
    if len(sparse) < len(kept):  # some vector is whole
        where: list[Tensor | slice] = [
            slice(None) if v is None or v.positions is None else v.positions for v in vectors
        ]
        return TensorSum(None, flat.to(device, torch.float32), _parts(where, vectors, device))
    used = torch.zeros(len(flat), dtype=torch.bool)
    for part in sparse:
        used[part] = True
    positions = torch.cat(sparse)
    if int(used.sum()) == len(positions):  # disjoint: one vector's values behind the other's
        ends = torch.tensor([0 if v is None else len(v.values) for v in vectors]).cumsum(0).tolist()
        where = [slice(0 if v is None else end - len(v.values), end) for v, end in zip(vectors, ends, strict=True)]
    else:
        positions = used.nonzero().reshape(-1)
        rank = used.cumsum(0) - 1
        where = [slice(0) if v is None or v.positions is None else rank[v.positions] for v in vectors]
    return TensorSum(positions.to(device), flat[positions].to(device, torch.float32), _parts(where, vectors, device))


def _parts(
    where: Sequence[Tensor | slice], vectors: Sequence[Kept | None], device: torch.device | str
) -> tuple[tuple[Tensor | slice, Tensor] | None, ...]:
    return tuple(
        None if v is None else (w.to(device) if isinstance(w, Tensor) else w, v.values.to(device))
        for w, v in zip(where, vectors, strict=True)
    )
