"""Inner products of task vectors, or of whole models, on one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cabs_search.merging.chunks import CHUNK, chunks, parallel_map
from cabs_search.merging.combine.rule import CombineRule, Floats

if TYPE_CHECKING:
    from torch import Tensor

    from cabs_search.merging.sparse import Kept


def gram(vectors: Sequence[Kept | None], numel: int, base: Tensor | None = None) -> Floats:
    """Return ⟨τᵢ, τⱼ⟩ of each pair of vectors, in float64, by any number of threads alike.

    Args:
        vectors: what each keeps of the tensor; None: nothing.
        numel: number of weights of the tensor.
        base: the base's values, flat; with them it is ⟨base + τᵢ, base + τⱼ⟩.

    Returns:
        [vectors, vectors].

    """
    whole = [None if v is None else v.dense().numpy() for v in vectors]

    def products(part: slice) -> Floats:
        start = np.zeros(part.stop - part.start)
        if base is not None:
            start += base[part].double().cpu().numpy()
        rows = [start if values is None else start + values[part] for values in whole]
        found = np.zeros((len(rows), len(rows)))
        for i, row in enumerate(rows):
            for j in range(i + 1):
                # no BLAS: its sums depend on its number of threads
                found[i, j] = found[j, i] = (row * rows[j]).sum()
        return found

    total: Floats = np.sum(parallel_map(products, chunks(numel, CHUNK)), axis=0)
    return total


def products_of(rule: CombineRule, vectors: Iterable[Kept | None], base: Tensor) -> Floats | None:
    """Return the inner products that a rule's factors are made of; None if it needs none."""
    if rule.weighs == "none":
        return None
    return gram(list(vectors), base.numel(), base.reshape(-1) if rule.weighs == "models" else None)
