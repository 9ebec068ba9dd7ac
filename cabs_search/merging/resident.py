"""Merged models: in place in a resident model, or fresh from checkpoints.

A resident model's tensors of which vectors keep something are rewritten, each time from the base's
values, never from the last candidate's: its thousandth candidate has the bits of a fresh merge.
They are rewritten in whole: where a tenth is kept, hardly a cache line has none. Base and vectors
are mapped files, so that a worker holds in memory of its own no more than the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.cache import StoredVector
from cabs_search.merging.combine.sums import Placed, TensorSum, write_sums
from cabs_search.merging.packed import Packed
from cabs_search.merging.recipe import Recipe

VECTOR_BYTES = 1 << 30
"""What vectors that are not in use may take on a GPU; on the CPU, where they are mapped, how much
stays laid out.
"""


class Resident:
    """A model's tensors that become base + Σ λᵢ·τ̃ᵢ in place, one candidate after another."""

    def __init__(
        self, base: Checkpoint, tensors: Mapping[str, Tensor], *, vector_bytes: int = VECTOR_BYTES
    ) -> None:
        """Take over ``tensors`` and make them the base's.

        Args:
            base: the base checkpoint.
            tensors: the model's own tensors by shared name, contiguous, on one device, in any
                floating dtype.
            vector_bytes: what vectors may take beyond those in use; the least recently used go
                first.

        """
        self._tensors = {name: tensor.view(-1) for name, tensor in tensors.items()}
        self._base = {
            name: base.read(name).reshape(-1).to(tensor.device)
            for name, tensor in self._tensors.items()
        }
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
        """Become a recipe's model: the base plus Σ λᵢ times the i-th vector, added in the vectors'
        order.

        Args:
            vectors: by expert, those of the recipe's method.
            recipe: the candidate.

        """
        paths, last = (
            tuple((expert, vector.path) for expert, vector in vectors.items()),
            self._paths,
        )
        self._paths = None  # until the model is whole again
        if last != paths:
            self._turn_to(vectors, whole=last is not None)
        write_sums(
            [
                (one, [recipe.lambda_of(e, name) for e in experts])
                for name, (one, experts) in self._sums.items()
            ]
        )
        self._paths = paths

    def _turn_to(self, vectors: Mapping[str, StoredVector], *, whole: bool) -> None:
        """Make other vectors ready, and tensors of which they keep nothing the base's."""
        ready = {expert: self._ready(vector) for expert, vector in vectors.items()}
        self._forget({vector.path for vector in vectors.values()})
        old, self._sums = self._sums, {}
        for name, out in self._tensors.items():
            parts = {expert: tensors[name] for expert, tensors in ready.items() if name in tensors}
            if parts:
                self._sums[name] = (
                    TensorSum(out, self._base[name], tuple(parts.values())),
                    list(parts),
                )
            elif name in old or not whole:
                out.copy_(self._base[name])

    def _ready(self, vector: StoredVector) -> dict[str, Packed | Placed]:
        """What a vector keeps by tensor, as the device adds it up."""
        if vector.path not in self._vectors:
            ready: dict[str, Packed | Placed] = {}
            for name, out in self._tensors.items():
                if (packed := vector.packed(name, out.numel())) is not None:
                    ready[name] = (
                        packed if out.device.type == "cpu" else Placed.of(packed, out.device)
                    )
            self._vectors[vector.path] = ready
        self._vectors.move_to_end(vector.path)
        return self._vectors[vector.path]

    def _forget(self, used: Collection[Path]) -> None:
        sizes = {
            p: sum(t.bytes for t in ready.values())
            for p, ready in self._vectors.items()
            if p not in used
        }
        for path in list(sizes):
            if sum(sizes.values()) > self._vector_bytes:
                del self._vectors[path], sizes[path]
