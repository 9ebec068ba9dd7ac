"""Merge experts into their base: one recipe, no search."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cabs_search.checkpoints.vocabulary import SAME
from cabs_search.merging.cache import StoredVector
from cabs_search.merging.combine.gram import products_of
from cabs_search.merging.combine.sums import TensorSum, write_sums
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.packed import Packed
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.merging.sparse import Kept


def merged_tensors(
    family: Family,
    recipe: Recipe,
    dtype: torch.dtype | None = None,
    vectors: Mapping[str, StoredVector] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Merge anew, one shared tensor at a time, so that memory does not grow with the model.

    Args:
        family: base and experts.
        recipe: the merged model.
        dtype: of the result; None: the base's own. The arithmetic is float32 in any case.
        vectors: the method's vectors by expert, in pruning order; None: pruned and combined here.

    Yields:
        (name, merged tensor).

    """
    method = recipe.method
    survey = family.survey(method.mask) if vectors is None else {}
    for name in family.alignment.shared:
        base = family.base.read(name)
        out = base.to(dtype or base.dtype, copy=True).contiguous()
        kept: dict[str, Kept | None]
        if vectors is None:
            pruned = dict(family.prune(method.mask, name, survey))
            left = method.combine.combine(list(pruned.values()), base.shape)
            kept = dict(zip(pruned, left, strict=True))
        else:
            kept = {expert: vector.kept(name, base.numel()) for expert, vector in vectors.items()}
        parts = {expert: Packed.of(one) for expert, one in kept.items() if one is not None}
        if parts:
            lambdas = {expert: recipe.lambda_of(expert, name) for expert in kept}
            products = products_of(method.combine, kept.values(), base)
            factors, of_base = method.combine.weigh(lambdas, products)
            flat = base.reshape(-1)
            total = TensorSum(out.view(-1), flat, tuple(parts.values()), of_base)
            write_sums([(total, [factors[expert] for expert in parts])])
        yield name, out


def merge(
    base: str | Path,
    experts: Mapping[str, str | Path],
    lambdas: Mapping[str, float],
    method: str = "cabs",
    nm: tuple[int, int] | str = (64, 256),
    order: Sequence[str] | None = None,
    *,
    overlap_merge: str = "sum",
    vocabulary: str = SAME,
    pickled: Collection[str] = (),
    dtype: torch.dtype | None = None,
    **settings: Any,
) -> dict[str, Tensor]:
    """Merge experts into their base: one recipe, no search.

    Args:
        base: a checkpoint folder.
        experts: folders by name, of checkpoints or of adapters of the base.
        lambdas: λ by expert.
        method: one of ``METHOD_NAMES``, except those that need calibration items.
        nm: weights kept per block, weights per block.
        order: pruning order; None: the order of ``experts``.
        overlap_merge: as in ``method.make_method``.
        vocabulary: as of ``alignment.align``.
        pickled: as of ``Family.open``.
        dtype: of the result; None: the base's own.
        settings: other settings of the method's mask rule, such as ``density``, ``overlap``,
            ``tail`` and ``seed``.

    Returns:
        The merged shared tensors by the base's names.

    Raises:
        ValueError: unknown names, unreadable or incompatible checkpoints, n > m.

    """
    if not experts:
        raise ValueError("at least one expert is needed")
    family = Family.open(base, experts, vocabulary, pickled)
    chosen = make_method(
        method, tuple(experts), nm=nm, order=order, overlap_merge=overlap_merge, **settings
    )
    if set(lambdas) != set(experts):
        raise ValueError(
            f"lambdas must name every expert once, but got {sorted(lambdas)} for {sorted(experts)}"
        )
    recipe = make_recipe(chosen, {name: lambdas[name] for name in experts})
    return dict(merged_tensors(family, recipe, dtype))
