"""Singular value decompositions of task vectors' matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def singular(matrix: Tensor, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, σ and V of a matrix, without directions whose σ is 0 but for rounding.

    Of those, as adapters' updates have many, the decomposition says nothing.

    Args:
        matrix: [rows, columns], float32.
        most: how many directions to keep, of the largest σ; None: all.

    Returns:
        [rows, kept], [kept], [columns, kept].

    """
    import torch

    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    least = values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    count = min(int((values > least).sum()), len(values) if most is None else most)
    return left[:, :count], values[:count], right[:count].T
