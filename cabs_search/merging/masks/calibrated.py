"""Pruning rules that use what a linear layer's inputs were on calibration items.

Symbols:
    X    a linear layer's inputs over all calibration tokens, [tokens, in]
    G    XᵀX, [in, in]; its diagonal is ‖x‖₂² of each input feature
    τ    a task vector's tensor as the layer uses it, [out, in]

Sources: Wanda, arXiv 2306.11695, equation 1; SparseGPT, arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cabs_search.merging.masks.rule import Selection, TensorView
from cabs_search.merging.masks.selection import kept, largest_of_rows, share

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.01
"""Added to G's diagonal, as a share of its mean, so that it can be inverted (SparseGPT's own
value).
"""
COLUMNS = 128
"""Input features for which SparseGPT chooses a mask at a time (its own value)."""


def select_by_layer(
    view: TensorView,
    density: float,
    prune: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
) -> Selection:
    """Select by a rule that knows the layer's inputs; by magnitude where no linear layer has
    the tensor.

    Args:
        view: the tensor.
        density: share to keep.
        prune: from τ as [out, in], G and the density to new values and the mask, both [out,
            in].

    """
    import torch

    own = view.calibrations[view.expert]
    gram = own.read(view.tensor)
    if gram is None:
        return kept(view.weights, largest_of_rows(view.weights, len(view.weights), density))
    tau = torch.from_numpy(view.tau)
    if own.is_transposed(view.tensor):
        values, mask = (t.T.contiguous() for t in prune(tau.T.contiguous(), gram, density))
    else:
        values, mask = prune(tau, gram, density)
    return kept(values.reshape(-1).numpy(), mask.reshape(-1).numpy())


def wanda_scores(tau: Tensor, gram: Tensor) -> Tensor:
    """Return |τ| · ‖x‖₂ of each input feature, the change that a weight makes to its output.

    Args:
        tau: [out, in].
        gram: G, or its diagonal.

    Returns:
        Scores, float32, [out, in].

    """
    squares = gram if gram.dim() == 1 else gram.diagonal()
    return tau.float().abs() * squares.float().sqrt()


def sparsegpt(tau: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """Prune τ so that X·τᵀ changes least: weights further right make up for what is pruned.

    Columns are pruned in order, COLUMNS at a time. In each row of such a block the weights with
    the largest w² / [G⁻¹]ⱼⱼ² (G restricted to the columns from j on) are kept; each pruned
    weight's error is spread over the columns to its right by the optimal brain surgeon's
    formula.

    Args:
        tau: [out, in]; not modified.
        gram: G, [in, in].
        density: share of each row to keep.

    Returns:
        New values, float32, and the mask, both [out, in].

    Source: SparseGPT, arXiv 2301.00774, algorithm 1; the mask is chosen row by row.

    """
    import torch

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
        block, scale = weights[:, start:end], inverse[start:end, start:end]
        count = share(density, end) - share(density, start)
        chosen = (block / scale.diagonal()).square().topk(count, dim=1).indices
        mask[:, start:end].scatter_(1, chosen, value=True)
        errors = torch.zeros_like(block)
        for j in range(end - start):
            column = block[:, j]
            errors[:, j] = torch.where(mask[:, start + j], 0.0, column) / scale[j, j]
            block[:, j:] -= errors[:, j : j + 1] * scale[j, j:]
        weights[:, end:] -= errors @ inverse[start:end, end:]
    mask &= weights != 0
    return (weights * mask).float(), mask
