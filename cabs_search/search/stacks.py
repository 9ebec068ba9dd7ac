"""Optuna parameters of stacks: for each layer in line whether it is in, and its scale.

The line has the layers of all models, ``repeat`` times: arXiv 2403.13187, section 3.2, where
indicators are called I and scales W. Parameters: ``layer.MODEL.NUMBER.COPY``, 1 if the layer is in,
else 0; ``scale.MODEL.NUMBER.COPY``. A candidate without any layer is the merge itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cabs_search.merging.stack import MERGED, Slot, Stack, whole
from cabs_search.spec.space import Stacks

if TYPE_CHECKING:
    import optuna


def line_of(stacks: Stacks, experts: Sequence[str]) -> dict[str, Slot]:
    """Return the layers that may stand in a stack, in order, by the names of their parameters."""
    layers = range(stacks.layers or 0)
    slots = [Slot(source, layer) for source in stacks.sources_of(experts) for layer in layers]
    if stacks.by == "depth":
        slots.sort(key=lambda slot: slot.layer)
    copies = range(1, stacks.repeat + 1)
    return {f"{slot.source}.{slot.layer}.{copy}": slot for copy in copies for slot in slots}


def starts_of(stacks: Stacks, experts: Sequence[str]) -> list[Stack]:
    """Return the stacks that a search begins with: each model's own."""
    return [
        normal(whole(source, stacks.layers or 0), stacks) for source in stacks.sources_of(experts)
    ]


def normal(stack: Stack, stacks: Stacks) -> Stack:
    """Return a stack as recipes have it, where all layers of the merge are none."""
    return () if stack == whole(MERGED, stacks.layers or 0) else stack


def suggest_stack(trial: optuna.Trial, stacks: Stacks, experts: Sequence[str]) -> Stack:
    """Make the stack that a trial's sampler proposes."""
    slots: list[Slot] = []
    for name, slot in line_of(stacks, experts).items():
        is_in, scale = trial.suggest_int(f"layer.{name}", 0, 1), 1.0
        if range_ := stacks.scale:
            scale = trial.suggest_float(f"scale.{name}", range_.low, range_.high, step=range_.step)
        if is_in:
            slots.append(slot._replace(scale=scale))
    return normal(tuple(slots), stacks)


def stack_params(
    stack: Stack, stacks: Stacks, experts: Sequence[str]
) -> dict[str, int | float] | None:
    """Return parameters with which ``suggest_stack`` gives a stack; None if there are none."""
    line = line_of(stacks, experts)
    if not stack and MERGED in stacks.sources_of(experts):
        stack = whole(MERGED, stacks.layers or 0)
    params: dict[str, int | float] = {}
    left = list(stack)
    for name, slot in line.items():
        is_in = bool(left) and left[0]._replace(scale=1.0) == slot
        scale = left.pop(0).scale if is_in else 1.0
        params[f"layer.{name}"] = int(is_in)
        if stacks.scale is None and scale != 1:
            return None
        if stacks.scale is not None:
            if scale not in stacks.scale:
                return None
            params[f"scale.{name}"] = scale
    return None if left else params


def stack_values(stacks: Stacks, experts: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Return the values of every parameter of a stack, by name."""
    found: dict[str, Sequence[Any]] = {}
    for name in line_of(stacks, experts):
        found[f"layer.{name}"] = (0, 1)
        if stacks.scale is not None:
            found[f"scale.{name}"] = stacks.scale.values
    return found


def count_stacks(stacks: Stacks, experts: Sequence[str]) -> int:
    """Count the ways to choose layers and scales."""
    scales = stacks.scale.steps if stacks.scale else 1
    return int((1 + scales) ** len(line_of(stacks, experts)))
