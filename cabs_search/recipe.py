"""What names one merged model: plain frozen values that every stage shares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic:
    """Whole task vectors, added (arXiv 2212.04089)."""

    name: Literal["task-arithmetic"] = "task-arithmetic"


@dataclass(frozen=True, kw_only=True)
class Cabs:
    """Conflict-aware and balanced sparsification (arXiv 2503.01874)."""

    nm: tuple[int, int]
    """Weights kept per block, weights per block."""
    order: tuple[str, ...]
    """Experts in pruning order."""
    overlap: Literal["fill", "drop"] = "fill"
    """A block without n free positions: take the rest from taken ones (appendix A.3), or keep fewer."""
    tail: Literal["keep", "drop"] = "keep"
    """A last block of fewer than m weights: keep its share, or nothing (as the authors' script does)."""
    name: Literal["cabs"] = "cabs"


Method = TaskArithmetic | Cabs
METHOD_NAMES = ("task-arithmetic", "cabs")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method with its settings, and λ of every task vector."""

    method: Method
    lambdas: tuple[tuple[str, float], ...]
    """(expert, λ), in the family's order."""

    @property
    def lambda_(self) -> dict[str, float]:
        """λ by expert."""
        return dict(self.lambdas)

    @property
    def order(self) -> tuple[str, ...]:
        """Experts in the order their vectors are pruned and added."""
        return self.method.order if isinstance(self.method, Cabs) else tuple(self.lambda_)

    @property
    def is_shared(self) -> bool:
        """Whether one λ serves all experts."""
        return len({value for _, value in self.lambdas}) == 1

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, from which ``from_dict`` makes an equal recipe."""
        match self.method:
            case TaskArithmetic():
                settings: dict[str, Any] = {}
            case Cabs(nm=(n, m), order=order, overlap=overlap, tail=tail):
                settings = {"nm": f"{n}:{m}", "order": list(order), "overlap": overlap, "tail": tail}
        return {"method": self.method.name, **settings, "lambda": self.lambda_}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that ``as_dict`` described."""
        settings = {k: v for k, v in values.items() if k not in ("method", "lambda")}
        lambdas = tuple((str(k), float(v)) for k, v in values["lambda"].items())
        if values["method"] == "task-arithmetic":
            return cls(method=TaskArithmetic(**settings), lambdas=lambdas)
        settings |= {"nm": parse_nm(settings["nm"]), "order": tuple(settings["order"])}
        return cls(method=Cabs(**settings), lambdas=lambdas)

    @property
    def key(self) -> str:
        """A short name, equal for equal recipes: 16 hexadecimal digits."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __str__(self) -> str:
        values = set(self.lambda_.values())
        each = f"λ={values.pop():g}" if len(values) == 1 else " ".join(f"{k}={v:g}" for k, v in self.lambdas)
        match self.method:
            case TaskArithmetic():
                return f"task-arithmetic {each}"
            case Cabs(nm=(n, m), order=order):
                return f"cabs {n}:{m} {'>'.join(order)} {each}"


def make_recipe(method: Method, lambdas: Mapping[str, float]) -> Recipe:
    """A recipe with λ rounded to 1e-9, so that 0.1 + 0.2 and 0.3 are one candidate.

    Raises:
        ValueError: a λ is not finite, or too large for float32 sums.

    """
    for name, value in lambdas.items():
        if not abs(value) <= 1e6:
            raise ValueError(f"-1e6 <= λ <= 1e6 must hold, but got {name}={value}")
    return Recipe(method=method, lambdas=tuple((k, round(float(v), 9) + 0.0) for k, v in lambdas.items()))


def make_method(
    name: str,
    experts: Sequence[str],
    *,
    nm: tuple[int, int],
    order: Sequence[str] | None = None,
    overlap: str = "fill",
    tail: str = "keep",
) -> Method:
    """A method by its name. Raises ValueError where a setting breaks its rule."""
    if name == "task-arithmetic":
        return TaskArithmetic()
    if name != "cabs":
        raise ValueError(f"method must be one of {', '.join(METHOD_NAMES)}, but got {name!r}")
    check_nm(*nm)
    if sorted(order or experts) != sorted(experts):
        raise ValueError(f"order must name every expert once ({', '.join(experts)}), but got {', '.join(order or ())}")
    if overlap not in ("fill", "drop"):
        raise ValueError(f"overlap must be fill or drop, but got {overlap!r}")
    if tail not in ("keep", "drop"):
        raise ValueError(f"tail must be keep or drop, but got {tail!r}")
    return Cabs(nm=nm, order=tuple(order or experts), overlap=overlap, tail=tail)  # type: ignore[arg-type]


def parse_nm(text: str | Sequence[int]) -> tuple[int, int]:
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
