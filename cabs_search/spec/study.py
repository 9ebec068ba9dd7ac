"""The spec of one study."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from cabs_search.spec.fields import STRICT, Count, Name
from cabs_search.spec.space import Baseline, MethodName, Space
from cabs_search.spec.task import Task

MOST_EXPERTS_IN_ALL_ORDERS = 6


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Search:
    """How long and by what the space is searched."""

    trials: Count = 50
    """Candidates in all, the baselines among them."""
    sampler: Name = "tpe"
    workers: Count | None = None
    """Ray workers; None: one for each core."""
    block: Count = 50
    """Items of each task in one step of a worker."""
    confirm: Count = 20
    """How many of the best candidates are scored on the confirm split; of each value of a
    comparison 3 at the most.
    """
    storage: str | None = None
    """URL of the Optuna study's database; None: SQLite in the output folder."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tracking:
    """What MLflow is given beside numbers."""

    model: Literal["auto", "always", "never"] = "auto"
    """Whether a study's run gets the best found as a model; auto: one of at most 2 GB, and not in a
    comparison.
    """


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """One study."""

    name: Annotated[str, Field(pattern=r"^[^/\\?%.][^/\\?%]*$")]
    base: str
    experts: Annotated[dict[Name, str], Field(min_length=1)]
    tasks: Annotated[dict[Name, Task], Field(min_length=1)]
    space: Space = Space()
    baselines: dict[MethodName, Baseline] = Field(default_factory=dict)
    search: Search = Search()
    tracking: Tracking = Tracking()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["cpu", "cuda", "auto"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The resident model's."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        known = ", ".join(self.experts)
        if self.space.order == "all" and len(self.experts) > MOST_EXPERTS_IN_ALL_ORDERS:
            raise ValueError(
                f"space.order: all is for {MOST_EXPERTS_IN_ALL_ORDERS} experts at the most, but"
                f" there are {len(self.experts)}; list the orders to search"
            )
        for name, task in self.tasks.items():
            if (task.expert or name) not in self.experts:
                raise ValueError(
                    f"tasks.{name}: a task must name its expert ({known}), but got"
                    f" {task.expert or name}"
                )
        for name in self.tasks:
            expert, kinds = self.expert_of(name), {self.tasks[name].kind: name}
            kinds |= {
                task.kind: other
                for other, task in self.tasks.items()
                if self.expert_of(other) == expert
            }
            if len(kinds) > 1:
                found = ", ".join(f"{kind} in {other}" for kind, other in sorted(kinds.items()))
                raise ValueError(
                    f"tasks.{name}.kind: one expert's head must score tasks of one kind, but"
                    f" {expert} got {found}"
                )
        orders = {"space.order": self.space.order if isinstance(self.space.order, tuple) else ()}
        orders |= {f"baselines.{k}.order": (b.order,) for k, b in self.baselines.items() if b.order}
        for where, given in orders.items():
            for i, order in enumerate(given):
                if sorted(order) != sorted(self.experts):
                    at = f"{where}[{i}]" if where == "space.order" else where
                    raise ValueError(
                        f"{at}: an order must name every expert once ({known}), but got"
                        f" {', '.join(order)}"
                    )
        return self

    @cached_property
    def orders(self) -> tuple[tuple[str, ...], ...]:
        """The pruning orders to search."""
        if self.space.order == "all":
            return tuple(itertools.permutations(self.experts))
        return self.space.order or (tuple(self.experts),)

    @property
    def workers(self) -> int:
        """Ray workers."""
        return self.search.workers or os.cpu_count() or 1

    def expert_of(self, task: str) -> str:
        """The expert whose head scores a task."""
        return self.tasks[task].expert or task

    def as_dict(self) -> dict[str, Any]:
        """Plain values as the YAML file would hold them."""
        values: dict[str, Any] = TypeAdapter(Spec).dump_python(
            self, mode="json", by_alias=True, exclude_defaults=False
        )
        values["space"]["nm"] = [f"{n}:{m}" for n, m in self.space.nm]
        for name, baseline in self.baselines.items():
            values["baselines"][name]["nm"] = baseline.nm and f"{baseline.nm[0]}:{baseline.nm[1]}"
        return values

    def override(self, *, trials: int | None = None, workers: int | None = None) -> Spec:
        """A copy with the command line's values in place."""
        search = self.search
        if trials is not None:
            search = replace(search, trials=trials)
        if workers is not None:
            search = replace(search, workers=workers)
        return replace(self, search=search)
