"""What an expert's linear layers saw on calibration items, and the two pruning rules that use it.

Symbols: X    a linear layer's inputs over all calibration tokens, [tokens, in]
         G    XᵀX, [in, in]; its diagonal is ‖x‖₂² of each input feature
         τ    a task vector's tensor as the layer uses it, [out, in]

Sources: Wanda, arXiv 2306.11695, equation 1; SparseGPT, arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cabs_search.checkpoint import CheckpointWriter

DAMPING = 0.01
"""Added to G's diagonal, as a share of its mean, so that it can be inverted (SparseGPT's own value)."""
COLUMNS = 128
"""Input features for which SparseGPT chooses a mask at a time (its own value)."""


class Calibration:
    """One expert's statistics, mapped: G of every linear layer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        opened: Any = safe_open(path, framework="pt")
        self._file = opened
        self._names = frozenset(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata()
        self._transposed = frozenset(json.loads(self.metadata["transposed"]))
        self._same: dict[str, str] = json.loads(self.metadata["same"])

    @property
    def key(self) -> str:
        """A name that only statistics of the same expert and items have."""
        return self.path.stem

    def gram(self, tensor: str) -> Tensor | None:
        """G of the layer whose weight this is, float32, [in, in], or where no rule needs more its diagonal, [in].

        None where it is no linear layer's weight.
        """
        found: Tensor | None = self._file.get_tensor(self._same.get(tensor, tensor)) if self.knows(tensor) else None
        return found

    def knows(self, tensor: str) -> bool:
        """Whether it is a linear layer's weight; nothing is read."""
        return self._same.get(tensor, tensor) in self._names

    def is_transposed(self, tensor: str) -> bool:
        """Whether the weight is stored as [in, out], as GPT-2's are."""
        return tensor in self._transposed


def write_calibration(
    path: Path, grams: Mapping[str, Tensor], same: Mapping[str, str], transposed: Sequence[str]
) -> Calibration:
    """Write statistics, whole or not at all.

    Args:
        path: the file.
        grams: G, or its diagonal, by the weight's shared name, float32.
        same: layers that see the same inputs as one of these, by name.
        transposed: weights that are stored as [in, out].

    """
    metadata = {"transposed": json.dumps(list(transposed)), "same": json.dumps(dict(same))}
    with CheckpointWriter(path, grams, metadata) as writer:
        for name, gram in grams.items():
            writer.add(name, gram)
    return Calibration(path)


def wanda_scores(tau: Tensor, gram: Tensor) -> Tensor:
    """|τ| · ‖x‖₂ of each input feature: what a weight's change does to its output. [out, in], float32."""
    squares = gram if gram.dim() == 1 else gram.diagonal()
    return tau.float().abs() * squares.float().sqrt()


def sparsegpt(tau: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """Prune τ so that X·τᵀ changes least: what is pruned is made up for by the weights behind it.

    Columns are gone through in order, COLUMNS at a time. In each row of such a run the weights with the largest
    w² / [G⁻¹]ⱼⱼ² (with G restricted to the columns from j on) are kept; each pruned weight's error is spread over the
    columns not yet gone through, by the optimal brain surgeon's formula.

    Args:
        tau: [out, in]; not modified.
        gram: G, [in, in].
        density: share of each row to keep.

    Returns:
        New values, float32, and the mask, both [out, in].
    Source: SparseGPT, arXiv 2301.00774, algorithm 1; the mask is chosen row by row.

    """
    weights, hessian = tau.double().clone(), gram.double().clone()
    columns = weights.shape[1]
    unseen = hessian.diagonal() == 0  # a feature that was always 0: any weight does
    hessian.diagonal()[unseen] = 1.0
    weights[:, unseen] = 0.0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    mask = torch.zeros(weights.shape, dtype=torch.bool)
    for start in range(0, columns, COLUMNS):
        end = min(start + COLUMNS, columns)
        run, scale = weights[:, start:end], inverse[start:end, start:end]
        count = share(density, end) - share(density, start)
        chosen = (run / scale.diagonal()).square().topk(count, dim=1).indices
        mask[:, start:end].scatter_(1, chosen, value=True)
        errors = torch.zeros_like(run)
        for j in range(end - start):
            column = run[:, j]
            errors[:, j] = torch.where(mask[:, start + j], 0.0, column) / scale[j, j]
            run[:, j:] -= errors[:, j : j + 1] * scale[j, j:]
        weights[:, end:] -= errors @ inverse[start:end, end:]
    mask &= weights != 0
    return (weights * mask).float(), mask


def share(density: float, count: int) -> int:
    """How many of ``count`` weights a density keeps: floor(density · count + 1/2)."""
    return int(density * count + 0.5)
