"""The spec of one study."""

from __future__ import annotations

import itertools
import os
import re
import reprlib
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    model_validator,
)
from pydantic.dataclasses import dataclass

from cabs_search.merging.recipe import BASE
from cabs_search.merging.stack import MERGED
from cabs_search.spec.fields import STRICT, Count, Name, Once, listed
from cabs_search.spec.generator import VLLM, Generator, GeneratorField
from cabs_search.spec.refine import Refine
from cabs_search.spec.space import Baseline, MethodName, Space
from cabs_search.spec.task import Task, heads

STORES = ("file", "s3", "gs", "abfss", "wasbs", "hdfs", "viewfs", "sftp", "ftp", "r2", "b2")
"""Schemes of locations to which MLflow writes artifacts; most need a package of their own."""
MOST_EXPERTS_IN_ALL_ORDERS = 6
DEFAULT_TRIALS = 50
"""Candidates of a search without any other budget."""
AUTO, SURFACE = "auto", "surface"
FOR_STACKS = "tpe"
"""Sampler of stacks, where the spec names none."""


class Limits(NamedTuple):
    """Budget of a search; None: no limit."""

    candidates: int | None
    items: int | None
    seconds: int | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Weights:
    """Objective that is a weighted mean of the tasks' metrics."""

    weights: Annotated[dict[Name, Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)]
    """Weights by task; only their ratios matter."""


def _branch(value: Any) -> str:
    return "[weights]" if isinstance(value, (dict, Weights)) else "[name]"


ObjectiveField = Annotated[
    Annotated[Name, Tag("[name]")] | Annotated[Weights, Tag("[weights]")], Discriminator(_branch)
]
"""A name, or weights; a tag in brackets is no part of a field's name in errors."""


def _refine(value: Any) -> Any:
    """Read yes and no as settings."""
    if isinstance(value, bool):
        return Refine() if value else None
    return value


RefineField = Annotated[Refine | None, BeforeValidator(_refine)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Search:
    """Budget, sampler and workers of a search."""

    trials: Count | None = None
    """Candidates in all, the baselines among them; None: 50, or without limit if there is another
    budget.
    """
    items: Count | None = None
    """Items scored on the search split, in all."""
    seconds: Count | None = None
    """Time of searching, in all."""
    objective: ObjectiveField = "mean"
    """Objective: the number that makes a candidate the best."""
    sampler: Name = AUTO
    """Chooses candidates; see ``sampler_used``."""
    pruner: Name | None = AUTO
    """Rule that stops candidates before all their items are scored; None: all are scored; see
    ``pruner_used``.
    """
    stops: bool = True
    """Whether the search ends before its budget once what it may still gain is less than the noise
    of a score, which the sampler ``surface`` tells.
    """
    workers: Count | None = None
    """Number of Ray workers; None: one per core."""
    block: Count = 50
    """Items of each task in one step of a worker."""
    confirm: Count = 20
    """Number of best candidates to score on the confirm split, 3 at most for each value of a
    comparison.
    """
    confirm_stops: bool = True
    """Whether rows end before all confirm items are scored where more would change no decision;
    never in a comparison, or with a metric that is no mean over items.
    """
    refine: RefineField = None
    """Refinement, by gradient, of λ of what the search recommends, in a single study; None: none.
    ``true``: as it is by itself.
    """
    storage: str | None = Field(default=None, repr=False)
    """URL of the Optuna study's database; None: SQLite in the output folder."""

    @property
    def sampler_used(self) -> str:
        """The sampler: by itself the response surface, where the score is a sum over tasks."""
        if self.sampler != AUTO:
            return self.sampler
        is_sum = isinstance(self.objective, Weights) or self.objective in ("mean", "relative")
        return SURFACE if is_sum else "tpe"

    @property
    def pruner_used(self) -> str | None:
        """The pruner: by itself the response surface's own, or none with other samplers."""
        if self.pruner != AUTO:
            return self.pruner
        return SURFACE if self.sampler_used == SURFACE else None

    @property
    def budget(self) -> Limits:
        """Limits of which the first one reached ends the search; one at least."""
        if not (self.trials or self.items or self.seconds):
            return Limits(DEFAULT_TRIALS, None, None)
        return Limits(self.trials, self.items, self.seconds)


def _store(text: str) -> str:
    """Check a location of artifacts; raise ValueError if MLflow has no store for it."""
    parts = re.fullmatch(r"(file):///[\w./-]+|(\w+)://[\w.:@-]+(/[\w./=+-]*)?", text)
    is_known = parts is not None and (parts[1] or parts[2]) in STORES
    if not is_known or ".." in text.split("/") or re.search(":[^/@]*@", text.partition("//")[2]):
        raise ValueError(
            f"must be a folder of one of MLflow's stores ({', '.join(STORES)}), such as"
            " s3://BUCKET/FOLDER or file:///FOLDER, without a password, but got"
            f" {reprlib.repr(text)}"
        )
    return text


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Tracking:
    """Artifacts that MLflow gets beside numbers."""

    model: Literal["auto", "always", "never"] = "auto"
    """Log the best candidate as a model of the study's run; auto: if it has at most 2 GB, and not
    in a comparison.
    """
    artifacts: Annotated[str, Field(max_length=1000), AfterValidator(_store)] | None = None
    """Location of the artifacts, in a store that MLflow writes to; None: the study's folder, or
    where an MLflow server keeps them.
    """


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """Everything that defines one study."""

    name: Annotated[
        str, Field(pattern=r"^[^/\\?%.\x00-\x1f\x7f][^/\\?%\x00-\x1f\x7f]*$", max_length=100)
    ]
    base: str
    experts: Annotated[dict[Name, str], Field(min_length=1)]
    tasks: Annotated[dict[Name, Task], Field(min_length=1)]
    vocabulary: Literal["same", "common-rows"] = "same"
    """Treatment of language models whose vocabularies have other sizes than the base's."""
    pickled: tuple[Name, ...] = ()
    """Models whose weights may be pickled files: experts, or ``base``."""
    space: Space = Space()
    baselines: dict[MethodName, Baseline] = Field(default_factory=dict)
    ensembles: Annotated[tuple[Literal["mean", "packllm"], ...], BeforeValidator(listed), Once] = ()
    """Ensembles of the experts that are confirmed beside them."""
    search: Search = Search()
    tracking: Tracking = Tracking()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["cpu", "cuda", "auto"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the resident model."""
    generator: GeneratorField = Generator()
    """Generator of texts: ``transformers`` or ``vllm``."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        self._check_experts()
        self._check_pickled()
        self._check_kinds()
        self._check_orders()
        self._check_weights()
        self._check_ensembles()
        self._check_stack()
        if self.space.stack and self.search.sampler == AUTO:
            object.__setattr__(self, "search", replace(self.search, sampler=FOR_STACKS))
        return self

    def _check_experts(self) -> None:
        if BASE in self.experts:
            raise ValueError(
                f"experts.{BASE}: an expert must have another name; {BASE} is the base's"
            )
        if self.space.order == "all" and len(self.experts) > MOST_EXPERTS_IN_ALL_ORDERS:
            raise ValueError(
                f"space.order: all is for {MOST_EXPERTS_IN_ALL_ORDERS} experts at the most, but"
                f" there are {len(self.experts)}; list the orders to search"
            )
        for name, task in self.tasks.items():
            if not task.kind.is_causal and self.expert_of(name) not in self.experts:
                raise ValueError(
                    f"tasks.{name}: a task must name its expert ({', '.join(self.experts)}), but"
                    f" got {self.expert_of(name)}"
                )

    def _check_pickled(self) -> None:
        for name in self.pickled:
            if name not in (BASE, *self.experts):
                raise ValueError(
                    f"pickled: a model must be named ({', '.join((BASE, *self.experts))}), but got"
                    f" {name}"
                )

    def _check_kinds(self) -> None:
        for name in self.tasks:
            expert = self.expert_of(name)
            if expert == BASE:  # an output layer that serves all kinds that use it
                continue
            mates = [other for other in self.tasks if self.expert_of(other) == expert]
            kinds = {self.tasks[other].kind.name: other for other in mates}
            if len(kinds) > 1:
                given = ", ".join(f"{kind} in {other}" for kind, other in sorted(kinds.items()))
                raise ValueError(
                    f"tasks.{name}.kind: one expert's head must score tasks of one kind, but"
                    f" {expert} got {given}"
                )

    def _check_orders(self) -> None:
        listed = self.space.order if isinstance(self.space.order, tuple) else ()
        orders = {f"space.order[{i}]": order for i, order in enumerate(listed)}
        orders |= {f"baselines.{k}.order": b.order for k, b in self.baselines.items() if b.order}
        for field, order in orders.items():
            if sorted(order) != sorted(self.experts):
                raise ValueError(
                    f"{field}: an order must name every expert once ({', '.join(self.experts)}),"
                    f" but got {', '.join(order)}"
                )

    def _check_weights(self) -> None:
        objective = self.search.objective
        if isinstance(objective, Weights) and objective.weights.keys() != self.tasks.keys():
            raise ValueError(
                "search.objective.weights: every task must have a weight"
                f" ({', '.join(self.tasks)}), but got {', '.join(objective.weights)}"
            )

    def _check_ensembles(self) -> None:
        if self.ensembles and len(self.experts) < 2:
            raise ValueError("ensembles: two experts at the least are needed, but there is one")
        for ensemble in self.ensembles:
            for name, task in self.tasks.items():
                if ensemble not in task.kind.ensembles:
                    raise ValueError(
                        f"ensembles: {ensemble} cannot average outputs of {task.kind}, as"
                        f" tasks.{name} has"
                    )

    def _check_stack(self) -> None:
        if self.space.stack is None:
            return
        if MERGED in self.experts:
            raise ValueError(
                f"experts.{MERGED}: an expert must have another name where space.stack is set;"
                f" {MERGED} is the merge's"
            )
        known = (MERGED, BASE, *self.experts)
        for source in self.space.stack.sources or ():
            if source not in known:
                raise ValueError(
                    f"space.stack.sources: a model must be named ({', '.join(known)}), but got"
                    f" {source}"
                )
        if self.generator.engine == VLLM:
            raise ValueError(f"generator.engine: {VLLM} has no stacks of layers (space.stack)")

    @cached_property
    def orders(self) -> tuple[tuple[str, ...], ...]:
        """The pruning orders to search."""
        if self.space.order == "all":
            return tuple(itertools.permutations(self.experts))
        return self.space.order or (tuple(self.experts),)

    @property
    def workers(self) -> int:
        """Number of Ray workers."""
        return self.search.workers or os.cpu_count() or 1

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods to search, then of the baselines."""
        return (*self.space.method, *self.baselines)

    def expert_of(self, task: str) -> str:
        """Return the model whose head scores a task: an expert, or the base."""
        return self.heads[task]

    @property
    def heads(self) -> dict[str, str]:
        """Model whose head scores each task, an expert or the base, by the task's name."""
        return heads(self.tasks)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values as the YAML file would hold them."""
        values: dict[str, Any] = TypeAdapter(Spec).dump_python(
            self, mode="json", by_alias=True, exclude_defaults=False
        )
        values["space"] |= values["space"].pop("more")
        values["search"]["trials"] = self.search.budget.candidates
        return values

    def override(
        self,
        *,
        trials: int | None = None,
        items: int | None = None,
        seconds: int | None = None,
        workers: int | None = None,
        refine: bool = False,
    ) -> Spec:
        """Return a copy with the values that the command line gave.

        ``refine`` asks for what the spec says of refining, else for the defaults.
        """
        options = {"trials": trials, "items": items, "seconds": seconds, "workers": workers}
        settings = (self.search.refine or Refine()) if refine else self.search.refine
        given: dict[str, Any] = {"refine": settings}
        given |= {k: value for k, value in options.items() if value is not None}
        return replace(self, search=replace(self.search, **given))
