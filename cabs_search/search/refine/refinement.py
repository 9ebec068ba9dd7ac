"""Refinement of one candidate: finer and finer λ by gradient, as far as held-out items agree.

The search items are cut into two folds. At each level each fold fits λ by itself, and the other
fold says whether they are better than the level before. The refined λ are the mean of both folds',
so that all items have a share in them and none judges its own fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from cabs_search.merging.recipe import Groups, LambdaKey, Recipe, group_of, make_recipe
from cabs_search.record.evaluations import BY_TEMPERATURE, Evaluation, Evaluations, TaskValues
from cabs_search.search.jobs import Purpose
from cabs_search.search.refine.check import FOLDS, levels_of
from cabs_search.search.refine.goals import Goal
from cabs_search.search.refine.groups import groups_of
from cabs_search.search.refine.paths import DIGITS, Floats, Path, Value, follow
from cabs_search.spec.refine import Level, Refine


class _Missing(Exception):  # noqa: N818 (no error)
    """Leaves a path that needs evaluations."""

    def __init__(self, asks: list[Ask]) -> None:
        super().__init__(asks)
        self.asks = asks


class Ask(NamedTuple):
    """An evaluation that a refinement needs."""

    recipe: Recipe
    block: int
    purpose: Purpose


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """Findings of one level."""

    level: Level
    lambdas: int
    """Number of λ."""
    ridge: float
    """The ridge that the folds chose."""
    kept: bool
    """True if held-out items say that it is better than the level before."""
    recipe: dict[str, Any]
    """Mean of the folds' λ, as ``Recipe.as_dict``."""
    loss: tuple[float, float]
    """Loss on held-out items, before and after."""
    score: tuple[float, float]
    """Score on held-out items, before and after."""
    paths: list[list[float]]
    """Loss at each step on the fold's own items, one list for each fold."""


class Refinement:
    """Asks for evaluations until it knows the refined λ; goes on from what is on record."""

    def __init__(
        self,
        settings: Refine,
        start: Recipe,
        tensors: Sequence[str],
        blocks: int,
        weights: Mapping[str, float],
        goals: Callable[[Mapping[str, Floats]], Mapping[str, Goal]],
        evaluations: Evaluations,
        own: Groups = (),
    ) -> None:
        """Prepare; nothing is asked for yet.

        Args:
            settings: the spec's.
            start: the candidate to refine.
            tensors: names of the merged tensors, in the order of recorded gradients.
            blocks: number of blocks of the search items.
            weights: weight of each task's score, by task.
            goals: returns what is made small, by task, from sums of the start's losses at several
                temperatures, none if they are not asked for.
            evaluations: the record.
            own: the space's own groups.

        """
        self._levels = {level: groups_of(level, tensors, own) for level in levels_of(settings, own)}
        self._settings, self._start, self._tensors = settings, start, tuple(tensors)
        self._folds = [tuple(range(fold, blocks, FOLDS)) for fold in range(FOLDS)]
        self._weights, self._find_goals = weights, goals
        self._goals: Mapping[str, Goal] = {}
        self._evaluations = evaluations
        self._known: dict[str, list[tuple[int, str, TaskValues]]] = {}
        self._out: set[tuple[str, int]] = set()
        self._asks: list[Ask] | None = None
        self.results: list[LevelResult] = []
        """Findings of the levels that are done."""

    @property
    def phase(self) -> str:
        """The stage of the work, for the progress bar."""
        level = [*self._levels][min(len(self.results), len(self._levels) - 1)]
        return f"refine λ by {level}"

    @property
    def is_done(self) -> bool:
        """True if nothing more will be asked for."""
        return not self._wanted and not self._out

    @property
    def waiting(self) -> int:
        """Evaluations that are asked for now and not given out."""
        return len(self._wanted)

    def next_ask(self) -> Ask | None:
        """Give out an evaluation; None if others have to end first, or all is done."""
        if not self._wanted:
            return None
        ask = self._wanted.pop(0)
        self._out.add((ask.recipe.key, ask.block))
        return ask

    def add(self, evaluation: Evaluation) -> None:
        """Take in an evaluation that is on record."""
        self._known.pop(evaluation.recipe.key, None)
        self._out.discard((evaluation.recipe.key, evaluation.block))
        self._asks = None

    @property
    def _wanted(self) -> list[Ask]:
        if self._asks is None:
            asks = {(ask.recipe.key, ask.block): ask for ask in self._replay()}
            self._asks = [ask for key, ask in asks.items() if key not in self._out]
        return self._asks

    def _replay(self) -> list[Ask]:
        """Go through all levels with what is known; return what is missing."""
        self.results = []
        if asks := self._calibrate():
            return asks
        before = [self._start] * FOLDS
        for level, groups in self._levels.items():
            asks = list[Ask]()
            found: dict[float, list[tuple[Recipe, Path]]] = {}
            for ridge in self._settings.ridge:
                for fold, start in enumerate(before):
                    try:
                        one = self._follow(groups, start, fold, ridge)
                    except _Missing as missing:
                        asks += missing.asks
                    else:
                        found.setdefault(ridge, []).append(one)
                        asks += self._missing(one[0], self._held_out(fold), "held out")
            for fold, start in enumerate(before):
                asks += self._missing(start, self._held_out(fold), "held out")
            if asks:
                return asks
            losses = {
                ridge: self._held_out_values([recipe for recipe, _ in ends])[0]
                for ridge, ends in found.items()
            }
            ridge = min(losses, key=lambda ridge: (losses[ridge], -ridge))
            after = [recipe for recipe, _ in found[ridge]]
            was, now = self._held_out_values(before), self._held_out_values(after)
            result = LevelResult(
                level=level,
                lambdas=len(self._keys(groups)),
                ridge=ridge,
                kept=now[0] < was[0],
                recipe=self._mean(groups, after).as_dict(),
                loss=(was[0], now[0]),
                score=(was[1], now[1]),
                paths=[path.losses for _, path in found[ridge]],
            )
            self.results.append(result)
            before = after if result.kept else before
        return []

    def _calibrate(self) -> list[Ask]:
        """Choose what is made small, or return what is missing for it."""
        sums: dict[str, Floats] = {}
        if self._settings.calibrated:
            blocks = sorted(block for fold in self._folds for block in fold)
            found = self._read(self._start, BY_TEMPERATURE)
            if missing := [block for block in blocks if block not in found]:
                return [Ask(self._start, block, "temperature") for block in missing]
            for task in self._weights:
                parts = [found[block][task].gradients for block in blocks]
                sums[task] = np.sum([part for part in parts if part is not None], axis=0)
        self._goals = self._find_goals(sums)
        return []

    @property
    def temperatures(self) -> dict[str, float]:
        """Temperatures of the losses, by task; none before they are chosen."""
        return {task: goal.temperature for task, goal in self._goals.items()}

    def _held_out(self, fold: int) -> tuple[int, ...]:
        """Return the blocks that a fold does not learn from."""
        return self._folds[1 - fold]

    def _follow(
        self, groups: Groups, start: Recipe, fold: int, ridge: float
    ) -> tuple[Recipe, Path]:
        """Follow the gradient on a fold; ``_Missing`` has what it lacks."""
        one_block = self._settings.optimizer == "adam"

        def evaluate(lambdas: Floats, step: int) -> Value:
            blocks = self._folds[fold]
            if one_block:
                blocks = (blocks[step % len(blocks)],)
            recipe = self._recipe(groups, lambdas)
            if missing := self._missing(recipe, blocks, "gradient"):
                raise _Missing(missing)
            return self._value(recipe, blocks, groups)

        path = follow(self._settings, self._lambdas(groups, start), ridge, evaluate)
        return self._recipe(groups, path.end), path

    def _read(
        self, recipe: Recipe, temperature: float | None = None
    ) -> dict[int, dict[str, TaskValues]]:
        """Return what is known of a recipe, by block and task; None: at the tasks' temperatures."""
        if recipe.key not in self._known:
            self._known[recipe.key] = self._evaluations.read(recipe)
        found: dict[int, dict[str, TaskValues]] = {}
        for block, task, values in self._known[recipe.key]:
            wanted = self._goals[task].temperature if temperature is None else temperature
            if values.temperature == wanted:
                found.setdefault(block, {})[task] = values
        return found

    def _missing(self, recipe: Recipe, blocks: Sequence[int], purpose: Purpose) -> list[Ask]:
        known = self._read(recipe)
        done = {
            block
            for block, by_task in known.items()
            if len(by_task) == len(self._weights)
            and (purpose != "gradient" or all(v.gradients is not None for v in by_task.values()))
        }
        return [Ask(recipe, block, purpose) for block in blocks if block not in done]

    def _keys(self, groups: Groups) -> list[LambdaKey]:
        names = [name for name, _ in groups] or [""]
        return [LambdaKey(expert, name) for expert in self._start.experts for name in names]

    def _places(self, groups: Groups) -> list[int]:
        """Return the number of each tensor's group."""
        names = [name for name, _ in groups]
        return [names.index(group_of(groups, name)) if groups else 0 for name in self._tensors]

    def _recipe(self, groups: Groups, lambdas: Floats) -> Recipe:
        by_key = dict(zip(self._keys(groups), lambdas.tolist(), strict=True))
        return make_recipe(self._start.method, by_key, groups)

    def _lambdas(self, groups: Groups, recipe: Recipe) -> Floats:
        """Return a recipe's λ, the mean over a group's tensors, [λ]."""
        places = np.array(self._places(groups))
        count = max(1, len(groups))
        values = [
            [recipe.lambda_of(expert, name) for name in self._tensors] for expert in recipe.experts
        ]
        sums = [np.bincount(places, weights=own, minlength=count) for own in values]
        sizes = np.bincount(places, minlength=count)
        return np.concatenate([own / np.maximum(sizes, 1) for own in sums])

    def _mean(self, groups: Groups, recipes: Sequence[Recipe]) -> Recipe:
        """Return the mean of recipes."""
        each = [self._lambdas(groups, recipe) for recipe in recipes]
        lambdas: Floats = np.mean(each, axis=0)
        return self._recipe(groups, np.round(lambdas, DIGITS))

    def _value(self, recipe: Recipe, blocks: Sequence[int], groups: Groups) -> Value:
        """Return the weighted mean loss on some blocks, and its gradient."""
        known = self._read(recipe)
        places = np.array(self._places(groups))
        loss, gradient = 0.0, np.zeros(len(self._keys(groups)))
        for task, weight in self._weights.items():
            own = [known[block][task] for block in blocks if task in known[block]]
            items = sum(len(one.losses) for one in own)
            if not items:
                continue
            weight /= self._goals[task].scale
            loss += weight * sum(float(one.losses.sum(dtype=float)) for one in own) / items
            by_tensor = np.zeros((len(self._start.experts), len(places)))
            for one in own:
                assert one.gradients is not None
                by_tensor += one.gradients.reshape(by_tensor.shape)
            count = max(1, len(groups))
            sums = [np.bincount(places, weights=each, minlength=count) for each in by_tensor]
            gradient += weight / items * np.concatenate(sums)
        return Value(loss, gradient)

    def _held_out_values(self, recipes: Sequence[Recipe]) -> tuple[float, float]:
        """Return weighted mean loss and score of the folds' recipes on what they did not see."""
        loss = score = 0.0
        for task, weight in self._weights.items():
            losses, scores = [], []
            for fold, recipe in enumerate(recipes):
                by_block = self._read(recipe)
                own = [by_block[b][task] for b in self._held_out(fold) if task in by_block[b]]
                losses += [one.losses for one in own]
                scores += [one.scores for one in own]
            if losses:
                held_out = float(np.concatenate(losses).mean(dtype=float))
                loss += weight / self._goals[task].scale * held_out
                score += weight * float(np.concatenate(scores).mean(dtype=float))
        return loss, score

    @property
    def refined(self) -> list[Recipe]:
        """The recipes of the levels that were kept, coarse to fine."""
        return [Recipe.from_dict(result.recipe) for result in self.results if result.kept]

    @property
    def is_better(self) -> bool:
        """True if the last level that was kept scores no worse on held-out items than the start."""
        kept = [result for result in self.results if result.kept]
        return bool(kept) and kept[-1].score[1] >= kept[0].score[0]

    def as_dict(self) -> dict[str, Any]:
        """Return what was found as plain JSON values."""
        return {
            "start": self._start.as_dict(),
            "settings": asdict(self._settings),
            "temperatures": self.temperatures,
            "levels": [asdict(result) for result in self.results],
            "better": self.is_better,
        }
