"""Prune one tensor of every task vector, in the order a rule prunes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from cabs_search.merging.calibration import Calibration
from cabs_search.merging.masks.rule import Bools, JointRule, MaskRule, Selection, TensorView
from cabs_search.merging.masks.rules import order_of, settings
from cabs_search.merging.sparse import Kept
from cabs_search.merging.task_vector import Delta

Vectors = Mapping[str, Mapping[str, Delta]]
"""τ by expert and tensor."""


def prune(
    mask: MaskRule,
    tensor: str,
    vectors: Vectors,
    survey: Mapping[str, Any],
    calibrations: Mapping[str, Calibration],
    pruned: Mapping[str, Kept | None],
) -> Iterator[tuple[str, Kept | None]]:
    """Prune one tensor of every vector.

    Args:
        mask: the rule.
        tensor: the tensor's name.
        vectors: task vectors, in the family's order.
        survey: results of the rule's ``survey``, by expert, for vectors that are not pruned yet.
        calibrations: statistics by expert, for rules that need them.
        pruned: what some vectors keep already, by expert; these are not pruned again, unless all
            are pruned together.

    Yields:
        (expert, what it keeps, or None for nothing), in pruning order.

    Raises:
        ValueError: a weight is not finite, or the rule needs statistics that are not there.

    """
    if isinstance(mask, JointRule):
        yield from _prune_together(mask, tensor, vectors)
        return
    taken: Bools | None = None
    for expert in order_of(mask, tuple(vectors)):
        if expert in pruned:
            kept = pruned[expert]
        else:
            view = TensorView(
                tensor=tensor,
                expert=expert,
                delta=vectors[expert][tensor],
                taken=taken,
                survey=survey[expert],
                calibrations=calibrations,
                vectors=vectors,
            )
            kept = _prune_one(mask, view)
        if "order" in settings(mask) and kept is not None and kept.mask is not None:
            positions = kept.mask.numpy()
            taken = positions if taken is None else taken | positions
        yield expert, kept


def _prune_together(
    mask: JointRule, tensor: str, vectors: Vectors
) -> Iterator[tuple[str, Kept | None]]:
    """Prune one tensor of all vectors at once, also of those that are pruned already."""
    order = order_of(mask, tuple(vectors))
    views = [TensorView(tensor=tensor, expert=e, delta=vectors[e][tensor]) for e in order]
    for expert, selection in zip(order, mask.select_all(views), strict=True):
        yield expert, _kept(selection)


def _prune_one(mask: MaskRule, view: TensorView) -> Kept | None:
    check_calibrated(mask, view.expert, view.calibrations, view.vectors)
    if view.delta.is_zero():
        return None
    return _kept(mask.select(view))


def _kept(selection: Selection) -> Kept | None:
    values = torch.from_numpy(selection.values)
    if selection.mask is None:
        return Kept(values, None)
    return Kept(values, torch.from_numpy(selection.mask)) if len(values) else None


def check_calibrated(
    mask: MaskRule, expert: str, calibrations: Mapping[str, Calibration], experts: Iterable[str]
) -> list[Calibration]:
    """Return the statistics that an expert's vector is pruned by, its own first.

    Args:
        mask: the rule.
        expert: name of the expert.
        calibrations: statistics by expert.
        experts: names of all experts, whose statistics a rule that sees all vectors needs.

    Raises:
        ValueError: one of these experts has no calibration items.

    """
    if mask.calibration == "none":
        return []
    needed = [expert, *(e for e in experts if mask.sees_all and e != expert)]
    for name in needed:
        if name not in calibrations:
            raise ValueError(
                f"{mask.name}: every expert must have a task to take calibration items from, as it"
                f" has in a study, but {name} has none"
            )
    return [calibrations[name] for name in needed]
