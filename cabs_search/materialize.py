"""Merged models: in place in a resident model, or fresh from checkpoints.

A resident model's tensors of which vectors keep something are rewritten, each time from the base's values, never from
the last candidate's: its thousandth candidate has the bits of a fresh merge. They are rewritten in whole: where a tenth
is kept, hardly a cache line has none. Base and vectors are mapped files, so that a worker holds in memory of its own no
more than the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cabs_search.checkpoint import Checkpoint
from cabs_search.combine import Placed, TensorSum, combined, write_sums
from cabs_search.packed import Packed
from cabs_search.recipe import Recipe, make_method, make_recipe
from cabs_search.sparsify import Kept, parse_nm
from cabs_search.store import Family, StoredVector

VECTOR_BYTES = 1 << 30
"""What vectors that are not in use may take on a GPU; on the CPU, where they are mapped, how much stays laid out."""


class Resident:
    """A model's tensors that become base + Σ λᵢ·τ̃ᵢ in place, one candidate after another."""

    def __init__(self, base: Checkpoint, tensors: Mapping[str, Tensor], *, vector_bytes: int = VECTOR_BYTES) -> None:
        """Take over ``tensors`` and make them the base's.

        Args:
            base: the base checkpoint.
            tensors: the model's own tensors by shared name, contiguous, on one device, in any floating dtype.
            vector_bytes: what vectors may take beyond those in use; the least recently used go first.

        """
        self._tensors = {name: tensor.view(-1) for name, tensor in tensors.items()}
        self._base = {name: base.read(name).reshape(-1).to(tensor.device) for name, tensor in self._tensors.items()}
        self._vector_bytes = vector_bytes
        self._vectors: OrderedDict[Path, dict[str, Packed | Placed]] = OrderedDict()
        self._paths: tuple[tuple[str, Path], ...] | None = None
        self._sums: dict[str, tuple[TensorSum, list[str]]] = {}
        self._reset()

    def _reset(self) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(self._base[name])

    @torch.no_grad()
    def materialize(self, vectors: Mapping[str, StoredVector], recipe: Recipe) -> None:
        """Become a recipe's model: the base plus Σ λᵢ times the i-th vector, added in the vectors' order.

        Args:
            vectors: by expert, those of the recipe's method.
            recipe: the candidate.

        """
        paths, last = tuple((expert, vector.path) for expert, vector in vectors.items()), self._paths
        self._paths = None  # until the model is whole again
        if last != paths:
            self._turn_to(vectors, whole=last is not None)
        write_sums([(one, [recipe.lambda_of(e, name) for e in experts]) for name, (one, experts) in self._sums.items()])
        self._paths = paths

    def _turn_to(self, vectors: Mapping[str, StoredVector], *, whole: bool) -> None:
        """Make other vectors ready, and tensors of which they keep nothing the base's."""
        ready = {expert: self._ready(vector) for expert, vector in vectors.items()}
        self._forget({vector.path for vector in vectors.values()})
        old, self._sums = self._sums, {}
        for name, out in self._tensors.items():
            parts = {expert: tensors[name] for expert, tensors in ready.items() if name in tensors}
            if parts:
                self._sums[name] = TensorSum(out, self._base[name], tuple(parts.values())), list(parts)
            elif name in old or not whole:
                out.copy_(self._base[name])

    def _ready(self, vector: StoredVector) -> dict[str, Packed | Placed]:
        """What a vector keeps by tensor, as the device adds it up."""
        if vector.path not in self._vectors:
            ready: dict[str, Packed | Placed] = {}
            for name, out in self._tensors.items():
                if (packed := vector.packed(name, out.numel())) is not None:
                    ready[name] = packed if out.device.type == "cpu" else Placed.of(packed, out.device)
            self._vectors[vector.path] = ready
        self._vectors.move_to_end(vector.path)
        return self._vectors[vector.path]

    def _forget(self, used: Collection[Path]) -> None:
        sizes = {p: sum(t.bytes for t in ready.values()) for p, ready in self._vectors.items() if p not in used}
        for path in list(sizes):
            if sum(sizes.values()) > self._vector_bytes:
                del self._vectors[path], sizes[path]


def merged_tensors(
    family: Family,
    recipe: Recipe,
    dtype: torch.dtype | None = None,
    vectors: Mapping[str, StoredVector] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """A fresh merge, one shared tensor at a time, so that memory does not grow with the model.

    Args:
        dtype: of the result; None: the base's own. The arithmetic is float32 in any case.
        vectors: the method's vectors by expert, in pruning order; None: pruned and combined here.

    Yields:
        (name, merged tensor).

    """
    method = recipe.method
    survey = family.survey(method.mask) if vectors is None else None
    for name in family.alignment.shared:
        base = family.base.read(name)
        out = base.to(dtype or base.dtype, copy=True).contiguous()
        kept: dict[str, Kept | None]
        if survey is None:
            kept = {expert: v.kept(name, base.numel()) for expert, v in (vectors or {}).items()}
        else:
            kept = dict(family.prune(method.mask, name, survey))
        if vectors is None:
            kept = dict(zip(kept, combined(method.combine, list(kept.values()), base.numel()), strict=True))
        parts = {expert: Packed.of(one) for expert, one in kept.items() if one is not None}
        if parts:
            one = TensorSum(out.view(-1), base.reshape(-1), tuple(parts.values()))
            write_sums([(one, [recipe.lambda_of(expert, name) for expert in parts])])
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
