"""CABS in several rounds, so that later vectors get good weights, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cabs_search.merging.masks.joint import select_together
from cabs_search.merging.masks.n_m import next_mask
from cabs_search.merging.masks.rule import Bools, Floats, JointRule, Selection, TensorView
from cabs_search.merging.masks.settings import (
    NM,
    NM_SETTING,
    ORDER,
    OVERLAP,
    TAIL,
    PerExpert,
    Setting,
    setting,
    value_for,
)

MOST_ROUNDS = 1024
"""More than any n that is of use."""


def _parse_rounds(value: Any) -> int:
    if not str(value).isdecimal() or not 1 <= int(value) <= MOST_ROUNDS:
        raise ValueError(f"rounds must be a whole number from 1 to {MOST_ROUNDS}, but got {value}")
    return int(value)


ROUNDS = Setting(
    name="rounds",
    parse=_parse_rounds,
    default=lambda experts, before: 2,
    is_searched=True,
    metavar="R",
    help="rounds in which cabs-rounds prunes the vectors one after another (default 2)",
)


@dataclass(frozen=True, kw_only=True)
class CabsRounds(JointRule):
    """Prune the vectors one after another R times: in each round a vector keeps n/R of every m, the
    largest |τ| among the positions that no vector holds yet.

    Source: an idea for later of CABS, arXiv 2503.01874. With R = 1 it is CABS.
    """

    nm: PerExpert[NM] = setting(NM_SETTING)
    order: tuple[str, ...] = setting(ORDER)
    rounds: int = setting(ROUNDS)
    overlap: str = setting(OVERLAP, default="fill")
    tail: str = setting(TAIL, default="keep")
    name: ClassVar[str] = "cabs-rounds"

    def select_all(self, views: Sequence[TensorView]) -> list[Selection]:
        """Select n of every m weights of each vector, over all rounds.

        Round r of R takes floor(n·r/R) less what the rounds before it took. Where a block has too
        few free positions, a vector meets others, but not itself.
        """
        nms = [value_for(self.nm, view.expert) for view in views]

        def choose(weights: Sequence[Floats]) -> list[Bools]:
            masks = [np.zeros(len(w), np.bool_) for w in weights]
            taken = np.zeros(len(weights[0]), np.bool_)
            for turn in range(self.rounds):
                for tau, own, nm in zip(weights, masks, nms, strict=True):
                    rest = np.where(own, np.float32(0), tau)  # a weight that is 0 is never kept
                    own |= next_mask(rest, *nm, taken, self.overlap, self.tail, (turn, self.rounds))
                    taken |= own
            return masks

        return select_together(views, nms, choose)
