"""Every call of the program that the bench times, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cabs_search.evaluate import Workbench
from cabs_search.kinds import Outcome
from cabs_search.materialize import Resident
from cabs_search.recipe import Method
from cabs_search.spec import Spec
from cabs_search.store import Family, Store, StoredVector
from cabs_search.tasks import Ints, Items


def ensure(
    store: Store, family: Family, method: Method, progress: Callable[[int], Any] | None = None
) -> dict[str, Path]:
    """Build what the cache lacks of a method's entries."""
    return store.ensure(family, method.mask, progress)


def vectors(store: Store, family: Family, method: Method) -> dict[str, StoredVector]:
    """A method's entries, mapped."""
    return store.open(ensure(store, family, method))


def resident(family: Family, device: str = "cpu", dtype: torch.dtype | None = None, **settings: Any) -> Resident:
    """A model's tensors, alone, in memory."""
    tensors = {
        name: torch.empty(shape, device=device, dtype=dtype or family.base.read(name).dtype)
        for name, shape in family.alignment.shapes.items()
    }
    return Resident(family.base, tensors, **settings)


def tensors(held: Resident) -> Mapping[str, torch.Tensor]:
    """A resident model's tensors."""
    return held._tensors


def workbench(spec: Spec, cache: Path) -> Workbench:
    """What a worker holds."""
    return Workbench(spec, Store(cache))


def score(bench: Workbench, items: Mapping[str, Items], rows: Mapping[str, Ints]) -> dict[str, Outcome]:
    """One step of a worker: some items of every task."""
    return {task: bench.score(task, items[task], rows[task]) for task in rows}


def entry_bytes(path: Path) -> int:
    """The data of an entry: values and positions, without the header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def kept_weights(family: Family, opened: Mapping[str, StoredVector]) -> int:
    """Weights that at least one vector keeps."""
    total = 0
    for tensor in family.alignment.shared:
        numel = family.numel(tensor)
        used = torch.zeros(numel, dtype=torch.bool)
        for vector in opened.values():
            if (kept := vector.kept(tensor, numel)) is not None:
                used[slice(None) if kept.positions is None else kept.positions] = True
        total += int(used.sum())
    return total


def moved_bytes(family: Family, opened: Mapping[str, StoredVector]) -> int:
    """What λ → λ′ must move: every entry's data and, where a weight is kept, the base read and the model written."""
    size = family.base.read(family.alignment.shared[0]).element_size()
    return sum(entry_bytes(v.path) for v in opened.values()) + 2 * size * kept_weights(family, opened)
