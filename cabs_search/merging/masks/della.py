"""DELLA: random masks that drop small weights more often, rescaled (arXiv 2406.11617)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cabs_search.merging.chunks import CHUNK, chunks, parallel_map
from cabs_search.merging.masks.draws import draw_mask
from cabs_search.merging.masks.rule import Floats, MaskRule, Selection, TensorView
from cabs_search.merging.masks.selection import kept, magnitude_bits
from cabs_search.merging.masks.settings import (
    DENSITY,
    SEED,
    PerExpert,
    Setting,
    number_between,
    setting,
    value_for,
)

EPSILON = Setting(
    name="epsilon",
    parse=number_between("epsilon", 0, 0.5),
    text="{:g}".format,
    default=lambda experts, before: 0.15,
    is_searched=True,
    metavar="E",
    help="della keeps a row's smallest weight with probability D-E, its largest with D+E"
    " (default 0.15)",
)


@dataclass(frozen=True, kw_only=True)
class Della(MaskRule):
    """Keep each weight with a probability that grows with the rank of |τ| in its row, divided by
    that probability: DELLA's MagPrune.
    """

    density: PerExpert[float] = setting(DENSITY)
    epsilon: float = setting(EPSILON)
    seed: int = setting(SEED)
    name: ClassVar[str] = "della"

    def select(self, view: TensorView) -> Selection:
        """Select by Bernoulli draws; a vector is one row."""
        rows = 1 if view.tau.ndim < 2 else view.tau.shape[0]
        density = value_for(self.density, view.expert)
        chances = keep_chances(view.weights, len(view.weights) // rows, density, self.epsilon)
        mask = draw_mask("della", self.seed, view, chances)
        rescaled: Floats = np.divide(view.weights, chances, dtype=np.float32)
        return kept(rescaled, mask)


def keep_chances(
    weights: Floats, width: int, density: float, epsilon: float
) -> npt.NDArray[np.float64]:
    """Return each weight's probability to be kept: linear in its rank in the row.

    Args:
        weights: [weights], rows of ``width`` one after another.
        width: weights of a row.
        density: mean probability.
        epsilon: what the smallest has less and the largest more; narrowed to half the density, and
            to what lacks to 1, so that probabilities are above 0 and at most 1.

    Returns:
        [weights].

    """
    epsilon = min(epsilon, density / 2, 1 - density)
    by_rank = density + epsilon * (np.linspace(-1, 1, width) if width > 1 else np.zeros(1))
    bits = magnitude_bits(weights).reshape(-1, width)
    found = np.empty(bits.shape)

    def place(rows: slice) -> None:
        order = np.argsort(bits[rows], axis=1, kind="stable")
        np.put_along_axis(found[rows], order, by_rank[None], axis=1)

    parallel_map(place, chunks(len(bits), max(1, CHUNK // width)))
    return found.reshape(-1)
