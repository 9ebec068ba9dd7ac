"""Prune one tensor of every task vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cabs_search.merging.calibration import Calibration
from cabs_search.merging.masks.calibrated import calibrated_mask, calibration_of
from cabs_search.merging.masks.global_magnitude import Cut, above_cut, find_cut
from cabs_search.merging.masks.n_m import kept_of_blocks, next_mask
from cabs_search.merging.masks.random import draw_mask
from cabs_search.merging.masks.rules import (
    Balanced,
    Cabs,
    ConflictAware,
    Dare,
    KeepAll,
    Magnitude,
    Mask,
    Random,
    RandomRescaled,
    RowMagnitude,
    SparseGpt,
    VectorMagnitude,
    Wanda,
    density_of,
    order_of,
    settings,
    value_for,
)
from cabs_search.merging.masks.top_k import (
    Bools,
    Sizes,
    flat,
    largest_of_each,
    magnitude_bits,
    share,
)
from cabs_search.merging.sparse import Kept, kept_by
from cabs_search.merging.task_vector import Delta


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What some rules must know beyond the tensor they prune, by expert."""

    cuts: Mapping[str, Cut] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)


def keep(
    mask: Mask,
    tensor: str,
    delta: Callable[[str], Delta],
    experts: Sequence[str],
    *,
    known: Mapping[str, Kept | None] | None = None,
    survey: Survey | None = None,
) -> Iterator[tuple[str, Kept | None]]:
    """Prune one tensor of every task vector, in the order the rule prunes.

    Args:
        mask: the rule with its settings.
        tensor: the tensor's name.
        delta: gives τ of the tensor by expert, all of one shape; called only for vectors that are
            not known.
        experts: the experts' names, in the family's order.
        known: what some vectors keep of the tensor already.
        survey: what the rule must know of the vectors that are not known.

    Yields:
        (expert, what it keeps, or None for nothing).

    """
    found = dict(known or {})
    taken: Bools | None = None
    for expert in order_of(mask, experts):
        if expert not in found:
            found[expert] = _prune(mask, tensor, expert, delta(expert), taken, survey or Survey())
        kept = found[expert]
        if "order" in settings(mask) and kept is not None and kept.mask is not None:
            taken = kept.mask.numpy() if taken is None else taken | kept.mask.numpy()
        yield expert, kept


def _prune(
    mask: Mask, tensor: str, expert: str, delta: Delta, taken: Bools | None, survey: Survey
) -> Kept | None:
    """What a rule keeps of one tensor of one vector."""
    if delta.is_zero():
        return None
    if isinstance(mask, (Balanced, Cabs)):
        overlap = mask.overlap if isinstance(mask, Cabs) else "fill"
        return kept_of_blocks(delta, *value_for(mask.nm, expert), taken, overlap, mask.tail)
    tau, density = delta.whole(), density_of(mask, expert)
    weights = flat(tau)
    match mask:
        case KeepAll():
            return Kept(tau.reshape(-1), None)
        case Magnitude():
            chosen = largest_of_each(weights, len(weights), density)
        case RowMagnitude():
            chosen = largest_of_each(
                weights, len(weights) if tau.dim() < 2 else len(weights) // tau.shape[0], density
            )
        case VectorMagnitude():
            chosen = above_cut(magnitude_bits(weights), survey.cuts[expert], tensor)
        case Random(seed=seed):
            chosen = draw_mask("random", seed, tensor, expert, weights, density)
        case RandomRescaled(seed=seed):
            chosen, tau = draw_mask("random", seed, tensor, expert, weights, density), tau / density
        case Dare(seed=seed):
            chosen, tau = draw_mask("dare", seed, tensor, expert, weights, density), tau / density
        case ConflictAware(overlap=overlap):
            count = share(density, len(weights))
            chosen = next_mask(weights, count, len(weights), taken, overlap, "keep")
        case Wanda() | SparseGpt():
            chosen, tau = calibrated_mask(
                mask, tau, density, calibration_of(survey.calibrations, mask, expert), tensor
            )
    return kept_by(tau, torch.from_numpy(chosen))


def survey_of(
    mask: Mask,
    experts: Sequence[str],
    tensors: Mapping[str, int],
    delta: Callable[[str, str], Tensor],
    calibrations: Mapping[str, Calibration],
) -> Survey:
    """Look over whole vectors, tensor by tensor, for rules that need it.

    Args:
        experts: those whose vectors are to be pruned.
        tensors: every tensor's number of weights, in the vectors' order.
        delta: gives τ by tensor and expert.
        calibrations: statistics by expert.

    """
    cuts = {}
    if isinstance(mask, VectorMagnitude):
        for expert in experts:

            def sizes(tensor: str, expert: str = expert) -> Sizes:
                return magnitude_bits(flat(delta(tensor, expert)))

            cuts[expert] = find_cut(sizes, tensors, value_for(mask.density, expert))
    return Survey(cuts=cuts, calibrations=calibrations)
