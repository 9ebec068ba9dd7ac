"""A resident model that becomes one candidate after another in place.

Tensors of which vectors keep something are rewritten from the base's values, never from the last
candidate's: the thousandth candidate has the bits of a fresh merge. They are rewritten as a whole,
because with a tenth of the weights kept hardly a cache line has none. Base and vectors are mapped
files, so that a worker owns no more memory than the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.cache import StoredVector
from cabs_search.merging.combine.gram import products_of
from cabs_search.merging.combine.rule import CombineRule, Floats
from cabs_search.merging.combine.sums import Placed, TensorSum, write_sums
from cabs_search.merging.packed import Packed
from cabs_search.merging.recipe import Recipe

VECTOR_BYTES = 1 << 30
"""Room for vectors that are not in use: memory of a GPU; on the CPU, where they are mapped, bytes
that stay laid out.
"""


class Resident:
    """Tensors of a model that become base + Σ λᵢ·τ̃ᵢ in place, one candidate after another."""

    def __init__(
        self, base: Checkpoint, tensors: Mapping[str, Tensor], *, vector_bytes: int = VECTOR_BYTES
    ) -> None:
        """Take over ``tensors`` and give them the base's values.

        Args:
            base: the base checkpoint.
            tensors: the model's own tensors by shared name, contiguous, on one device, in any
                floating dtype.
            vector_bytes: room for vectors that are not in use; the least recently used go first.

        """
        self._tensors = {name: tensor.view(-1) for name, tensor in tensors.items()}
        self._base: dict[str, Tensor] = {}
        for name, tensor in self._tensors.items():
            self._base[name] = base.read(name).reshape(-1).to(tensor.device)
            tensor.copy_(self._base[name])
        self._vector_bytes = vector_bytes
        self._vectors: OrderedDict[Path, dict[str, Packed | Placed]] = OrderedDict()
        self._paths: tuple[tuple[str, Path], ...] | None = None
        self._sums: dict[str, tuple[TensorSum, list[str]]] = {}
        self._inner: dict[tuple[str, tuple[Path, ...]], dict[str, Floats | None]] = {}

    @torch.no_grad()
    def materialize(self, vectors: Mapping[str, StoredVector], recipe: Recipe) -> None:
        """Become a recipe's model: base + Σ λᵢ·τ̃ᵢ, added in the vectors' order.

        Args:
            vectors: the vectors of the recipe's method, by expert.
            recipe: the candidate.

        """
        paths = tuple((expert, vector.path) for expert, vector in vectors.items())
        last, self._paths = self._paths, None  # None until the model is whole again
        if last != paths:
            self._lay_out(vectors, is_whole=last is not None)
        rule, sums = recipe.method.combine, []
        for name, (total, experts) in self._sums.items():
            lambdas = {expert: recipe.lambda_of(expert, name) for expert in vectors}
            factors, of_base = rule.weigh(lambdas, self._products(rule, vectors, name))
            one = total if of_base == 1 else replace(total, of_base=of_base)
            sums.append((one, [factors[expert] for expert in experts]))
        write_sums(sums)
        self._paths = paths

    def _products(
        self, rule: CombineRule, vectors: Mapping[str, StoredVector], name: str
    ) -> Floats | None:
        """Return inner products on one tensor, computed once for all λ; None if none are needed."""
        if rule.weighs == "none":
            return None
        key = rule.weighs, tuple(vector.path for vector in vectors.values())
        found = self._inner.setdefault(key, {})
        if name not in found:
            base = self._base[name]
            kept = (vector.kept(name, base.numel()) for vector in vectors.values())
            found[name] = products_of(rule, kept, base)
        return found[name]

    @property
    def summed(self) -> dict[str, tuple[str, ...]]:
        """Experts whose vectors keep something of a tensor, by tensor, in the order of their sum.

        Tensors that have the base's values whatever λ is are left out.
        """
        return {name: tuple(experts) for name, (_, experts) in self._sums.items()}

    @torch.no_grad()
    def inner_products(self, name: str, gradient: Tensor) -> npt.NDArray[np.float64]:
        """Return the gradient in λ of each expert of a tensor's sum: ⟨gradient, τ̃ᵢ⟩.

        Args:
            name: one of ``summed``.
            gradient: of a loss in that tensor, of any floating dtype, on the tensor's device.

        Returns:
            [experts], in the order of ``summed``.

        """
        total, _ = self._sums[name]
        return total.inner_products(gradient)

    def _lay_out(self, vectors: Mapping[str, StoredVector], *, is_whole: bool) -> None:
        """Prepare sums of other vectors; a tensor of which they keep nothing becomes the base's."""
        laid_out = {expert: self._laid_out(vector) for expert, vector in vectors.items()}
        self._forget({vector.path for vector in vectors.values()})
        old, self._sums = self._sums, {}
        for name, out in self._tensors.items():
            parts = {e: tensors[name] for e, tensors in laid_out.items() if name in tensors}
            if parts:
                total = TensorSum(out, self._base[name], tuple(parts.values()))
                self._sums[name] = total, list(parts)
            elif name in old or not is_whole:
                out.copy_(self._base[name])

    def _laid_out(self, vector: StoredVector) -> dict[str, Packed | Placed]:
        """Return what a vector keeps by tensor, as the device adds it up."""
        if vector.path not in self._vectors:
            tensors: dict[str, Packed | Placed] = {}
            for name, out in self._tensors.items():
                if (packed := vector.packed(name, out.numel())) is not None:
                    is_cpu = out.device.type == "cpu"
                    tensors[name] = packed if is_cpu else Placed.of(packed, out.device)
            self._vectors[vector.path] = tensors
        self._vectors.move_to_end(vector.path)
        return self._vectors[vector.path]

    def forget(self) -> None:
        """Drop all vectors: a file of theirs has changed."""
        self._vectors.clear()
        self._inner.clear()
        self._paths = None

    def _forget(self, used: Collection[Path]) -> None:
        """Drop the least recently used vectors that there is no room for."""
        unused = [path for path in self._vectors if path not in used]
        sizes = {path: sum(t.bytes for t in self._vectors[path].values()) for path in unused}
        for path in unused:
            if sum(sizes.values()) > self._vector_bytes:
                del self._vectors[path], sizes[path]
