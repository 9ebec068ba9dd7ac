"""What an expert's linear layers saw on calibration items, and the two pruning rules that use it.

Symbols: X    a linear layer's inputs over all calibration tokens, [tokens, in]
         G    XᵀX, [in, in]; its diagonal is ‖x‖₂² of each input feature
         τ    a task vector's tensor as the layer uses it, [out, in]

Sources: Wanda, arXiv 2306.11695, equation 1; SparseGPT, arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cabs_search.merging.calibration import Calibration
from cabs_search.merging.masks.rules import Mask, SparseGpt, Wanda
from cabs_search.merging.masks.top_k import Bools, Floats, flat, largest, largest_of_each, share

DAMPING = 0.01
"""Added to G's diagonal, as a share of its mean, so that it can be inverted (SparseGPT's own
value).
"""
COLUMNS = 128
"""Input features for which SparseGPT chooses a mask at a time (its own value)."""


def wanda_scores(tau: Tensor, gram: Tensor) -> Tensor:
    """|τ| · ‖x‖₂ of each input feature: what a weight's change does to its output. [out, in],
    float32.
    """
    squares = gram if gram.dim() == 1 else gram.diagonal()
    return tau.float().abs() * squares.float().sqrt()


def sparsegpt(tau: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """Prune τ so that X·τᵀ changes least: what is pruned is made up for by the weights behind it.

    Columns are gone through in order, COLUMNS at a time. In each row of such a run the weights with
    the largest w² / [G⁻¹]ⱼⱼ² (with G restricted to the columns from j on) are kept; each pruned
    weight's error is spread over the columns not yet gone through, by the optimal brain surgeon's
    formula.

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
    inverse = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True
    )
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


def calibration_of(calibrations: Mapping[str, Calibration], mask: Mask, expert: str) -> Calibration:
    """One expert's statistics. Raises ValueError where there are none."""
    if expert not in calibrations:
        raise ValueError(
            f"{mask.name}: every expert must have a task to take calibration items from, as it has"
            f" in a study, but {expert} has none"
        )
    return calibrations[expert]


def calibrated_mask(
    mask: Wanda | SparseGpt, tau: Tensor, density: float, calibration: Calibration, tensor: str
) -> tuple[Bools, Tensor]:
    """Mask and values by a rule that knows the layer's inputs; plain magnitude where the tensor has
    none.
    """
    gram = calibration.gram(tensor)
    if gram is None:
        return largest_of_each(flat(tau), tau.numel(), density), tau
    turned = calibration.is_transposed(tensor)
    layer = tau.T.contiguous() if turned else tau
    if isinstance(mask, SparseGpt):
        values, chosen = sparsegpt(layer, gram, density)
    else:
        scores: Floats = wanda_scores(layer, gram).numpy()
        values, chosen = layer, torch.from_numpy(largest(scores, share(density, layer.shape[1])))
    if turned:
        values, chosen = values.T.contiguous(), chosen.T.contiguous()
    return chosen.reshape(-1).numpy(), values
