"""Methods: a mask rule and a combine rule, and their names.

A method's name is the mask's, with the combine rule's before it unless vectors are just added:
``dare``, ``ties-dare``. A combine rule's name alone has the mask of its paper: ``ties`` trims whole
vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cabs_search.merging.combine.plain_sum import Sum
from cabs_search.merging.combine.rule import CombineRule
from cabs_search.merging.combine.rules import COMBINES
from cabs_search.merging.masks.rule import MaskRule
from cabs_search.merging.masks.rules import MASKS, SETTINGS, settings
from cabs_search.merging.masks.settings import check_choice

SUM = Sum()
CALIBRATION_ITEMS = 128
"""Calibration items of each expert's task; Wanda and SparseGPT take as many sequences."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to prune task vectors and to add them up."""

    mask: MaskRule
    combine: CombineRule = SUM

    @property
    def name(self) -> str:
        """Name in a spec."""
        return _name(self.combine.name, self.mask.name)

    @property
    def is_sum(self) -> bool:
        """True if vectors are added as they are pruned."""
        return isinstance(self.combine, Sum)

    @property
    def is_linear(self) -> bool:
        """True if, besides, λ or its share is each vector's factor, whatever the others are."""
        return self.is_sum and self.combine.weighs == "none"

    @property
    def has_order(self) -> bool:
        """True if the pruning order makes a difference."""
        return "order" in settings(self.mask)

    @property
    def shown(self) -> dict[str, str]:
        """Texts of the settings that a search varies, by name."""
        return {
            name: one.as_text(getattr(self.mask, name))
            for name, one in settings(self.mask).items()
            if one.is_searched
        }

    @property
    def amount(self) -> str:
        """n:m or density as text; empty if the mask has neither."""
        return self.shown.get("nm", self.shown.get("density", ""))

    def __str__(self) -> str:
        return " ".join([self.name, *self.shown.values()])


def check_experts(
    methods: Iterable[str], experts: Collection[str], where: str = "space.method"
) -> None:
    """Raise ValueError, which begins with ``where``, if a method cannot merge so many experts."""
    for name in methods:
        count = combine_rule_of(name).experts
        if count not in (None, len(experts)):
            raise ValueError(f"{where}: {name} merges {count} experts, but got {len(experts)}")


def calibrated_methods(methods: Iterable[str]) -> list[str]:
    """Return the methods whose mask rule needs calibration items."""
    return [name for name in methods if rule_of(name).calibration != "none"]


def calibration_note(methods: Iterable[str]) -> str:
    """Return the sentence for plans and reports on calibration items; empty if none are used."""
    names = dict.fromkeys(calibrated_methods(methods))
    if not names:
        return ""
    return (
        f"What a vector keeps rests on the first {CALIBRATION_ITEMS} search items of each expert's"
        f" task, without their label column, in {', '.join(names)}."
    )


def make_method(
    name: str, experts: Sequence[str], *, overlap_merge: str = "sum", **given: Any
) -> Method:
    """Make a method by its name, with those of the settings that its mask rule has.

    Args:
        name: one of METHOD_NAMES, or any other COMBINE-MASK.
        experts: the experts' names.
        overlap_merge: ``sum`` or ``ties``: how vectors add up where a rule that keeps them apart
            could not. ``ties`` makes ``cabs`` the method ``ties-cabs``.
        given: settings by name, each one value or (expert, value) pairs. None or absent: the
            default (``masks.settings``).

    Raises:
        ValueError: there is no such setting, or one breaks its rule.

    """
    combine, mask = split_name(name)
    check_choice("overlap_merge", overlap_merge, ("sum", "ties"))
    if unknown := given.keys() - SETTINGS.keys():
        raise ValueError(f"a setting must be one of {', '.join(SETTINGS)}, but got {min(unknown)}")
    values: dict[str, Any] = {}
    for setting in SETTINGS.values():
        values[setting.name] = setting.resolve(given.get(setting.name), experts, values)
    rule = MASKS[mask]
    own = settings(rule)
    if "overlap" in own and overlap_merge == "ties" and combine == SUM.name:
        combine = "ties"
    return Method(mask=rule(**{name: values[name] for name in own}), combine=COMBINES[combine]())


@lru_cache
def split_name(method: str) -> tuple[str, str]:
    """Return the names of a method's combine and mask rules.

    Raises:
        ValueError: there is no such method.

    """
    for combine in COMBINES:
        for mask in MASKS:
            if method == _name(combine, mask):
                return combine, mask
    raise ValueError(f"method must be one of {', '.join(METHOD_NAMES)}, but got {method!r}")


def rule_of(method: str) -> type[MaskRule]:
    """Return the mask rule of a method. Raises ValueError if there is no such method."""
    return MASKS[split_name(method)[1]]


def combine_rule_of(method: str) -> type[CombineRule]:
    """Return the combine rule of a method. Raises ValueError if there is no such method."""
    return COMBINES[split_name(method)[0]]


def _name(combine: str, mask: str) -> str:
    if combine == SUM.name:
        return mask
    return combine if mask == COMBINES[combine].alone else f"{combine}-{mask}"


_COMPARED = tuple(name for name, rule in MASKS.items() if rule.is_compared)
METHOD_NAMES = tuple(
    _name(rule.name, mask) for rule in COMBINES.values() for mask in rule.beside or _COMPARED
)
"""Methods that the papers compare, and so does ``compare --over method``."""
