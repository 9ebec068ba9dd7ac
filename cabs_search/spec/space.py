"""Space of a search: methods, settings and λ."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from cabs_search.merging.layers import LEAST_ANCHORS, MOST_LAYERS, check_anchors
from cabs_search.merging.masks import settings
from cabs_search.merging.masks.rules import SETTINGS
from cabs_search.merging.method import split_name
from cabs_search.merging.recipe import Groups, anchor_names
from cabs_search.merging.stack import MERGED, MOST_SCALE
from cabs_search.spec.fields import STRICT, Coefficient, Name, Once, listed

MOST_STEPS = 1_000_000
"""Values that a range of λ may hold."""


def _nm(value: Any) -> settings.NM:
    if not isinstance(value, str) and not (isinstance(value, (list, tuple)) and len(value) == 2):
        raise ValueError(f"n:m must be written as n:m, such as 64:256, but got {value!r}")
    return settings.parse_nm(value)


def _method(name: str) -> str:
    split_name(name)
    return name


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"a group must be a regular expression, but got {text!r}: {error}"
        ) from None
    return text


NM = Annotated[settings.NM, PlainValidator(_nm), PlainSerializer(str)]
MethodName = Annotated[str, AfterValidator(_method)]
Density = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Pattern = Annotated[str, AfterValidator(_pattern)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Range:
    """Values of λ."""

    low: Coefficient = 0.0
    high: Coefficient = 2.0
    step: Annotated[float, Field(gt=0)] = 0.01

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(
                f"low <= high must hold, but got (low={self.low:g}, high={self.high:g})"
            )
        if (self.high - self.low) / self.step > MOST_STEPS:
            raise ValueError(
                f"(high - low) / step <= {MOST_STEPS} must hold, but step is {self.step:g}"
            )
        if not math.isclose(
            round((self.high - self.low) / self.step) * self.step,
            self.high - self.low,
            abs_tol=1e-9,
        ):
            raise ValueError(
                f"high - low must be a multiple of step, but got (low={self.low:g},"
                f" high={self.high:g}, step={self.step:g})"
            )
        return self

    @property
    def steps(self) -> int:
        """Number of its values."""
        return round((self.high - self.low) / self.step) + 1

    def __contains__(self, value: float) -> bool:
        steps = (value - self.low) / self.step
        return self.low - 1e-9 <= value <= self.high + 1e-9 and math.isclose(
            steps, round(steps), abs_tol=1e-6
        )

    @property
    def values(self) -> list[float]:
        """All of its values."""
        return [min(self.low + place * self.step, self.high) for place in range(self.steps)]

    def grid(self, most: int) -> tuple[float, ...]:
        """At most so many of its values, evenly spread, both ends among them."""
        count = min(most, self.steps)
        places = [round(i * (self.steps - 1) / max(1, count - 1)) for i in range(count)]
        return tuple(round(self.low + place * self.step, 9) for place in places)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lambda(Range):
    """The range of λ, and which task vectors, tensors and methods have one of their own."""

    shared: bool = False
    """One λ for all experts, or one for each."""
    groups: dict[Name, Pattern] = Field(default_factory=dict)
    """Tensors that have λ of their own: a regular expression searched for in their names, by the
    group's name; a tensor is in the first group that fits.
    """
    anchors: Annotated[int, Field(ge=LEAST_ANCHORS, le=MOST_LAYERS)] | None = None
    """Values of each λ at places spread evenly from the first layer to the last, between which it
    is interpolated; outside all layers the first one counts. None: one λ in all layers.
    """
    layers: Annotated[int, Field(ge=LEAST_ANCHORS, le=MOST_LAYERS)] | None = None
    """Number of the model's layers, of a space with anchors. None: it is still to be counted."""
    methods: dict[MethodName, Range] = Field(default_factory=dict)
    """Ranges of methods that need another one, as those do that rescale what they keep."""

    @model_validator(mode="after")
    def _one_division(self) -> Self:
        if self.anchors and self.groups:
            raise ValueError("anchors must not stand beside groups: λ go by depth or by name")
        if self.layers:
            if not self.anchors:
                raise ValueError("layers must not stand without anchors")
            check_anchors(self.anchors, self.layers)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stacks:
    """Stacks of layers to search: data-flow merging of arXiv 2403.13187."""

    sources: (
        Annotated[tuple[Name, ...], BeforeValidator(listed), Field(min_length=1), Once] | None
    ) = None
    """Models whose layers may stand in a stack: experts, ``base``, and ``merged`` for the merge.
    None: the merge, then every expert.
    """
    repeat: Annotated[int, Field(ge=1, le=16)] = 1
    """Number of times that the layers of all models stand in line."""
    by: Literal["model", "depth"] = "model"
    """Order in line: all layers of a model, then all of the next; or the first layers of all
    models, then the second ones.
    """
    scale: Range | None = None
    """Values of each layer's scale. None: 1."""
    layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)] | None = None
    """Number of the model's layers. None: it is still to be counted."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if self.scale is not None and 1.0 not in self.scale:
            raise ValueError("scale: 1 must be one of its values")
        if self.scale is not None and max(-self.scale.low, self.scale.high) > MOST_SCALE:
            raise ValueError(f"scale: must lie between -{MOST_SCALE:g} and {MOST_SCALE:g}")
        return self

    def sources_of(self, experts: Sequence[str]) -> tuple[str, ...]:
        """Return the models whose layers may stand in a stack; ``experts``: all of them."""
        return self.sources or (MERGED, *experts)

    @property
    def identity(self) -> str:
        """Text of the fields that a study may not change while it goes on."""
        text = f"{_as_text(self.sources or 'all')} {self.repeat} times by {self.by}"
        if self.scale is None:
            return text
        low, high, step = self.scale.low, self.scale.high, self.scale.step
        return f"{text}, scale {low:g} to {high:g} by {step:g}"


def _stacks(value: Any) -> Any:
    """Read yes and no as settings."""
    if isinstance(value, bool):
        return Stacks() if value else None
    return value


SPACE_SETTINGS = ("nm", "density", "order", "overlap", "tail")
"""Settings of mask rules that are fields of ``Space``; those of other rules are gathered in
``more``.
"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Space:
    """Space of a search: every field with more than one value is a dimension.

    Beside these fields, a space takes every setting that a mask rule declares.
    """

    lambda_: Lambda = Field(default=Lambda(), alias="lambda")
    method: Annotated[
        tuple[MethodName, ...], BeforeValidator(listed), Field(min_length=1), Once
    ] = ("cabs",)
    nm: Annotated[tuple[NM, ...], BeforeValidator(listed), Field(min_length=1), Once] = (
        settings.NM(64, 256),
    )
    density: (
        Annotated[tuple[Density, ...], BeforeValidator(listed), Field(min_length=1), Once] | None
    ) = None
    """Share kept by methods without n:m. None: the n/m of ``nm``."""
    density_shared: bool = True
    """One density, or n:m, for all experts, or one for each."""
    order: (
        Literal["all"] | Annotated[tuple[tuple[Name, ...], ...], Field(min_length=1), Once] | None
    ) = None
    """Pruning orders: ``all``, a list, or (None) just the experts' own."""
    overlap: Literal["fill", "drop"] = "fill"
    overlap_merge: Literal["sum", "ties"] = "sum"
    """Combine rule where masks that should be disjoint meet."""
    tail: Literal["keep", "drop"] = "keep"
    stack: Annotated[Stacks | None, BeforeValidator(_stacks)] = None
    """Stacks of layers to search; None: layers stand as they are. ``true``: the defaults."""
    more: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Values of other settings of mask rules, by the setting's name."""

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, values: Any) -> Any:
        given = dict(values.kwargs or {}) if isinstance(values, ArgsKwargs) else values
        own = {"seed", *SPACE_SETTINGS}
        names = SETTINGS.keys() - own
        if not isinstance(given, dict) or not names & given.keys():
            return values
        more = {name: _read(name, given[name]) for name in given if name in names}
        return {k: v for k, v in given.items() if k not in names} | {"more": more}

    def identity(self) -> dict[str, str]:
        """Return what a study may not change while it goes on, all but ranges of λ, as text by
        field.
        """
        texts = {f.name: _as_text(getattr(self, f.name)) for f in fields(self)}
        del texts["lambda_"], texts["more"], texts["stack"]
        texts |= {name: _as_text(values) for name, values in self.more.items()}
        return texts | {
            "density": _as_text(self.densities),
            "lambda.shared": str(self.lambda_.shared),
            "lambda.groups": _as_text(self.groups),
            **({"lambda.anchors": str(self.lambda_.anchors)} if self.lambda_.anchors else {}),
            **({"stack": self.stack.identity} if self.stack else {}),
        }

    def replace(self, **changes: Any) -> Space:
        """Copy the space with some fields, or settings of mask rules, changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        more = {name: changes.pop(name) for name in [*changes] if name not in values}
        values |= changes
        values["more"] = {**values["more"], **more}
        return Space(**{"lambda": values.pop("lambda_")}, **values)

    @cached_property
    def densities(self) -> tuple[float, ...]:
        """Densities of methods without n:m."""
        return self.density or tuple(dict.fromkeys(nm.density for nm in self.nm))

    def range_of(self, method: str) -> Range:
        """Return a method's range of λ."""
        return self.lambda_.methods.get(method, self.lambda_)

    @cached_property
    def groups(self) -> Groups:
        """Groups of tensors with λ of their own."""
        return tuple(self.lambda_.groups.items())

    @cached_property
    def lambda_parts(self) -> tuple[str, ...]:
        """Parts of the model with a λ for each expert: groups, anchors, or the whole, ``""``."""
        names = tuple(self.lambda_.groups) or anchor_names(self.lambda_.anchors or 0)
        return names or ("",)


def _read(name: str, value: Any) -> tuple[Any, ...]:
    """Read the values of a mask rule's setting.

    Raises:
        ValueError: there is none, one breaks its rule, or one is there twice.

    """
    given = listed(value)
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f"{name}: a value or a list of values is needed, but got {value}")
    try:
        found = tuple(SETTINGS[name].parse(one) for one in given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
    if len(set(found)) < len(found):
        raise ValueError(f"{name}: values must differ, but got {value}")
    return found


def _as_text(value: Any) -> str:
    """Write a setting for people: a list with commas, n:m and orders as they are written."""
    if not isinstance(value, tuple):
        return str(value)
    texts = (">".join(v) if type(v) is tuple else str(v) for v in value)
    return ", ".join(texts)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Baseline:
    """Candidates with one λ for all experts, scored before any proposal."""

    lambda_: Annotated[tuple[Coefficient, ...], Field(min_length=1, alias="lambda")]
    nm: NM | None = None
    """None: the space's first."""
    density: Density | None = None
    """None: the space's first."""
    order: tuple[Name, ...] | None = None
    """None: the space's first."""
