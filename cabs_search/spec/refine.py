"""Refinement of λ by gradient, as a spec has it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from cabs_search.spec.fields import STRICT, Once, listed

Objective = Literal["loss", "entropy"]
Level = Literal["groups", "expert", "layer", "module", "tensor"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Coarse to fine."""


def _ordered(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    if list(levels) != sorted(levels, key=LEVELS.index):
        raise ValueError(f"levels must be in order, coarse to fine, but got {', '.join(levels)}")
    return levels


Ridge = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Refine:
    """Refinement, by gradient, of λ of what the search recommends."""

    levels: Annotated[
        tuple[Level, ...], BeforeValidator(listed), Once, AfterValidator(_ordered)
    ] = ()
    """Parts of the model with a λ of their own, coarse to fine: ``expert``, ``layer``, ``module``
    (such as a layer's attention), ``tensor``, or ``groups``, the space's own. Empty: ``tensor``,
    or ``groups`` if the space has some.
    """
    steps: Annotated[int, Field(ge=2, le=10_000)] = 8
    """Evaluations for each level and fold; all but the last of ``lbfgs`` have a gradient."""
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    """``lbfgs`` evaluates all items of a fold at each step, ``adam`` one block."""
    objective: Objective = "loss"
    """Quantity that is made small: the loss, or the answers' entropy, which needs no label."""
    ridge: Annotated[tuple[Ridge, ...], BeforeValidator(listed), Field(min_length=1), Once] = (0.0,)
    """Weights of a penalty on the squared distance from the coarser level; of several the folds
    choose.
    """
    calibrated: bool = True
    """Whether losses are taken at the temperature that fits each task best at the start."""

    @property
    def seeks_temperatures(self) -> bool:
        """True if temperatures are chosen first; that takes labels."""
        return self.calibrated and self.objective == "loss"
