"""Recorded evaluations as a refinement reads them: what is missing, losses, gradients, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from cabs_search.merging.recipe import Recipe
from cabs_search.record.evaluations import BY_TEMPERATURE, Evaluations, TaskValues
from cabs_search.search.jobs import Purpose
from cabs_search.search.refine.goals import Goal
from cabs_search.search.refine.paths import Floats, Value

ByBlock: TypeAlias = dict[int, dict[str, TaskValues]]
Measure: TypeAlias = Callable[[str, Mapping[int, Sequence[Any]]], float]
"""Computes a task's metric from predictions by block."""


class Ask(NamedTuple):
    """An evaluation that a refinement needs."""

    recipe: Recipe
    block: int
    purpose: Purpose


class Evaluated:
    """Evaluations of one refinement."""

    def __init__(
        self, evaluations: Evaluations, tensors: int, weights: Mapping[str, float], measure: Measure
    ) -> None:
        """Read nothing yet.

        Args:
            evaluations: the record.
            tensors: number of merged tensors.
            weights: weight of each task's metric in the score, by task.
            measure: computes metrics.

        """
        self.goals: Mapping[str, Goal] = {}
        """Loss that is minimized, by task; none before the temperatures are known."""
        self._evaluations, self._tensors = evaluations, tensors
        self._weights, self._measure = weights, measure
        self._known: dict[str, list[tuple[int, str, TaskValues]]] = {}
        self._values: dict[tuple[str, tuple[int, ...]], tuple[float, Floats]] = {}

    def forget(self, recipe: Recipe) -> None:
        """Read a recipe again, of which something new is on record."""
        self._known.pop(recipe.key, None)
        for key in [key for key in self._values if key[0] == recipe.key]:
            del self._values[key]

    def read(self, recipe: Recipe, temperature: float | None = None) -> ByBlock:
        """Return what is known of a recipe; ``temperature``: None for that of each task."""
        if recipe.key not in self._known:
            self._known[recipe.key] = self._evaluations.read(recipe)
        found: ByBlock = {}
        for block, task, values in self._known[recipe.key]:
            wanted = self.goals[task].temperature if temperature is None else temperature
            if values.temperature == wanted:
                found.setdefault(block, {})[task] = values
        return found

    def missing(self, recipe: Recipe, blocks: Sequence[int], purpose: Purpose) -> list[Ask]:
        """Return the evaluations of a recipe that are not on record."""
        known = self.read(recipe, BY_TEMPERATURE if purpose == "temperature" else None)
        done = {
            block
            for block, by_task in known.items()
            if len(by_task) == len(self._weights)
            and (purpose != "gradient" or all(v.gradients is not None for v in by_task.values()))
        }
        return [Ask(recipe, block, purpose) for block in blocks if block not in done]

    def by_temperature(self, recipe: Recipe, blocks: Sequence[int]) -> dict[str, Floats]:
        """Return the sums of a recipe's losses at several temperatures, by task."""
        found = self.read(recipe, BY_TEMPERATURE)
        sums: dict[str, Floats] = {}
        for task in self._weights:
            parts = [found[block][task].by_temperature for block in blocks]
            sums[task] = np.sum([part for part in parts if part is not None], axis=0)
        return sums

    def value(self, recipe: Recipe, blocks: tuple[int, ...], places: Sequence[int]) -> Value:
        """Return the weighted mean loss on some blocks, and its gradient; zeros if not known.

        Args:
            recipe: what was evaluated.
            blocks: the blocks.
            places: the group of each tensor, [tensors].

        """
        key = recipe.key, blocks
        if key not in self._values:
            self._values[key] = self._sum(recipe, blocks)
        loss, by_tensor = self._values[key]
        return Value(loss, _by_group(by_tensor, places))

    def curvature(self, recipe: Recipe, blocks: Sequence[int], places: Sequence[int]) -> Floats:
        """Estimate the curvature of the weighted mean loss in each λ from gradients by block.

        It is the diagonal of the empirical Fisher information: the mean square of an item's
        gradient. Of a block's summed gradient it takes the square over the number of items, which
        is as large where items' gradients are independent.

        Args:
            recipe: what was evaluated with gradients.
            blocks: the blocks.
            places: the group of each tensor, [tensors].

        """
        known = self.read(recipe)
        total = np.zeros(len(recipe.experts) * (max(places) + 1))
        for task, weight in self._weights.items():
            own = [known[block][task] for block in blocks]
            if not (items := sum(len(one.losses) for one in own)):
                continue
            mean = sum(float(one.losses.sum(dtype=float)) for one in own) / items
            slope = self.goals[task].on(blocks).slope(mean)
            for one in own:
                assert one.gradients is not None
                if len(one.losses):
                    by_tensor = one.gradients.reshape(-1, self._tensors).astype(np.float64)
                    slopes = slope * _by_group(by_tensor, places)
                    total += weight * slopes**2 / len(one.losses)
        return total / len(blocks)

    def _sum(self, recipe: Recipe, blocks: tuple[int, ...]) -> tuple[float, Floats]:
        """Return the weighted mean loss, and its gradient, [experts, tensors]."""
        known = self.read(recipe)
        loss, gradient = 0.0, np.zeros((len(recipe.experts), self._tensors))
        for task, weight in self._weights.items():
            own = [known[block][task] for block in blocks]
            if items := sum(len(one.losses) for one in own):
                goal = self.goals[task].on(blocks)
                mean = sum(float(one.losses.sum(dtype=float)) for one in own) / items
                loss += weight * goal.of(mean)
                part = weight * goal.slope(mean) / items
                for one in own:
                    if one.gradients is not None:
                        gradient += part * one.gradients.reshape(gradient.shape)
        return loss, gradient

    def held_out(self, recipes: Mapping[Recipe, Sequence[int]]) -> tuple[float, float]:
        """Return the weighted mean loss and score of recipes, each on blocks of its own."""
        loss = score = 0.0
        all_blocks = [block for blocks in recipes.values() for block in blocks]
        for task, weight in self._weights.items():
            losses, predictions = list[Any](), dict[int, Sequence[Any]]()
            for recipe, blocks in recipes.items():
                known = self.read(recipe)
                losses += [known[block][task].losses for block in blocks]
                predictions |= {block: known[block][task].predictions for block in blocks}
            mean = float(np.concatenate(losses).mean(dtype=float))
            loss += weight * self.goals[task].on(all_blocks).of(mean)
            score += weight * self._measure(task, predictions)
        return loss, score

    def gain(
        self, before: Mapping[Recipe, Sequence[int]], after: Mapping[Recipe, Sequence[int]]
    ) -> tuple[float, float]:
        """Return the weighted mean gain of the items' own scores, and its standard error.

        Args:
            before, after: recipes, each with the blocks that it is judged on; all blocks in both.

        """
        total = variance = 0.0
        for task, weight in self._weights.items():
            scores = []
            for recipes in (before, after):
                by_block = {
                    b: self.read(r)[b][task].scores for r, own in recipes.items() for b in own
                }
                scores.append(np.concatenate([by_block[block] for block in sorted(by_block)]))
            gains = (scores[1].astype(float) - scores[0]) * weight / self.goals[task].score_scale
            total += float(gains.mean())
            variance += float(gains.var()) / len(gains)
        return total, variance**0.5


def _by_group(by_tensor: Floats, places: Sequence[int]) -> Floats:
    """Sum gradients [experts, tensors] up over the tensors of each group, [experts · groups]."""
    count = max(places) + 1
    sums = [np.bincount(places, weights=each, minlength=count) for each in by_tensor]
    return np.concatenate(sums)
