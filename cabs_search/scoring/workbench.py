"""A resident model with a head for each task, scored on items.

``Workbench`` is what a worker holds: the trunk once and every expert's head on it. Its tensors are
rewritten in place for each candidate; all heads see the same trunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cabs_search.kinds.base import Outcome
from cabs_search.kinds.generation import Sampling
from cabs_search.merging.cache import StoredVector, VectorCache
from cabs_search.merging.calibration import Calibration, CalibrationKey
from cabs_search.merging.chunks import keep_memory
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rules import CALIBRATED
from cabs_search.merging.method import Method
from cabs_search.merging.recipe import Recipe
from cabs_search.merging.resident import Resident
from cabs_search.scoring.forward import (
    Scored,
    evaluate_together,
    losses_by_temperature,
    same_sequences,
    same_trunk,
)
from cabs_search.scoring.gradients import LambdaGradients, evaluate_with_gradients
from cabs_search.scoring.models import load_model, own_tensors, pick_device
from cabs_search.scoring.stacked import StackedLayers
from cabs_search.scoring.vllm import Engine, check_vllm
from cabs_search.spec.generator import VLLM, Generator
from cabs_search.spec.task import Task, heads
from cabs_search.tasks.items import Ints, Items

METHODS_OPEN = 64
"""Number of methods whose vectors a worker keeps open."""


class Workbench:
    """A resident model with all its heads, ready to become any candidate."""

    def __init__(
        self,
        family: Family,
        tasks: Mapping[str, Task],
        cache: VectorCache,
        *,
        device: str = "auto",
        dtype: str = "float32",
        calibrations: Mapping[CalibrationKey, Path] | None = None,
        generator: Generator | None = None,
    ) -> None:
        """Load the base and the heads of all tasks.

        Args:
            family: the base and its experts.
            tasks: by name.
            cache: cache of the experts' vectors.
            device: ``cpu``, ``cuda``, or ``auto``.
            dtype: name of the model's dtype.
            calibrations: files of calibration statistics, for mask rules that need them.
            generator: what generates texts; None: transformers.

        Raises:
            ValueError: a head does not fit to its task or to the base, or vLLM cannot be used.

        """
        keep_memory()
        self.family, self._cache = family, cache
        self.device = torch.device(pick_device(device))
        self._heads = heads(tasks)
        self._calibrations = dict(calibrations or {})
        self._vectors = lru_cache(METHODS_OPEN)(self._open_vectors)
        model_dtype: torch.dtype = getattr(torch, dtype)
        shapes = family.alignment.shapes
        self._engine = None
        if generator is not None and generator.engine == VLLM:
            check_vllm(tasks, dtype, family.base.folder, device)
            self._engine = Engine(family.base, shapes, tasks, model_dtype, generator)
        shared: dict[str, Tensor] = (
            self._engine.tensors
            if self._engine
            else {
                name: torch.empty(shape, dtype=model_dtype, device=self.device)
                for name, shape in shapes.items()
            }
        )
        self.resident = Resident(family.base, shared)
        kinds = {self._heads[name]: task.kind for name, task in tasks.items()}
        self.models = {
            expert: load_model(family, expert, kind, shared, model_dtype, self.device)
            for expert, kind in kinds.items()
        }
        self._trunks = {expert: self._first_with_trunk(expert) for expert in self.models}
        self._layers = StackedLayers(family, self.models.values(), model_dtype, self.device)

    def _first_with_trunk(self, expert: str) -> str:
        """Return the first expert whose model has the same trunk."""
        model = self.models[expert]
        return next(
            name
            for name, first in self.models.items()
            if first is model or same_trunk(first, model)
        )

    def materialize(self, recipe: Recipe) -> None:
        """Become a candidate; vectors that the cache lacks, or that were damaged, are built.

        Raises:
            ChangedFileError: a file of base or experts has changed since it was opened.
            ValueError: the models' layers cannot be stacked as the recipe asks.

        """
        self.family.check_current()
        vectors = self._vectors(recipe.method)
        if not all(vector.is_current for vector in vectors.values()):
            self._vectors.cache_clear()
            self.resident.forget()
            vectors = self._vectors(recipe.method)
        if self._engine:
            self._engine.is_current = False
        self.resident.materialize(vectors, recipe)
        self._layers.become(recipe.stack)

    def _open_vectors(self, method: Method) -> dict[str, StoredVector]:
        if isinstance(method.mask, CALIBRATED) and not self.family.calibrations:
            opened = {key: Calibration(path) for key, path in self._calibrations.items()}
            self.family = replace(self.family, calibrations=opened)
        return self._cache.open(self._cache.ensure(self.family, method))

    def score(
        self,
        items: Mapping[str, Items],
        rows: Mapping[str, Ints],
        temperatures: Mapping[str, float] | None = None,
        sampling: Sampling | None = None,
    ) -> dict[str, Outcome]:
        """Score the present candidate; tasks on the same items share a pass through the trunk.

        Args:
            items: by task.
            rows: the rows of each task to score, by task.
            temperatures: by task, what logits are divided by before the loss, or
                ``forward.ENTROPY``; 1 where none is given. Scores and predictions do not depend on
                it.
            sampling: how tokens of texts are drawn; None: the likeliest is taken.

        Returns:
            Outcomes by task, in the order of ``rows``.

        """
        outcomes: dict[str, Outcome] = {}
        for group, scored in self.passes(items, rows):
            own = [(temperatures or {}).get(task, 1.0) for task in group]
            found = evaluate_together(scored, self.device, own, sampling, self._engine)
            outcomes |= zip(group, found, strict=True)
        return {task: outcomes[task] for task in rows}

    def losses_by_temperature(
        self, items: Mapping[str, Items], rows: Mapping[str, Ints]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Return the sum of each task's losses at every one of ``forward.TEMPERATURES``."""
        found: dict[str, npt.NDArray[np.float32]] = {}
        for group, scored in self.passes(items, rows):
            found |= zip(group, losses_by_temperature(scored, self.device), strict=True)
        return found

    def score_with_gradients(
        self,
        items: Mapping[str, Items],
        rows: Mapping[str, Ints],
        temperatures: Mapping[str, float] | None = None,
    ) -> tuple[dict[str, Outcome], dict[str, npt.NDArray[np.float32]]]:
        """Score the present candidate, and differentiate the losses in λ.

        Takes about three times as long as ``score``. The models are in evaluation mode, without
        dropout, and are left as they were. Precision: ``scoring.gradients``.

        Args:
            items: by task.
            rows: the rows of each task to score, by task.
            temperatures: as of ``score``.

        Returns:
            Outcomes by task, in the order of ``rows``: those of ``score``, but for rounding. And by
            task the gradient of the sum of its rows' losses in λ of each expert on each tensor,
            [experts, tensors], in the order of ``family.experts`` and of
            ``family.alignment.shared``; 0 where a vector keeps nothing. λ of a group of tensors has
            the sum of theirs.

        """
        outcomes: dict[str, Outcome] = {}
        found: dict[str, npt.NDArray[np.float32]] = {}
        experts, shared = self.family.experts, self.family.alignment.shared
        for group, scored in self.passes(items, rows):
            gradients = LambdaGradients(self.resident, experts, shared, len(group))
            own = [
                own_tensors(
                    self.models[self._heads[t]], self.family.checkpoint(self._heads[t]), shared
                )
                for t in group
            ]
            at = [(temperatures or {}).get(task, 1.0) for task in group]
            done = evaluate_with_gradients(scored, own, gradients, self.device, at)
            outcomes |= zip(group, done, strict=True)
            found |= zip(group, gradients.finish(), strict=True)
        return {task: outcomes[task] for task in rows}, {task: found[task] for task in rows}

    def passes(
        self, items: Mapping[str, Items], rows: Mapping[str, Ints]
    ) -> list[tuple[list[str], list[Scored]]]:
        """Return the tasks of each pass through the trunk, with their models, items and rows.

        Raises:
            ChangedFileError: a file of base or experts has changed since it was opened; heads and
                stacked layers may be mapped, too.

        """
        self.family.check_current()
        groups: list[list[str]] = []
        for task in rows:
            for group in groups:
                if self._share_pass(task, group[0], items, rows):
                    group.append(task)
                    break
            else:
                groups.append([task])
        return [
            (group, [(self.models[self._heads[t]], items[t], rows[t]) for t in group])
            for group in groups
        ]

    def _share_pass(
        self, one: str, other: str, items: Mapping[str, Items], rows: Mapping[str, Ints]
    ) -> bool:
        """Tell whether two tasks have the same trunk and the same sequences."""
        trunks = {self._trunks[self._heads[task]] for task in (one, other)}
        return len(trunks) == 1 and same_sequences(
            (items[one], rows[one]), (items[other], rows[other])
        )
