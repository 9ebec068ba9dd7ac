"""RegMean: each linear layer as near to all experts' outputs as it can be (arXiv 2212.09849)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cabs_search.merging.masks.rule import MaskRule, Selection, Statistic, TensorView
from cabs_search.merging.masks.settings import Setting, number_between, setting

if TYPE_CHECKING:
    from torch import Tensor

    from cabs_search.merging.calibration import Calibration

RIDGE = 1e-5
"""Added to G's diagonal, as a share of it: more than what is lost where G is rounded to float32."""
ALPHA = Setting(
    name="alpha",
    parse=number_between("alpha", 0, 1),
    text="{:g}".format,
    default=lambda experts, before: 0.9,
    is_searched=True,
    metavar="A",
    help="factor of G's off-diagonals in regmean (default 0.9)",
)


@dataclass(frozen=True, kw_only=True)
class RegMean(MaskRule):
    """Keep each vector's part of the matrix M with the least Σ ‖Xᵢ·(M - τᵢ)ᵀ‖².

    Xᵢ are the inputs of a linear layer in expert i, [tokens, in], on items of its own task. With
    Gᵢ = XᵢᵀXᵢ the least is M = Σ τᵢ·Gᵢ·(Σ Gⱼ)⁻¹ (equation 2); off-diagonals of each G are
    multiplied by α first. What is no linear layer's weight in every expert is averaged: τᵢ/N.
    """

    alpha: float = setting(ALPHA)
    name: ClassVar[str] = "regmean"
    calibration: ClassVar[Statistic] = "gram"
    elsewhere: ClassVar[str] = "averaged"
    sees_all: ClassVar[bool] = True

    def select(self, view: TensorView) -> Selection:
        """Select all weights, of the vector's part."""
        import torch

        tau = torch.from_numpy(view.tau)
        seen = [view.calibrations[expert] for expert in view.vectors]
        if not all(one.knows(view.tensor) for one in seen):
            return Selection((tau / len(seen)).reshape(-1).numpy(), None)
        own = view.calibrations[view.expert]
        gram, total = self._gram(own, view.tensor), torch.zeros(())
        for one in seen:  # one at a time is in memory
            total = total + self._gram(one, view.tensor)
        # To a feature that was always 0 any weight is right: it gets the mean.
        unseen = total.diagonal() == 0
        gram.diagonal()[unseen], total.diagonal()[unseen] = 1.0, float(len(seen))
        is_transposed = own.is_transposed(view.tensor)
        part = _part(tau.T if is_transposed else tau, gram, total)
        whole = part.T if is_transposed else part
        return Selection(whole.float().reshape(-1).numpy(), None)

    def _gram(self, statistics: Calibration, tensor: str) -> Tensor:
        """Return G with smaller off-diagonals, float64, [in, in]."""
        gram = statistics.read(tensor)
        assert gram is not None, "select() asks first"
        scaled = gram.double() * self.alpha
        scaled.diagonal().copy_(gram.diagonal().double() * (1 + RIDGE))
        return scaled


def _part(tau: Tensor, gram: Tensor, total: Tensor) -> Tensor:
    """Return τ·G·(Σ Gⱼ)⁻¹, float64, [out, in].

    Args:
        tau: [out, in].
        gram: G of the same expert, [in, in].
        total: Σ Gⱼ, [in, in]; positive definite.

    """
    import torch

    part: Tensor = torch.cholesky_solve(gram @ tau.double().T, torch.linalg.cholesky(total)).T
    return part
