"""The mask rules that there are, and what follows from a rule's fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from cabs_search.merging.masks.arcee_fusion import ArceeFusion
from cabs_search.merging.masks.balanced import Balanced
from cabs_search.merging.masks.breadcrumbs import Breadcrumbs
from cabs_search.merging.masks.cabs import Cabs
from cabs_search.merging.masks.cabs_growing import CabsGrowing
from cabs_search.merging.masks.cabs_relative import CabsRelative
from cabs_search.merging.masks.cabs_rounds import CabsRounds
from cabs_search.merging.masks.changed import Changed
from cabs_search.merging.masks.conflict_aware import ConflictAware
from cabs_search.merging.masks.dare import Dare
from cabs_search.merging.masks.della import Della
from cabs_search.merging.masks.fisher import Fisher
from cabs_search.merging.masks.keep_all import KeepAll
from cabs_search.merging.masks.magnitude import Magnitude
from cabs_search.merging.masks.magnitude_row import RowMagnitude
from cabs_search.merging.masks.magnitude_vector import VectorMagnitude
from cabs_search.merging.masks.nearswap import NearSwap
from cabs_search.merging.masks.random_plain import Random
from cabs_search.merging.masks.random_rescaled import RandomRescaled
from cabs_search.merging.masks.regmean import RegMean
from cabs_search.merging.masks.rule import MaskRule
from cabs_search.merging.masks.settings import NM_SETTING, Setting, value_for
from cabs_search.merging.masks.sparse_gpt import SparseGpt
from cabs_search.merging.masks.variance import Variance
from cabs_search.merging.masks.wanda import Wanda

RULES: tuple[type[MaskRule], ...] = (
    KeepAll,
    Changed,
    Variance,
    Magnitude,
    RowMagnitude,
    VectorMagnitude,
    Breadcrumbs,
    NearSwap,
    ArceeFusion,
    Dare,
    Della,
    Random,
    RandomRescaled,
    Wanda,
    SparseGpt,
    RegMean,
    Fisher,
    Balanced,
    ConflictAware,
    Cabs,
    CabsRounds,
    CabsGrowing,
    CabsRelative,
)
"""Every rule, in the order in which comparisons list them."""
MASKS = {rule.name: rule for rule in RULES}
"""Rules by name."""
CALIBRATED = tuple(rule for rule in RULES if rule.calibration != "none")
"""Rules that need a calibration pass."""


@cache
def _settings_of(rule: Any) -> dict[str, Setting]:
    return {f.name: f.metadata["setting"] for f in fields(rule)}


def settings(mask: MaskRule | type[MaskRule]) -> dict[str, Setting]:
    """Return a rule's settings by the names of its fields."""
    return _settings_of(mask if isinstance(mask, type) else type(mask))  # type: ignore[arg-type]


SETTINGS = {NM_SETTING.name: NM_SETTING} | {
    name: one for rule in reversed(RULES) for name, one in settings(rule).items()
}
"""Every setting of every rule by name; n:m first, as the default of other settings rests on it."""


def density_of(mask: MaskRule, expert: str) -> float:
    """Return the share of an expert's vector that a rule keeps, if so many weights are not 0."""
    mask = mask.alike(expert)
    if "nm" in settings(mask):
        return float(value_for(mask.nm, expert).density)  # type: ignore[attr-defined]
    if "density" in settings(mask):
        return float(value_for(mask.density, expert))  # type: ignore[attr-defined]
    return 1.0


def order_of(mask: MaskRule, experts: Sequence[str]) -> tuple[str, ...]:
    """Return experts in the order a rule prunes them; the given order where it makes no
    difference.
    """
    return tuple(getattr(mask, "order", experts))


def identity(mask: MaskRule, expert: str) -> dict[str, Any]:
    """Return what one vector's mask depends on beside weights and earlier vectors, as JSON
    values.
    """
    mask = mask.alike(expert)
    own = {name: value_for(getattr(mask, name), expert) for name in settings(mask)}
    own.pop("order", None)  # the cache's key has the earlier vectors themselves
    return {"mask": mask.name, **own} | ({"expert": expert} if "seed" in own else {})
