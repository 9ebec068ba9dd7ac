"""Field types that several parts of a spec share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", str_strip_whitespace=True)
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
MOST = 10**9
"""Largest whole number of a spec, but for seeds."""
Count = Annotated[int, Field(gt=0, le=MOST)]
Coefficient = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


def listed(value: Any) -> Any:
    """Wrap a single value in a list."""
    return [value] if isinstance(value, (str, float, int)) else value


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"each value must stand once, but got {value} twice")
    return values


Once = AfterValidator(_once)
"""Validator of a list without repeated values."""
