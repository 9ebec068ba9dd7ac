"""Every call of the program that the bench times, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cabs_search.kinds.base import Outcome
from cabs_search.merging.cache import StoredVector, VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import Method
from cabs_search.merging.resident import Resident
from cabs_search.scoring.workbench import Workbench
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Ints, Items

LINE = 64
"""Bytes of a cache line: memory moves in no smaller pieces."""


def hash_models(family: Family) -> None:
    """Hash base and experts, once each."""
    assert family.fingerprints, family.base.fingerprint


def ensure(
    store: VectorCache, family: Family, method: Method, progress: Callable[[int], Any] | None = None
) -> dict[str, Path]:
    """Build what the cache lacks of a method's entries."""
    return store.ensure(family, method, progress)


def vectors(store: VectorCache, family: Family, method: Method) -> dict[str, StoredVector]:
    """A method's entries, mapped."""
    return store.open(ensure(store, family, method))


def resident(
    family: Family, device: str = "cpu", dtype: torch.dtype | None = None, **settings: Any
) -> Resident:
    """A model's tensors, alone, in memory."""
    tensors = {
        name: torch.empty(shape, device=device, dtype=dtype or family.base.read(name).dtype)
        for name, shape in family.alignment.shapes.items()
    }
    return Resident(family.base, tensors, **settings)


def tensors(held: Resident) -> Mapping[str, torch.Tensor]:
    """A resident model's tensors, flat."""
    return held._tensors


def workbench(spec: Spec, cache: Path) -> Workbench:
    """What a worker holds."""
    family = Family.open(spec.base, spec.experts)
    return Workbench(family, spec.tasks, VectorCache(cache), device=spec.device, dtype=spec.dtype)


def score(
    bench: Workbench, items: Mapping[str, Items], rows: Mapping[str, Ints]
) -> dict[str, Outcome]:
    """One step of a worker: some items of every task."""
    return bench.score(items, rows)


def score_with_gradients(
    bench: Workbench, items: Mapping[str, Items], rows: Mapping[str, Ints]
) -> dict[str, npt.NDArray[np.float32]]:
    """One gradient pass of a worker: some items of every task."""
    return bench.score_with_gradients(items, rows)[1]


def entry_bytes(path: Path) -> int:
    """The data of an entry: values and positions, without the header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def moved_bytes(family: Family, opened: Mapping[str, StoredVector]) -> int:
    """What λ → λ′ must move: every entry's data; and each cache line of the base and of the model
    that changes.
    """
    lines = 0
    for tensor in family.alignment.shared:
        numel, width = family.numel(tensor), LINE // family.base.read(tensor).element_size()
        used = torch.zeros(-(-numel // width) * width, dtype=torch.bool)
        for vector in opened.values():
            if (kept := vector.kept(tensor, numel)) is not None:
                used[:numel] |= (
                    torch.ones(numel, dtype=torch.bool) if kept.mask is None else kept.mask
                )
        lines += int(used.reshape(-1, width).any(dim=1).sum())
    return sum(entry_bytes(v.path) for v in opened.values()) + 2 * LINE * lines
