"""mergekit's methods that are here as well, and what a conversion could not carry over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Summed(NamedTuple):
    """A method of mergekit that prunes task vectors, weighs them and adds them up."""

    mask: str
    """Mask rule here."""
    elects: bool
    """True if signs are elected, as in TIES."""
    normalize: bool
    """mergekit's defaults of ``normalize`` and ``rescale``."""
    rescale: bool


SUMMED = {
    "task_arithmetic": Summed("task-arithmetic", False, False, False),
    "ties": Summed("magnitude", True, True, False),
    "dare_linear": Summed("dare", False, False, True),
    "dare_ties": Summed("dare", True, False, True),
    "breadcrumbs": Summed("breadcrumbs", False, False, False),
    "breadcrumbs_ties": Summed("breadcrumbs", True, False, False),
    "della_linear": Summed("della", False, False, True),
    "della": Summed("della", True, True, True),
}
PLAIN = {
    "sce": ("sce", {"select_topk": "density"}),
    "ram": ("ram", {"epsilon": "threshold"}),
    "ramplus_tl": ("ram-plus", {"epsilon": "threshold"}),
    "model_stock": ("model-stock", {}),
    "nearswap": ("nearswap", {"t": "limit"}),
    "karcher": ("karcher", {}),
    "arcee_fusion": ("arcee-fusion", {}),
}
"""Methods without weights: ours with λ = 1, and our settings by mergekit's parameters."""
FIXED: dict[str, dict[str, Any]] = {
    "ramplus_tl": {"r": 0.1, "alpha": 0.2},
    "model_stock": {"filter_wise": False},
    "multislerp": {"eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "nuslerp": {"nuslerp_flatten": True},
}
"""Parameters of mergekit that have one value here."""
EXTRA = {"breadcrumbs": ("gamma", 0.01), "della": ("epsilon", 0.15)}
"""Setting that a mask rule has beside its density, with mergekit's default."""
METHODS = (*SUMMED, "linear", *PLAIN, "multislerp", "slerp", "nuslerp")
OF_MODELS = ("linear", "karcher", "slerp")
"""Methods of whole models, in which mergekit counts the base as one of them."""
OF_ONE = ("nearswap", "arcee_fusion")
"""Methods that take one model beside the base."""
REMARKS = {
    "sce": "where the means of τ² add up to less than 1e-6, mergekit weighs all models alike",
    "model_stock": "where angles are above 90° on average, mergekit goes backwards from the base;"
    " here the tensor stays the base's",
    "multislerp": "where the directions of two models cancel, mergekit takes their weighted mean;"
    " here the tensor stays the base's",
    "karcher": "mergekit computes angles in float32, which loses those below 3e-4",
    "arcee_fusion": "mergekit computes divergences in float32, and quartiles of a tensor with more"
    " than a million weights from a million that it draws",
}
"""Differences between two implementations of one method."""


@dataclass
class Notes:
    """Lines that a conversion says."""

    losses: list[str] = field(default_factory=list)
    """Settings that could not be carried over and that change the merged weights."""
    notes: list[str] = field(default_factory=list)
    """Settings that were left out without such an effect, and differences in how the two programs
    round or draw.
    """

    def lose(self, line: str) -> None:
        """Note a loss once."""
        if line not in self.losses:
            self.losses.append(line)

    def note(self, line: str) -> None:
        """Note another difference once."""
        if line not in self.notes:
            self.notes.append(line)

    @property
    def lines(self) -> list[str]:
        """All lines, losses first."""
        return [f"changes the weights: {line}" for line in self.losses] + [
            f"note: {line}" for line in self.notes
        ]


def note_pruning(mask: str, densities: list[float], notes: Notes) -> None:
    """Note how masks differ between the programs."""
    if mask in ("dare", "random", "della"):
        notes.note("parameters.density: random masks are drawn by either program in its own way")
        if mask != "random":
            notes.note(
                "parameters.rescale: kept weights are divided by their probability; mergekit gives"
                " each tensor its L1 norm back, which is the same on average"
            )
    elif min(densities, default=1.0) < 1:
        notes.note(
            "parameters.density: mergekit rounds the number of weights kept down, here it is"
            " rounded to the nearest: one weight of a tensor, more or less"
        )
