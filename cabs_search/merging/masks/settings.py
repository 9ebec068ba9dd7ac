"""Settings of mask rules: everything that the program must know of one.

A rule's field names its setting (``density: PerExpert[float] = setting(DENSITY)``). Recipes,
cache keys, the search space, the command line and MLflow's parameters follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

T = TypeVar("T")
PerExpert: TypeAlias = T | tuple[tuple[str, T], ...]
"""One value for all experts, or (expert, value) pairs."""


class NM(NamedTuple):
    """n:m: n weights kept of every m."""

    n: int
    m: int

    @property
    def density(self) -> float:
        """Share of weights kept."""
        return self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting of mask rules: how it is read, written, searched and filled in."""

    name: str
    parse: Callable[[Any], Any]
    """Read one value from YAML, JSON, Python or the command line; ValueError if it breaks its
    rule.
    """
    text: Callable[[Any], str] = str
    """Write one value for people."""
    plain: Callable[[Any], Any] = lambda value: value
    """Write one value as JSON holds it."""
    default: Callable[[Sequence[str], Mapping[str, Any]], Any]
    """Value where none is given, from the experts' names and the settings before this one."""
    check: Callable[[Any, Sequence[str]], None] = lambda value, experts: None
    """Raise ValueError if a value does not fit the experts' names."""
    is_searched: bool = False
    """A space may list several values, and recipes show the one they have."""
    is_per_expert: bool = False
    """Experts may have values of their own."""
    metavar: str
    help: str

    def resolve(self, value: Any, experts: Sequence[str], before: Mapping[str, Any]) -> Any:
        """Complete and check a given value; None stands for the default.

        Raises:
            ValueError: the value breaks the setting's rule.

        """
        if value is None:
            value = self.default(experts, before)
        if self.is_per_expert and is_pairs(value):
            return collapsed({e: self.parse(value_for(value, e)) for e in experts})
        parsed = self.parse(value)
        self.check(parsed, experts)
        return parsed

    def as_plain(self, value: Any) -> Any:
        """Write a value, or the experts' values by name, as JSON holds it."""
        if is_pairs(value):
            return {expert: self.plain(one) for expert, one in value}
        return self.plain(value)

    def from_plain(self, value: Any) -> Any:
        """Read what ``as_plain`` wrote."""
        if isinstance(value, Mapping):
            return tuple((expert, self.parse(one)) for expert, one in value.items())
        return self.parse(value)

    def as_text(self, value: Any) -> str:
        """Write a value, or the experts' values, for people."""
        if is_pairs(value):
            return ",".join(f"{expert}={self.text(one)}" for expert, one in value)
        return self.text(value)


def setting(of: Setting, **options: Any) -> Any:
    """Declare a field of a mask rule; ``options`` as in ``dataclasses.field``."""
    return field(metadata={"setting": of}, **options)


def is_pairs(value: Any) -> bool:
    """Tell whether a value of a setting is (expert, value) pairs."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], tuple)


def value_for(value: PerExpert[T], expert: str) -> T:
    """Return one expert's value of a setting."""
    return cast("dict[str, T]", dict(value))[expert] if is_pairs(value) else cast("T", value)  # type: ignore[arg-type]


def collapsed(values: Mapping[str, T]) -> PerExpert[T]:
    """Return the one value that all experts have, else (expert, value) pairs."""
    distinct = set(values.values())
    return distinct.pop() if len(distinct) == 1 else tuple(values.items())


def parse_nm(text: str | Sequence[int]) -> NM:
    """Read ``"64:256"`` or a pair of numbers. Raises ValueError unless 0 < n <= m."""
    try:
        n, m = (int(part) for part in (text.split(":") if isinstance(text, str) else text))
        if not isinstance(text, str) and (n, m) != tuple(text):
            raise ValueError(text)
    except (TypeError, ValueError):
        raise ValueError(f"n:m must be two whole numbers such as 64:256, but got {text}") from None
    check_nm(n, m)
    return NM(n, m)


def check_nm(n: int, m: int) -> None:
    """Raise ValueError unless 0 < n <= m."""
    if not n > 0:
        raise ValueError(f"0 < n must hold, but got {n}:{m}")
    if n > m:
        raise ValueError(f"n <= m must hold, but got {n}:{m}")


def parse_density(value: Any) -> float:
    """Read a density. Raises ValueError unless 0 < density <= 1."""
    try:
        density = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"a density must be a number, but got {value}") from None
    if not 0 < density <= 1:
        raise ValueError(f"0 < density <= 1 must hold, but got {density:g}")
    return density


def number_between(name: str, low: float, high: float) -> Callable[[Any], float]:
    """Make the reader of a setting that is a number, both bounds allowed."""

    def parse(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be a number, but got {value}") from None
        if not low <= number <= high:
            raise ValueError(f"{low:g} <= {name} <= {high:g} must hold, but got {number:g}")
        return number

    return parse


def parse_order(value: str | Sequence[str]) -> tuple[str, ...]:
    """Read a pruning order: a list of experts, or their names with commas between them."""
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value)


def parse_seed(value: Any) -> int:
    """Read a seed. Raises ValueError unless it is a whole number from 0."""
    if not str(value).isdecimal():
        raise ValueError(f"a seed must be a whole number from 0, but got {value}")
    return int(value)


def check_order(order: Sequence[str], experts: Sequence[str]) -> None:
    """Raise ValueError unless an order names every expert once."""
    if sorted(order) != sorted(experts):
        raise ValueError(
            f"order must name every expert once ({', '.join(experts)}), but got {', '.join(order)}"
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(choices)}, but got {value!r}")


def one_of(name: str, *choices: str) -> Callable[[Any], str]:
    """Make the reader of a setting that is one of a few words."""

    def parse(value: Any) -> str:
        check_choice(name, value, choices)
        return str(value)

    return parse


def _density_of_nm(experts: Sequence[str], before: Mapping[str, Any]) -> PerExpert[float]:
    return collapsed({expert: value_for(before["nm"], expert).density for expert in experts})


NM_SETTING = Setting(
    name="nm",
    parse=parse_nm,
    plain=str,
    default=lambda experts, before: NM(64, 256),
    is_searched=True,
    is_per_expert=True,
    metavar="N:M",
    help="weights kept of every M (default 64:256)",
)
DENSITY = Setting(
    name="density",
    parse=parse_density,
    text="{:g}".format,
    default=_density_of_nm,
    is_searched=True,
    is_per_expert=True,
    metavar="D",
    help="share kept, by methods without n:m (default: n/m)",
)
ORDER = Setting(
    name="order",
    parse=parse_order,
    text=">".join,
    plain=list,
    default=lambda experts, before: tuple(experts),
    check=check_order,
    is_searched=True,
    metavar="A,B",
    help="pruning order (default: as the experts are given)",
)
OVERLAP = Setting(
    name="overlap",
    parse=one_of("overlap", "fill", "drop"),
    default=lambda experts, before: "fill",
    metavar="fill|drop",
    help="where masks cannot be disjoint: take kept positions again, or keep fewer (default fill)",
)
TAIL = Setting(
    name="tail",
    parse=one_of("tail", "keep", "drop"),
    default=lambda experts, before: "keep",
    metavar="keep|drop",
    help="a last block of fewer than M weights keeps its share, or nothing (default keep)",
)
SEED = Setting(
    name="seed",
    parse=parse_seed,
    default=lambda experts, before: 0,
    metavar="N",
    help="of random masks (default 0)",
)
