"""Estimates of what vectors take on disk and a worker in memory, before any is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.layers import layer_of
from cabs_search.merging.masks.keep_all import KeepAll
from cabs_search.merging.masks.rules import CALIBRATED, density_of
from cabs_search.merging.method import Method
from cabs_search.merging.resident import VECTOR_BYTES
from cabs_search.merging.stack import MERGED
from cabs_search.scoring.models import pick_device
from cabs_search.spec.locations import cache_folder

LIBRARY_BYTES = 700 << 20
"""Memory of torch, transformers and Ray in each worker."""
Entry: TypeAlias = Path | tuple[Method, str]
"""Path of a vector in the cache, or method and expert if the path depends on a calibration pass."""


def entries_of(family: Family, methods: Iterable[Method]) -> dict[Entry, int]:
    """Return the estimated bytes of each vector in the cache."""
    cache = VectorCache(cache_folder())
    entries: dict[Entry, int] = {}
    for method in methods:
        paths = {} if isinstance(method.mask, CALIBRATED) else cache.paths(family, method)
        for expert in family.experts:
            entries[paths.get(expert, (method, expert))] = _disk_bytes(family, method, expert)
    return entries


def _is_dense(method: Method) -> bool:
    return isinstance(method.mask, KeepAll) and method.is_sum


def _disk_bytes(family: Family, method: Method, expert: str) -> int:
    """Estimate a vector's size on disk: float32 values, and positions unless all are kept."""
    weights = family.alignment.weights
    kept = weights * density_of(method.mask, expert)
    if _is_dense(method):
        return 4 * weights
    # Positions take a byte for each kept weight, or a bit for each weight if that is less.
    return int(min((4 + 1) * kept, 4 * kept + weights / 8))


@dataclass(frozen=True, kw_only=True)
class GPU:
    """Memory of a worker on a GPU, in bytes."""

    model: int
    base: int
    vectors: int
    """Bytes of the method whose vectors take most."""
    largest: str
    """Name of that method."""
    spare: int
    """Room for vectors of other methods."""

    @property
    def total(self) -> int:
        """All of it, and the libraries."""
        return self.model + self.base + self.vectors + self.spare + LIBRARY_BYTES


def worker_bytes(device: str, dtype: str, family: Family, methods: Iterable[Method]) -> int:
    """Estimate a worker's memory; on a GPU also the base, a candidate's vectors and spare ones."""
    weights = family.alignment.weights
    if pick_device(device) == "cpu":
        item: torch.dtype = getattr(torch, dtype)
        return weights * item.itemsize + LIBRARY_BYTES
    base = sum(family.base.read(tensor).nbytes for tensor in family.alignment.shared)
    return gpu_bytes(weights, base, dtype, tuple(family.experts), methods).total


def stack_bytes(device: str, dtype: str, family: Family, sources: Iterable[str]) -> int:
    """Estimate what layers of base and experts take in a worker, beside the merge's.

    On the CPU they are mapped files where these have the model's dtype.
    """
    item: torch.dtype = getattr(torch, dtype)
    layered = [name for name in family.alignment.shared if layer_of(name) is not None]
    own = [source for source in sources if source != MERGED]
    if pick_device(device) == "cpu":
        own = [s for s in own if family.read(s, layered[0]).dtype != item]
    return len(own) * sum(map(family.numel, layered)) * item.itemsize


def gpu_bytes(
    weights: float, base: float, dtype: str, experts: Sequence[str], methods: Iterable[Method]
) -> GPU:
    """Estimate a worker's memory on a GPU.

    Args:
        weights: number of shared weights.
        base: bytes of the base's weights as stored.
        dtype: of the model.
        experts: names.
        methods: those that the worker may become, one at least.

    """
    item: torch.dtype = getattr(torch, dtype)
    sizes = {m: sum(_gpu_vector_bytes(weights, m, e) for e in experts) for m in methods}
    largest = max(sizes, key=lambda method: (sizes[method], str(method)))
    return GPU(
        model=int(weights * item.itemsize),
        base=int(base),
        vectors=sizes[largest],
        largest=largest.name,
        spare=min(VECTOR_BYTES, sum(sizes.values()) - sizes[largest]),
    )


def _gpu_vector_bytes(weights: float, method: Method, expert: str) -> int:
    """Estimate a vector's size on a GPU: float32 values, and int32 positions."""
    kept = weights * density_of(method.mask, expert)
    return int(kept * (4 if _is_dense(method) else 4 + 4))
