"""Mean of the tasks' metrics, each relative to that of the task's own expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cabs_search.merging.recipe import BASE, Recipe
from cabs_search.record.entries import Scored
from cabs_search.search.candidates import reference_recipes
from cabs_search.search.objectives.base import Objective
from cabs_search.spec.study import Spec
from cabs_search.stats.aggregate import WeightedSum


@dataclass(frozen=True, kw_only=True)
class Relative(Objective):
    """A weighted mean, once the experts are scored on the search items."""

    experts: Mapping[str, tuple[Recipe, ...]]
    """Experts of each task as recipes, of which the best counts."""

    def given(self, references: Mapping[str, Scored]) -> Objective:
        """See ``Objective``."""
        own = {
            task: max(references[recipe.key].scores[task] for recipe in recipes)
            for task, recipes in self.experts.items()
        }
        for task, metric in own.items():
            if not metric > 0:
                raise ValueError(
                    "search.objective: relative needs experts that score above 0 on the search"
                    f" items, but that of {task} scores {metric:g}"
                )
        listed = ", ".join(f"{task} {metric:.4f}" for task, metric in own.items())
        return Objective(
            aggregate=WeightedSum({task: 1 / (metric * len(own)) for task, metric in own.items()}),
            text=(
                "The score is the mean of the tasks' metrics, each divided by what the task's"
                f" expert scores on the search items: {listed}."
            ),
            references=self.references,
        )


def relative(spec: Spec) -> Objective:
    """Make the objective."""
    recipes = reference_recipes(spec.experts)
    del recipes[BASE]
    experts = {
        task: tuple(recipes.values()) if expert == BASE else (recipes[f"expert {expert}"],)
        for task, expert in spec.heads.items()
    }
    unique = {recipe.key: recipe for own in experts.values() for recipe in own}
    return Relative(aggregate=None, experts=experts, references=tuple(unique.values()))
