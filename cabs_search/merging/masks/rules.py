"""Mask rules as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, cast, get_args

T = TypeVar("T")
NM = tuple[int, int]
PerExpert: TypeAlias = T | tuple[tuple[str, T], ...]
"""One value for all experts, or (expert, value) pairs."""


@dataclass(frozen=True, kw_only=True)
class KeepAll:
    """Everything: Task Arithmetic (arXiv 2212.04089) where vectors are summed."""

    name: ClassVar[str] = "task-arithmetic"


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """The largest |τ| of each tensor (layer-wise)."""

    density: PerExpert[float]
    name: ClassVar[str] = "magnitude"


@dataclass(frozen=True, kw_only=True)
class RowMagnitude:
    """The largest |τ| of each row: of the weights that share a tensor's first index."""

    density: PerExpert[float]
    name: ClassVar[str] = "magnitude-row"


@dataclass(frozen=True, kw_only=True)
class VectorMagnitude:
    """The largest |τ| of the whole task vector, as TIES trims (arXiv 2306.01708); frozen tensors
    are no part of it.
    """

    density: PerExpert[float]
    name: ClassVar[str] = "magnitude-vector"


@dataclass(frozen=True, kw_only=True)
class Dare:
    """Each weight with probability d, kept ones divided by d (DARE, arXiv 2311.03099)."""

    density: PerExpert[float]
    seed: int
    name: ClassVar[str] = "dare"


@dataclass(frozen=True, kw_only=True)
class Random:
    """Each weight with probability d, as it is (the CABS paper's study of rescaling)."""

    density: PerExpert[float]
    seed: int
    name: ClassVar[str] = "random"


@dataclass(frozen=True, kw_only=True)
class RandomRescaled:
    """``Random``'s mask, kept weights divided by d: DARE by definition, with another draw."""

    density: PerExpert[float]
    seed: int
    name: ClassVar[str] = "random-rescaled"


@dataclass(frozen=True, kw_only=True)
class Wanda:
    """The largest |τ|·‖x‖₂ of each output row (arXiv 2306.11695); ``Magnitude`` where no linear
    layer is.
    """

    density: PerExpert[float]
    name: ClassVar[str] = "wanda"


@dataclass(frozen=True, kw_only=True)
class SparseGpt:
    """By second order, per output row (arXiv 2301.00774); ``Magnitude`` where no linear layer
    is.
    """

    density: PerExpert[float]
    name: ClassVar[str] = "sparsegpt"


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """The n largest |τ| of every m, each vector alone: the BS of CABS."""

    nm: PerExpert[NM]
    tail: Literal["keep", "drop"] = "keep"
    name: ClassVar[str] = "bs"


@dataclass(frozen=True, kw_only=True)
class ConflictAware:
    """The largest |τ| of each tensor among the positions no earlier vector kept: the CA of CABS."""

    density: PerExpert[float]
    order: tuple[str, ...]
    overlap: Literal["fill", "drop"] = "fill"
    name: ClassVar[str] = "ca"


@dataclass(frozen=True, kw_only=True)
class Cabs:
    """Conflict-aware and balanced sparsification (arXiv 2503.01874)."""

    nm: PerExpert[NM]
    order: tuple[str, ...]
    overlap: Literal["fill", "drop"] = "fill"
    tail: Literal["keep", "drop"] = "keep"
    name: ClassVar[str] = "cabs"


Mask = (
    KeepAll
    | Magnitude
    | RowMagnitude
    | VectorMagnitude
    | Dare
    | Random
    | RandomRescaled
    | Wanda
    | SparseGpt
    | Balanced
    | ConflictAware
    | Cabs
)
MASKS: dict[str, type[Mask]] = {rule.name: rule for rule in get_args(Mask)}
"""Every rule by its name."""
CALIBRATED = (Wanda, SparseGpt)
"""Rules that need a calibration pass."""


def settings(mask: Mask | type[Mask]) -> tuple[str, ...]:
    """The names of a rule's fields."""
    return tuple(f.name for f in fields(mask))


def value_for(setting: PerExpert[T], expert: str) -> T:
    """One expert's value of a setting."""
    if isinstance(setting, tuple) and setting and isinstance(setting[0], tuple):
        return cast("dict[str, T]", dict(setting))[expert]
    return cast("T", setting)


def density_of(mask: Mask, expert: str) -> float:
    """The share of an expert's vector that a rule keeps, where it has so many weights that are not
    0.
    """
    if "nm" in settings(mask):
        n, m = value_for(cast("Cabs", mask).nm, expert)
        return n / m
    return (
        value_for(cast("Magnitude", mask).density, expert) if "density" in settings(mask) else 1.0
    )


def order_of(mask: Mask, experts: Sequence[str]) -> tuple[str, ...]:
    """Experts in the order a rule prunes them; the given order where it makes no difference."""
    return mask.order if isinstance(mask, (Cabs, ConflictAware)) else tuple(experts)


def identity(mask: Mask, expert: str) -> dict[str, Any]:
    """What one vector's mask depends on, beside weights and the vectors pruned before it; JSON
    values.
    """
    found = {
        name: value_for(getattr(mask, name), expert) for name in settings(mask) if name != "order"
    }
    return {"mask": mask.name, **found} | ({"expert": expert} if "seed" in found else {})


def parse_nm(text: str | Sequence[int]) -> NM:
    """``"64:256"`` as (64, 256). Raises ValueError unless 0 < n <= m."""
    try:
        n, m = (int(part) for part in (text.split(":") if isinstance(text, str) else text))
    except ValueError:
        raise ValueError(f"n:m must be two whole numbers such as 64:256, but got {text}") from None
    check_nm(n, m)
    return n, m


def check_nm(n: int, m: int) -> None:
    """Raises ValueError unless 0 < n <= m."""
    if not n > 0:
        raise ValueError(f"0 < n must hold, but got {n}:{m}")
    if n > m:
        raise ValueError(f"n <= m must hold, but got {n}:{m}")


def check_density(density: float) -> None:
    """Raises ValueError unless 0 < density <= 1."""
    if not 0 < density <= 1:
        raise ValueError(f"0 < density <= 1 must hold, but got {density:g}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(choices)}, but got {value!r}")
