"""A model on items: one outcome per item, batched by length.

``Workbench`` is what a worker holds: the trunk once, every task's head beside it, and the items.
Its tensors are rewritten in place by ``materialize``; all heads see the same trunk.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from cabs_search.kinds.kinds import Outcome
from cabs_search.merging.cache import StoredVector, VectorCache
from cabs_search.merging.calibration import Calibration
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rules import CALIBRATED
from cabs_search.merging.recipe import Method, Recipe
from cabs_search.merging.resident import Resident
from cabs_search.scoring.forward import evaluate_together, same_sequences, same_trunk
from cabs_search.scoring.models import load_model, pick_device
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Ints, Items

METHODS_OPEN = 64
"""Methods whose vectors a worker keeps open."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
KEPT_BYTES, MAPPED_BYTES = 256 << 20, 32 << 20
"""Freed memory that a process keeps; a buffer so large goes back in any case."""


class Workbench:
    """A resident model with all its heads, ready to become any candidate."""

    def __init__(
        self, spec: Spec, store: VectorCache, calibrations: Mapping[str, Path] | None = None
    ) -> None:
        """Load the base and every head; raises ValueError where they do not fit together.

        Args:
            calibrations: files of what experts' layers saw, for mask rules that need it.

        """
        keep_memory()
        self.spec, self.store = spec, store
        self.device = torch.device(pick_device(spec.device))
        self._calibrations = dict(calibrations or {})
        self._vectors = lru_cache(METHODS_OPEN)(self._opened)
        self.family = Family.open(spec.base, spec.experts)
        dtype: torch.dtype = getattr(torch, spec.dtype)
        shared: dict[str, Tensor] = {
            name: torch.empty(shape, dtype=dtype, device=self.device)
            for name, shape in self.family.alignment.shapes.items()
        }
        self.resident = Resident(self.family.base, shared)
        self.models = {
            expert: load_model(self.family, expert, kind, shared, dtype, self.device)
            for expert, kind in {
                spec.expert_of(name): task.kind for name, task in spec.tasks.items()
            }.items()
        }
        self._trunks = {
            expert: next(
                name
                for name, first in self.models.items()
                if first is model or same_trunk(first, model)
            )
            for expert, model in self.models.items()
        }

    def materialize(self, recipe: Recipe) -> None:
        """Become a candidate; vectors that the cache lacks are built."""
        self.resident.materialize(self._vectors(recipe.method), recipe)

    def _opened(self, method: Method) -> dict[str, StoredVector]:
        if isinstance(method.mask, CALIBRATED) and not self.family.calibrations:
            known = {expert: Calibration(path) for expert, path in self._calibrations.items()}
            self.family = replace(self.family, calibrations=known)
        return self.store.open(self.store.ensure(self.family, method))

    def score(self, items: Mapping[str, Items], rows: Mapping[str, Ints]) -> dict[str, Outcome]:
        """Score the present candidate on some items of each task; tasks on the same items share a
        pass of the trunk.
        """
        groups: list[list[str]] = []
        for task, mine in rows.items():
            for group in groups:
                if self._alike(task, group[0]) and same_sequences(
                    (items[task], mine), (items[group[0]], rows[group[0]])
                ):
                    group.append(task)
                    break
            else:
                groups.append([task])
        found: dict[str, Outcome] = {}
        for group in groups:
            scored = [
                (self.models[self.spec.expert_of(task)], items[task], rows[task]) for task in group
            ]
            found |= zip(group, evaluate_together(scored, self.device), strict=True)
        return {task: found[task] for task in rows}

    def _alike(self, *tasks: str) -> bool:
        return len({self._trunks[self.spec.expert_of(task)] for task in tasks}) == 1


def keep_memory() -> None:
    """Let the process keep what it frees: else glibc gives a batch's buffers back, and the next
    batch's are faulted in.

    That takes a tenth of a forward on a CPU. Elsewhere than in glibc nothing changes.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
