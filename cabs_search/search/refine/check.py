"""Check of a spec's refinement against its models and items, and what it will cost."""

from __future__ import annotations

from collections.abc import Sequence

from cabs_search.merging.method import combine_rule_of
from cabs_search.merging.recipe import Groups
from cabs_search.record.evaluations import BACKWARD
from cabs_search.search.objectives.registry import REFINED, objective_name
from cabs_search.search.refine.groups import groups_of
from cabs_search.spec.refine import Level, Refine
from cabs_search.spec.study import Spec

FEWEST_STEPS = 6
"""Fewest steps after which held-out items are looked at."""
FOLDS = 2
"""Parts of the search items: each fits λ by itself, and another one judges them."""


def levels_of(settings: Refine, own: Groups) -> Sequence[Level]:
    """Return the levels; if none are given, tensors, or the space's own groups."""
    return settings.levels or (("groups",) if own else ("tensor",))


def lengths_of(settings: Refine) -> list[int]:
    """Return the numbers of steps that the folds choose from: all, half of them, and so on."""
    lengths = [settings.steps]
    while settings.optimizer == "lbfgs" and lengths[-1] >= 2 * FEWEST_STEPS:
        lengths.append(lengths[-1] // 2)
    return lengths


def check_refine(spec: Spec, tensors: Sequence[str], blocks: int) -> None:
    """Check what a spec says of refining.

    Args:
        spec: the spec.
        tensors: names of the merged tensors; none: they are not known yet.
        blocks: number of blocks of the search items.

    Raises:
        ValueError: the levels do not fit to the tensors, there are too few blocks, the objective
            has no gradient, a task has none, or stacks of layers are searched.

    """
    settings = spec.search.refine
    if settings is None:
        return
    if spec.space.stack:
        raise ValueError("search.refine: λ of stacks of layers (space.stack) are not refined")
    if objective_name(spec) not in REFINED:
        raise ValueError(
            f"search.refine: needs the objective {', '.join(REFINED[:-1])} or {REFINED[-1]}, but"
            f" got {objective_name(spec)}"
        )
    methods = (*spec.space.method, *spec.baselines)
    rules = {name: combine_rule_of(name) for name in methods}
    if weights := [n for n, rule in rules.items() if rule.normalizes or rule.weighs != "none"]:
        raise ValueError(
            "search.refine: every method must have λ that are free of one another, but"
            f" those of {weights[0]} are weights of a mean; take task-arithmetic"
        )
    if generating := [name for name, task in spec.tasks.items() if task.kind.generates]:
        raise ValueError(
            f"search.refine: every task must have losses with a gradient, but {generating[0]} is"
            f" {spec.tasks[generating[0]].kind}"
        )
    if settings.objective == "entropy":
        for name, task in spec.tasks.items():
            if not task.kind.has_entropies:
                raise ValueError(
                    "search.refine.objective: entropy needs tasks that choose among answers, but"
                    f" {name} is {task.kind}"
                )
    if blocks < FOLDS:
        raise ValueError(
            f"search.refine: {FOLDS} blocks of search items are needed, one for each fold, but"
            f" there is {blocks}; choose a smaller search.block"
        )
    levels = levels_of(settings, spec.space.groups)
    if spec.space.groups and (wrong := set(levels) - {"groups", "tensor"}):
        raise ValueError(
            "search.refine.levels: groups or tensor must be refined where space.lambda.groups has"
            f" some, but got {min(wrong)}"
        )
    if spec.space.lambda_.anchors and "expert" in levels:
        raise ValueError(
            "search.refine.levels: layer, module or tensor must be refined where"
            " space.lambda.anchors is set, but got expert"
        )
    for level in levels if tensors else ():
        groups_of(level, tensors, spec.space.groups)


def most_items(spec: Spec, items: int, blocks: int) -> int:
    """Return the items that refining takes at most; a backward pass counts as two forward.

    Args:
        spec: the spec.
        items: search items of one candidate.
        blocks: number of their blocks.

    """
    settings = spec.search.refine
    if settings is None:
        return 0
    step, passes = float(items), settings.steps * (1 + BACKWARD)
    if settings.optimizer == "lbfgs":
        passes -= BACKWARD  # its last step has no gradient
    else:
        step *= FOLDS / blocks
    # each path's steps, its ends on held-out items, and the level's candidate
    path = passes * step + items * len(lengths_of(settings))
    levels = len(levels_of(settings, spec.space.groups))
    # before: the start on held-out items, and at every temperature
    begin = items * (1 + (settings.seeks_temperatures and objective_name(spec) != "awa"))
    return int(levels * (len(settings.ridge) * path + items) + begin)
