"""What names one merged model: plain frozen values that every stage shares.

A method is a mask rule (``sparsify``) and a combine rule (``combine``). Its name is the mask's,
with the combine rule's
before it unless vectors are just added: ``dare``, ``ties-dare``. ``ties`` alone trims whole
vectors, as its paper does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

from cabs_search.merging.combine.rules import COMBINES, Combine, Sum
from cabs_search.merging.masks.rules import (
    MASKS,
    NM,
    Mask,
    PerExpert,
    VectorMagnitude,
    check_choice,
    check_density,
    check_nm,
    order_of,
    parse_nm,
    settings,
    value_for,
)

Groups = tuple[tuple[str, str], ...]
"""Groups of tensors with λ of their own: (name, pattern); a tensor is in the first group whose
pattern it holds.
"""
SUM = Sum()


@dataclass(frozen=True, kw_only=True)
class Method:
    """How task vectors are pruned and how they add up."""

    mask: Mask
    combine: Combine = SUM

    @property
    def name(self) -> str:
        """As a spec writes it."""
        return _name(self.combine.name, self.mask.name)

    @property
    def has_order(self) -> bool:
        """Whether the pruning order makes a difference."""
        return "order" in settings(self.mask)

    @property
    def amount(self) -> str:
        """n:m or density as text; empty if the mask has neither."""
        for setting in ("nm", "density"):
            if setting in settings(self.mask):
                return _shown(getattr(self.mask, setting))
        return ""

    def __str__(self) -> str:
        shown = [self.name]
        for setting in ("nm", "density", "order"):
            if setting in settings(self.mask):
                value = getattr(self.mask, setting)
                shown.append(">".join(value) if setting == "order" else _shown(value))
        return " ".join(shown)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method with its settings, and λ of every task vector."""

    method: Method
    lambdas: tuple[tuple[str, float], ...]
    """(expert, λ) in the family's order; with groups (expert.group, λ)."""
    groups: Groups = ()

    @cached_property
    def lambda_(self) -> dict[str, float]:
        """λ by expert, or by expert.group."""
        return dict(self.lambdas)

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts in the family's order."""
        return tuple(dict.fromkeys(key.split(".")[0] for key, _ in self.lambdas))

    @property
    def order(self) -> tuple[str, ...]:
        """Experts in the order their vectors are pruned and added."""
        return order_of(self.method.mask, self.experts)

    @property
    def is_shared(self) -> bool:
        """Whether one λ serves all experts."""
        return len({value for _, value in self.lambdas}) == 1

    def lambda_of(self, expert: str, tensor: str) -> float:
        """λ of one expert's vector in one tensor."""
        return self.lambda_[f"{expert}.{group_of(self.groups, tensor)}" if self.groups else expert]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, from which ``from_dict`` makes an equal recipe."""
        mask = self.method.mask
        values = {name: _plain(getattr(mask, name)) for name in settings(mask)}
        groups = (
            {"groups": [list(group) for group in self.groups]} if self.groups else {}
        )  # their order counts
        return {"method": self.method.name, **values, **groups, "lambda": self.lambda_}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that ``as_dict`` described."""
        rest = {k: v for k, v in values.items() if k not in ("method", "lambda", "groups")}
        if "nm" in rest:
            rest["nm"] = _each(rest["nm"], parse_nm)
        if "density" in rest:
            rest["density"] = _each(rest["density"], float)
        if "order" in rest:
            rest["order"] = tuple(rest["order"])
        combine, mask = split_name(values["method"])
        return cls(
            method=Method(mask=MASKS[mask](**rest), combine=COMBINES[combine]()),
            lambdas=tuple((str(k), float(v)) for k, v in values["lambda"].items()),
            groups=tuple((str(name), str(pattern)) for name, pattern in values.get("groups", ())),
        )

    @cached_property
    def key(self) -> str:
        """A short name, equal for equal recipes: 16 hexadecimal digits."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __str__(self) -> str:
        values = set(self.lambda_.values())
        each = (
            f"λ={values.pop():g}"
            if len(values) == 1
            else " ".join(f"{k}={v:g}" for k, v in self.lambdas)
        )
        return f"{self.method} {each}"


def make_recipe(method: Method, lambdas: Mapping[str, float], groups: Groups = ()) -> Recipe:
    """A recipe with λ rounded to 1e-9, so that 0.1 + 0.2 and 0.3 are one candidate.

    Args:
        method: the method.
        lambdas: λ by expert; with groups by expert.group. Groups in which every expert has one λ
            are left out: it is
            the same merged model.
        groups: groups of tensors.

    Raises:
        ValueError: a λ is not finite, or too large for float32 sums.

    """
    for name, value in lambdas.items():
        if not abs(value) <= 1e6:
            raise ValueError(f"-1e6 <= λ <= 1e6 must hold, but got {name}={value}")
    rounded = {key: round(float(value), 9) + 0.0 for key, value in lambdas.items()}
    if groups:
        by_expert: dict[str, set[float]] = {}
        for key, value in rounded.items():
            by_expert.setdefault(key.split(".")[0], set()).add(value)
        if all(len(values) == 1 for values in by_expert.values()):
            groups, rounded = (), {expert: values.pop() for expert, values in by_expert.items()}
    return Recipe(method=method, lambdas=tuple(rounded.items()), groups=groups)


@lru_cache(maxsize=100_000)
def group_of(groups: Groups, tensor: str) -> str:
    """The group that a tensor is in. Raises ValueError where it is in none."""
    for name, pattern in groups:
        if re.search(pattern, tensor):
            return name
    raise ValueError(
        f"every merged tensor must be in a group of λ, but {tensor} is in none of"
        f" {', '.join(n for n, _ in groups)}"
    )


def make_method(
    name: str,
    experts: Sequence[str],
    *,
    nm: PerExpert[NM] = (64, 256),
    density: PerExpert[float] | None = None,
    order: Sequence[str] | None = None,
    overlap: str = "fill",
    overlap_merge: str = "sum",
    tail: str = "keep",
    seed: int = 0,
) -> Method:
    """A method by its name, with those of the settings that its mask rule has.

    Args:
        name: one of METHOD_NAMES, or any other COMBINE-MASK.
        experts: the experts' names.
        nm: weights kept per block, weights per block; for all or (expert, value) pairs.
        density: share kept; for all or (expert, value) pairs; None: n/m.
        order: pruning order; None: that of ``experts``.
        overlap, tail, seed: as in ``sparsify``.
        overlap_merge: ``sum`` or ``ties``, how vectors add up where rules that keep them apart
            could not; ``ties``
            makes ``cabs`` the method ``ties-cabs``.

    Raises:
        ValueError: a setting breaks its rule.

    """
    combine, mask = split_name(name)
    nms = {e: value_for(nm, e) for e in experts}
    densities = {
        e: n / m if density is None else value_for(density, e) for e, (n, m) in nms.items()
    }
    for n, m in nms.values():
        check_nm(n, m)
    for value in densities.values():
        check_density(value)
    if sorted(order or experts) != sorted(experts):
        raise ValueError(
            f"order must name every expert once ({', '.join(experts)}), but got"
            f" {', '.join(order or ())}"
        )
    check_choice("overlap", overlap, ("fill", "drop"))
    check_choice("overlap_merge", overlap_merge, ("sum", "ties"))
    check_choice("tail", tail, ("keep", "drop"))
    values: dict[str, Any] = {
        "nm": collapsed(nms),
        "density": collapsed(densities),
        "order": tuple(order or experts),
        "overlap": overlap,
        "tail": tail,
        "seed": seed,
    }
    rule = MASKS[mask]
    if "overlap" in settings(rule) and overlap_merge == "ties" and combine == SUM.name:
        combine = "ties"
    return Method(
        mask=rule(**{name: values[name] for name in settings(rule)}), combine=COMBINES[combine]()
    )


def collapsed(values: Mapping[str, Any]) -> PerExpert[Any]:
    """One value where all experts have the same, else (expert, value) pairs."""
    return next(iter(values.values())) if len(set(values.values())) == 1 else tuple(values.items())


def split_name(method: str) -> tuple[str, str]:
    """The names of a method's combine and mask rules. Raises ValueError where there is no such
    method.
    """
    for combine in COMBINES:
        for mask in MASKS:
            if method == _name(combine, mask):
                return combine, mask
    raise ValueError(f"method must be one of {', '.join(METHOD_NAMES)}, but got {method!r}")


def _name(combine: str, mask: str) -> str:
    if combine == SUM.name:
        return mask
    return combine if mask == VectorMagnitude.name else f"{combine}-{mask}"


METHOD_NAMES = tuple(
    _name(rule.name, mask) for rule in COMBINES.values() for mask in rule.beside or tuple(MASKS)
)
"""The methods that the papers compare, and so does ``compare --over method``."""


def _plain(value: Any) -> Any:
    """A setting as JSON: n:m as text, pairs as a mapping."""
    if not isinstance(value, tuple):
        return value
    if isinstance(value[0], tuple):
        return {expert: _plain(setting) for expert, setting in value}
    return list(value) if isinstance(value[0], str) else f"{value[0]}:{value[1]}"


def _each(value: Any, parse: Any) -> Any:
    return (
        tuple((k, parse(v)) for k, v in value.items())
        if isinstance(value, Mapping)
        else parse(value)
    )


def _shown(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, dict):
        return ",".join(
            f"{expert}={_shown(cast('Any', setting))}" for expert, setting in plain.items()
        )
    return plain if isinstance(plain, str) else f"{plain:g}"
