"""Merged models: in place in a resident model, or fresh from checkpoints.

A resident model is rewritten only where vectors keep something, each time from the base's values, never from the last
candidate's: its thousandth candidate has the bits of a fresh merge.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cabs_search.checkpoint import Checkpoint
from cabs_search.combine import Combine, TensorSum, combined, tensor_sum
from cabs_search.recipe import Recipe, make_method, make_recipe
from cabs_search.sparsify import Kept, parse_nm
from cabs_search.store import Family, StoredVector

PLAN_BYTES = 1 << 30
"""Memory for vectors made ready, beyond those in use."""


class Resident:
    """A model's tensors that become base + Σ λᵢ·τ̃ᵢ in place, one candidate after another."""

    def __init__(self, base: Checkpoint, tensors: Mapping[str, Tensor], *, plan_bytes: int = PLAN_BYTES) -> None:
        """Take over ``tensors`` and make them the base's.

        Args:
            base: the base checkpoint.
            tensors: the model's own tensors by shared name, contiguous, on any device, in any floating dtype.
            plan_bytes: memory for vectors made ready, beyond those in use; the least recently used go first.

        """
        self._base = base
        self._tensors = dict(tensors)
        self._plan_bytes = plan_bytes
        self._plans: OrderedDict[tuple[Combine, tuple[Path, ...]], dict[str, TensorSum]] = OrderedDict()
        self._written: dict[str, TensorSum] = {}
        for name, tensor in self._tensors.items():
            tensor.copy_(base.read(name))

    @torch.no_grad()
    def materialize(self, vectors: Mapping[str, StoredVector], recipe: Recipe) -> None:
        """Become a recipe's model: the base plus Σ λᵢ times the i-th vector, added in the vectors' order.

        Args:
            vectors: by expert, those of the recipe's mask rule.
            recipe: the candidate.

        """
        plan = self._plan(vectors, recipe.method.combine)
        if plan is not self._written:
            for name, written in self._written.items():
                written.undo(self._tensors[name])
            self._written = plan
        for name, ready in plan.items():
            ready.write(self._tensors[name], [recipe.lambda_of(expert, name) for expert in vectors])

    def _plan(self, vectors: Mapping[str, StoredVector], combine: Combine) -> dict[str, TensorSum]:
        key = (combine, tuple(v.path for v in vectors.values()))
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        plan = {}
        for name, tensor in self._tensors.items():
            kept = [v.kept(name, tensor.numel()) for v in vectors.values()]
            left = combined(combine, kept, tensor.numel())
            if (ready := tensor_sum(self._base.read(name), left, tensor.device)) is not None:
                plan[name] = ready
        self._plans[key] = plan
        sizes = {k: sum(t.bytes for t in p.values()) for k, p in self._plans.items()}
        for old in list(self._plans)[:-1]:
            if sum(sizes.values()) > self._plan_bytes:
                del self._plans[old], sizes[old]
        return plan


def merged_tensors(
    family: Family,
    recipe: Recipe,
    dtype: torch.dtype | None = None,
    vectors: Mapping[str, StoredVector] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """A fresh merge, one shared tensor at a time, so that memory does not grow with the model.

    Args:
        dtype: of the result; None: the base's own. The arithmetic is float32 in any case.
        vectors: pruned vectors by expert, in pruning order; None: pruned here.

    Yields:
        (name, merged tensor).

    """
    method = recipe.method
    survey = family.survey(method.mask) if vectors is None else None
    for name in family.alignment.shared:
        base = family.base.read(name)
        out = base.to(dtype or base.dtype, copy=True)
        kept: dict[str, Kept | None]
        if survey is None:
            kept = {expert: v.kept(name, base.numel()) for expert, v in (vectors or {}).items()}
        else:
            kept = dict(family.prune(method.mask, name, survey))
        ready = tensor_sum(base, combined(method.combine, list(kept.values()), base.numel()))
        if ready is not None:
            ready.write(out, [recipe.lambda_of(expert, name) for expert in kept])
        yield name, out


def merge(
    base: str | Path,
    experts: Mapping[str, str | Path],
    lambdas: Mapping[str, float],
    method: str = "cabs",
    nm: tuple[int, int] | str = (64, 256),
    order: Sequence[str] | None = None,
    *,
    density: float | None = None,
    overlap: str = "fill",
    overlap_merge: str = "sum",
    tail: str = "keep",
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Merge experts into their base: one recipe, no search.

    Args:
        base, experts: checkpoint folders; ``experts`` by name.
        lambdas: λ by expert.
        method: one of ``recipe.METHOD_NAMES``, but for those that need calibration items.
        nm: weights kept per block, weights per block.
        order: pruning order; None: the order of ``experts``.
        density: share kept, by methods without n:m; None: n/m.
        overlap, tail: as in ``sparsify.conflict_aware``.
        overlap_merge: as in ``recipe.make_method``.
        seed: of random masks.
        dtype: of the result; None: the base's own.

    Returns:
        The merged shared tensors by the base's names.

    Raises:
        ValueError: unknown names, unreadable or incompatible checkpoints, n > m.

    """
    if not experts:
        raise ValueError("at least one expert is needed")
    family = Family.open(base, experts)
    chosen = make_method(
        method,
        tuple(experts),
        nm=parse_nm(nm),
        density=density,
        order=order,
        overlap=overlap,
        overlap_merge=overlap_merge,
        tail=tail,
        seed=seed,
    )
    if set(lambdas) != set(experts):
        raise ValueError(f"lambdas must name every expert once, but got {sorted(lambdas)} for {sorted(experts)}")
    recipe = make_recipe(chosen, {name: lambdas[name] for name in experts})
    return dict(merged_tensors(family, recipe, dtype))
