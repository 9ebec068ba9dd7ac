"""Combine rules as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args


@dataclass(frozen=True)
class Sum:
    """Σ λᵢ·τ̃ᵢ."""

    name: ClassVar[str] = "sum"
    beside: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Ties:
    """Where vectors meet, the sign of their sum is elected; the mean of those that agree (arXiv
    2306.01708).
    """

    name: ClassVar[str] = "ties"
    beside: ClassVar[tuple[str, ...]] = ("magnitude-vector", "magnitude", "dare", "cabs")
    """Mask rules that the papers compare with it."""


@dataclass(frozen=True)
class TiesSum:
    """As ``Ties``, with the sum of those that agree."""

    name: ClassVar[str] = "ties-sum"
    beside: ClassVar[tuple[str, ...]] = ("magnitude-vector", "magnitude")


Combine = Sum | Ties | TiesSum
COMBINES: dict[str, type[Combine]] = {rule.name: rule for rule in get_args(Combine)}
"""Every rule by its name."""
