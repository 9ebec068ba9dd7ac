"""Refinement of one candidate: finer and finer λ by gradient, as far as held-out items agree.

The search items are cut into two folds. At each level each fold fits λ by itself, and the items of
the other fold, which it has not seen, say whether they are worse than the level before. The refined
λ are the mean of both folds'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from cabs_search.merging.recipe import Groups, LambdaKey, Recipe, group_of, make_recipe
from cabs_search.search.jobs import Purpose
from cabs_search.search.refine.check import FOLDS, lengths_of, levels_of
from cabs_search.search.refine.evaluated import Ask, Evaluated
from cabs_search.search.refine.goals import Goal
from cabs_search.search.refine.groups import groups_of
from cabs_search.search.refine.paths import DIGITS, Floats, Path, Value, follow
from cabs_search.spec.refine import Level, Refine

GRADIENT: Purpose = "gradient"
LOSSES: Purpose = "losses"
MOST_ERRORS = 4.0
"""Standard errors by which held-out scores may fall: the start was chosen by these items, and λ
that were fitted to half of them are much worse than the mean of both folds'.
"""


class _Missing(Exception):  # noqa: N818 (no error)
    """Ends a path that needs evaluations."""

    def __init__(self, asks: list[Ask]) -> None:
        super().__init__(asks)
        self.asks = asks


class Choice(NamedTuple):
    """Settings that the folds choose."""

    ridge: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """Findings of one level."""

    level: Level
    lambdas: int
    """Number of λ."""
    ridge: float
    """The ridge that the folds chose."""
    steps: int
    """The number of steps that the folds chose."""
    kept: bool
    """True unless held-out items say that it is worse than the level before."""
    recipe: dict[str, Any]
    """Mean of the folds' λ, as ``Recipe.as_dict``."""
    loss: tuple[float, float]
    """Loss of the folds' λ on held-out items, before and after."""
    score: tuple[float, float]
    """Score of the folds' λ on held-out items, before and after."""
    paths: list[list[float]]
    """Loss at each step on the fold's own items, one list for each fold."""


class _Level:
    """Groups of one level, and recipes with their λ."""

    def __init__(self, groups: Groups, start: Recipe, tensors: Sequence[str]) -> None:
        self._groups, self._start, self._tensors = groups, start, tensors
        names = [name for name, _ in groups]
        self.places = [names.index(group_of(groups, t)) if groups else 0 for t in tensors]
        """Number of each tensor's group."""
        self.keys = [LambdaKey(e, name) for e in start.experts for name in names or [""]]
        self._recipes: dict[bytes, Recipe] = {}

    def recipe(self, lambdas: Floats) -> Recipe:
        """Return the recipe with some λ, [λ]. Raises ValueError if one is not finite."""
        key = lambdas.tobytes()
        if key not in self._recipes:
            by_key = dict(zip(self.keys, lambdas.tolist(), strict=True))
            self._recipes[key] = make_recipe(self._start.method, by_key, self._groups)
        return self._recipes[key]

    def lambdas(self, recipe: Recipe) -> Floats:
        """Return a recipe's λ, the mean over the tensors of a group, [λ]."""
        sizes = np.bincount(self.places)
        found = []
        for expert in recipe.experts:
            own = [recipe.lambda_of(expert, name) for name in self._tensors]
            found.append(np.bincount(self.places, weights=own) / sizes)
        return np.concatenate(found)

    def mean(self, recipes: Sequence[Recipe]) -> Recipe:
        """Return the mean of recipes."""
        each = np.stack([self.lambdas(recipe) for recipe in recipes])
        return self.recipe(np.round(each.mean(axis=0), DIGITS) + 0.0)


class Refinement:
    """Asks for evaluations until it knows the refined λ; goes on from what is on record."""

    def __init__(
        self,
        settings: Refine,
        start: Recipe,
        tensors: Sequence[str],
        blocks: int,
        evaluated: Evaluated,
        goals: Callable[[Mapping[str, Floats]], Mapping[str, Goal]],
        own: Groups = (),
        *,
        calibrates: bool = True,
    ) -> None:
        """Prepare; nothing is asked for yet.

        Args:
            settings: the spec's.
            start: the candidate to refine.
            tensors: names of the merged tensors, in the order of recorded gradients.
            blocks: number of blocks of the search items.
            evaluated: what is on record.
            goals: returns the loss to minimize, by task, from sums of the start's losses at several
                temperatures; from none if they are not asked for.
            own: the space's own groups.
            calibrates: whether temperatures are chosen first.

        """
        self._calibrates = calibrates
        self._levels = {
            level: _Level(groups_of(level, tensors, own), start, tensors)
            for level in levels_of(settings, own)
        }
        self._settings, self._start = settings, start
        self._blocks = tuple(range(blocks))
        self._folds = [self._blocks[fold::FOLDS] for fold in range(FOLDS)]
        self._evaluated, self._find_goals = evaluated, goals
        self._given_out: set[Ask] = set()
        self._waiting: list[Ask] = []
        self.results: list[LevelResult] = []
        """Findings of the levels that are done."""
        self.is_done = False
        """True if nothing more will be asked for."""

    @property
    def phase(self) -> str:
        """The stage of the work, for the progress bar."""
        level = [*self._levels][min(len(self.results), len(self._levels) - 1)]
        return f"refine λ by {level}"

    @property
    def waiting(self) -> int:
        """Evaluations that were asked for and are not given out."""
        return len(self._waiting)

    @property
    def temperatures(self) -> dict[str, float]:
        """Temperatures of the losses, by task; none before they are chosen."""
        return {task: goal.temperature for task, goal in self._evaluated.goals.items()}

    def next_ask(self) -> Ask | None:
        """Give out an evaluation; None if others have to end first, or all is done.

        Raises:
            ValueError: λ became too large or no numbers.

        """
        if not (self._waiting or self._given_out or self.is_done):
            # an evaluation with gradients serves as one without
            asks = {(ask.recipe.key, ask.block): ask for ask in reversed(self._replay())}
            self._waiting = [*reversed(asks.values())]
            self.is_done = not self._waiting
        if not self._waiting:
            return None
        ask = self._waiting.pop(0)
        self._given_out.add(ask)
        return ask

    def add(self, recipe: Recipe, block: int) -> None:
        """Take in an evaluation that is on record."""
        self._evaluated.forget(recipe)
        self._given_out = {
            ask for ask in self._given_out if (ask.recipe.key, ask.block) != (recipe.key, block)
        }

    def _replay(self) -> list[Ask]:
        """Go through all levels with what is known; return what is missing."""
        self.results = []
        sums: dict[str, Floats] = {}
        if self._calibrates:
            if asks := self._evaluated.missing(self._start, self._blocks, "temperature"):
                return asks
            sums = self._evaluated.by_temperature(self._start, self._blocks)
        self._evaluated.goals = self._find_goals(sums)
        before = [self._start] * FOLDS
        for name, level in self._levels.items():
            asks = list[Ask]()
            found: dict[Choice, list[tuple[Recipe, Path]]] = {}
            for ridge in self._settings.ridge:
                for fold, start in enumerate(before):
                    try:
                        path = self._follow(level, start, fold, ridge)
                    except _Missing as missing:
                        asks += missing.asks
                        continue
                    for steps in lengths_of(self._settings):
                        end = level.recipe(path.end_after(steps))
                        found.setdefault(Choice(ridge, steps), []).append((end, path))
                        asks += self._missing_held_out(end, fold)
            for fold, start in enumerate(before):
                asks += self._missing_held_out(start, fold)
            if asks:
                return asks
            before = self._decide(name, level, before, found)
        return []

    def _decide(
        self,
        name: Level,
        level: _Level,
        before: list[Recipe],
        found: Mapping[Choice, list[tuple[Recipe, Path]]],
    ) -> list[Recipe]:
        """Keep a level or not; return the folds' recipes to go on from."""
        ends = {choice: [recipe for recipe, _ in of_folds] for choice, of_folds in found.items()}
        judged = {
            choice: self._evaluated.held_out(self._held_out(recipes))
            for choice, recipes in ends.items()
        }
        choice = min(judged, key=lambda one: (judged[one][0], -one.ridge, -one.steps))
        was, now = self._evaluated.held_out(self._held_out(before)), judged[choice]
        gain, error = self._evaluated.gain(self._held_out(before), self._held_out(ends[choice]))
        result = LevelResult(
            level=name,
            lambdas=len(level.keys),
            ridge=choice.ridge,
            steps=choice.steps,
            kept=ends[choice] != before and gain >= -MOST_ERRORS * error,
            recipe=level.mean(ends[choice]).as_dict(),
            loss=(was[0], now[0]),
            score=(was[1], now[1]),
            paths=[path.losses[: choice.steps] for _, path in found[choice]],
        )
        self.results.append(result)
        return ends[choice] if result.kept else before

    def _missing_held_out(self, recipe: Recipe, fold: int) -> list[Ask]:
        """Return what is missing of a fold's recipe on the blocks that the fold does not see."""
        return self._evaluated.missing(recipe, self._folds[1 - fold], LOSSES)

    def _held_out(self, recipes: Sequence[Recipe]) -> dict[Recipe, tuple[int, ...]]:
        """Return the folds' recipes with the blocks that they do not see."""
        blocks = dict[Recipe, tuple[int, ...]]()
        for fold, recipe in enumerate(recipes):
            blocks[recipe] = (*blocks.get(recipe, ()), *self._folds[1 - fold])
        return blocks

    def _follow(self, level: _Level, start: Recipe, fold: int, ridge: float) -> Path:
        """Follow the gradient on a fold; ``_Missing`` has what it lacks."""
        one_block = self._settings.optimizer == "adam"

        def evaluate(lambdas: Floats, step: int) -> Value:
            blocks, purpose = self._folds[fold], GRADIENT
            if one_block:
                blocks = (blocks[step % len(blocks)],)
            elif step >= self._settings.steps - 1:
                purpose = LOSSES  # no step follows
            recipe = level.recipe(lambdas)
            if missing := self._evaluated.missing(recipe, blocks, purpose):
                raise _Missing(missing)
            return self._evaluated.value(recipe, blocks, level.places)

        def curvature(lambdas: Floats) -> Floats:
            recipe = level.recipe(lambdas)
            return self._evaluated.curvature(recipe, self._folds[fold], level.places)

        return follow(self._settings, level.lambdas(start), ridge, evaluate, curvature)

    @property
    def refined(self) -> list[Recipe]:
        """The recipes of the levels that were kept, coarse to fine."""
        return [Recipe.from_dict(result.recipe) for result in self.results if result.kept]

    def as_dict(self) -> dict[str, Any]:
        """Return what was found as plain JSON values."""
        return {
            "start": self._start.as_dict(),
            "settings": asdict(self._settings),
            "temperatures": self.temperatures,
            "levels": [asdict(result) for result in self.results],
        }
