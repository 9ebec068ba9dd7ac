"""What a search does next, and what it keeps: all of it durable, none of it Ray's.

The Optuna study is the only state of the search, the outcomes the only state of scoring. A driver may die at any
moment: the next one tells trials that were running FAIL, queues their candidates again, and scores only blocks that
are not recorded. A candidate is told COMPLETE when every item is scored, with the score computed from the record.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState

from cabs_search.baselines import baselines, best_shared, ranked, singles
from cabs_search.checkpoint import first_line
from cabs_search.evaluate import blocks
from cabs_search.kinds import Outcome
from cabs_search.outcomes import Outcomes, Scored
from cabs_search.recipe import Recipe
from cabs_search.search import space
from cabs_search.spec import Spec
from cabs_search.tasks import Items, SplitName

MAX_DUPLICATES = 200
"""Proposals in a row that repeat known candidates, after which the space counts as searched through."""
WORKER_DEATHS = 3
"""Workers that may die over one candidate before it counts as failed."""
MAX_FAILED = 3
"""Candidates in a row that fail, after which the search gives up."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Blocks of items that one worker is to score for one recipe."""

    recipe: Recipe
    split: SplitName
    todo: tuple[int, ...]
    """Blocks that are not recorded yet."""


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What a worker did in one step."""

    block: int
    outcomes: Mapping[str, Outcome]
    """By task."""
    materialize_seconds: float
    evaluate_seconds: float
    warnings: tuple[str, ...] = ()
    """What the worker's user should know, such as a damaged entry of the cache."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A candidate of the search that has ended."""

    number: int
    recipe: Recipe
    state: Literal["complete", "pruned", "failed"]
    scored: Scored | None
    """Where complete."""
    materialize_seconds: float
    started: datetime
    ended: datetime
    error: str | None


class Study:
    """Proposes jobs, takes their results, and knows when all is done."""

    def __init__(
        self,
        spec: Spec,
        folder: Path,
        items: Mapping[SplitName, Mapping[str, Items]],
        outcomes: Outcomes,
        *,
        part: str = "",
        alone: bool = True,
        is_busy: Callable[[Recipe], bool] = lambda _: False,
    ) -> None:
        """Open or create the study in ``folder``; ``take_up`` makes it ready.

        Args:
            spec: what to search.
            folder: the study's.
            items: by split and task.
            outcomes: the record.
            part: the study's name among several of one record.
            alone: whether to confirm base and experts as well.
            is_busy: whether another study of the record is confirming a recipe now.

        Raises:
            ValueError: the database cannot be had, or its study is another folder's or of another space.

        """
        self.spec, self.outcomes, self._part = spec, outcomes, part
        self._on_finished: Callable[[Finished], object] = lambda _: None
        self.blocks = {split: blocks(by_task, spec.search.block) for split, by_task in items.items()}
        self._study = _open(spec, folder)
        self._claim()
        self._open: dict[str, tuple[Job, optuna.Trial | None, float]] = {}
        self._known: dict[str, Scored] = {}
        self._failed: set[str] = set()
        self._failed_in_a_row = 0
        self._deaths: Counter[str] = Counter()
        self._orphans: deque[str] = deque()
        self.failure: str | None = None
        self.exhausted = False
        self.scored_items = 0
        self.singles = deque(singles(spec).values() if alone else ())
        self._is_busy = is_busy
        self._confirm: deque[Recipe] | None = None

    def _claim(self) -> None:
        """Tie study and record to one another: in a shared database two studies may have one name."""
        source = self.spec.search.storage or "study.db"
        ours = self.outcomes.study_id() + (f"/{self._part}" if self._part else "")
        if self._study.user_attrs.get("id", ours) != ours:
            raise ValueError(
                f"{source}: the study {self.spec.name!r} there belongs to another record; choose another name, or "
                "another --output"
            )
        self._study.set_user_attr("id", ours)
        now = self.spec.space.identity() | {"order": ", ".join(map(space.ORDER_MARK.join, self.spec.orders))}
        before = self._study.user_attrs.get("space", now)
        for field, value in now.items():
            if before.get(field) != value:
                raise ValueError(
                    f"space.{field}: must stay as it was when the study in {source} began ({before.get(field)}), but "
                    f"got {value}; choose another --output"
                )
        self._study.set_user_attr("space", now)

    @property
    def id(self) -> str:
        """A name that no other study has."""
        return str(self._study.user_attrs["id"])

    @property
    def complete(self) -> bool:
        """Whether the budget is spent and every row confirmed."""
        return self._confirm is not None and not (self._confirm or self.singles or self._open)

    @property
    def budget(self) -> int:
        """Candidates to score on the search split."""
        return self.spec.search.trials

    @property
    def phase(self) -> str:
        """What is being done, for people."""
        if self._confirm is None:
            return "search"
        return f"confirm ({len(self._confirm) + len(self.singles) + len(self._open)} rows left)"

    @property
    def done(self) -> int:
        """Candidates that have ended, of the budget."""
        return len(self._known) + len(self._failed)

    @property
    def best(self) -> Scored | None:
        """The best candidate so far."""
        return next(iter(ranked(self._known.values())), None)

    def take_up(self, on_finished: Callable[[Finished], object] = lambda _: None) -> None:
        """Take up what earlier runs left: finished candidates count, interrupted ones are queued again.

        Args:
            on_finished: told every finished candidate, those of earlier runs first.

        """
        self._on_finished = on_finished
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING and "error" in trial.user_attrs:  # killed while it was told
                self._study.tell(trial.number, state=TrialState.FAIL)
        trials = self._study.get_trials(deepcopy=False)
        wanted: dict[str, Recipe] = {}
        for trial in trials:
            recipe = _recipe_of(trial)
            if recipe and _counts(trial):
                self._finish(trial, recipe)
            elif recipe and trial.state == TrialState.RUNNING:
                wanted[recipe.key] = recipe
        wanted |= {recipe.key: recipe for recipe in baselines(self.spec)}
        waiting = {r.key for t in trials if t.state == TrialState.WAITING and (r := _recipe_of(t))}
        for key, recipe in wanted.items():
            if key not in waiting | self._known.keys() | self._failed:
                self._enqueue(recipe)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
        self._study.sampler = self._sampler()

    def _enqueue(self, recipe: Recipe) -> None:
        params = space.params_of(self.spec, recipe) or {}
        self._study.enqueue_trial(params, user_attrs={"recipe": json.dumps(recipe.as_dict())})

    def _sampler(self) -> optuna.samplers.BaseSampler:
        seed = self.spec.seed + len(self._study.get_trials(deepcopy=False))
        startup = len(baselines(self.spec)) + 4
        if self.spec.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():  # group, multivariate and constant_liar count as experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=startup
            )

    def next_job(self, job_id: str) -> Job | Literal["finished"] | None:
        """The next job, by an id of the caller's; None while there is nothing to do until another job ends."""
        if self.failure:
            return "finished"
        if job := self._next_orphan(job_id) or self._next_candidate(job_id) or self._next_row(job_id):
            return job
        return "finished" if self.complete else None

    def _next_candidate(self, job_id: str) -> Job | None:
        searching = sum(trial is not None for _, trial, _ in self._open.values())
        for _ in range(MAX_DUPLICATES):
            if self.exhausted or self.done + searching >= self.spec.search.trials:
                return None
            trial = self._study.ask()
            recipe = _recipe_of(trial)
            if recipe is None or space.params_of(self.spec, recipe) is not None:  # so that the sampler learns from it
                recipe = space.suggest(self.spec, trial)
            if self._is_duplicate(recipe):
                trial.set_user_attr("duplicate", True)
                known = self._known.get(recipe.key)
                values = (known.score, TrialState.COMPLETE) if known else (None, TrialState.FAIL)
                self._study.tell(trial, values[0], values[1])
                continue
            trial.set_user_attr("recipe", json.dumps(recipe.as_dict()))
            job = self._job(recipe, "search")
            self._open[job_id] = (job, trial, 0.0)
            if not job.todo:
                self.finish(job_id)
                continue
            return job
        self.exhausted = True
        return None

    def _is_duplicate(self, recipe: Recipe) -> bool:
        in_work = {job.recipe.key for job, trial, _ in self._open.values() if trial is not None}
        return recipe.key in self._known or recipe.key in in_work or recipe.key in self._failed

    def _next_row(self, job_id: str) -> Job | None:
        """A row of the leaderboard to score on the confirm split."""
        while True:
            if self.singles:
                recipe = self.singles.popleft()
            else:
                if self._confirm is None:
                    if any(trial is not None for _, trial, _ in self._open.values()):
                        return None
                    self._confirm = deque(self.rows_to_confirm())
                if not self._confirm:
                    return None
                recipe = self._confirm.popleft()
            job = self._job(recipe, "confirm")
            if job.todo and self._is_busy(recipe):
                (self.singles if self._confirm is None else self._confirm).append(recipe)
                return None
            in_work = {j.recipe.key for j, trial, _ in self._open.values() if trial is None}
            if job.todo and recipe.key not in in_work:
                self._open[job_id] = (job, None, 0.0)
                return job

    def is_confirming(self, recipe: Recipe) -> bool:
        """Whether a recipe is being scored on the confirm split."""
        return any(job.recipe.key == recipe.key for job, trial, _ in self._open.values() if trial is None)

    def rows_to_confirm(self) -> list[Recipe]:
        """The best shared-λ candidate of each baseline method, and the best candidates of all."""
        found = [s.recipe for s in best_shared(self.spec, self._known).values()]
        found += [s.recipe for s in ranked(self._known.values())[: self.spec.search.confirm]]
        return list({recipe.key: recipe for recipe in found}.values())

    def _job(self, recipe: Recipe, split: SplitName) -> Job:
        done = self.outcomes.done_blocks(recipe, split)
        return Job(recipe=recipe, split=split, todo=tuple(b for b in range(len(self.blocks[split])) if b not in done))

    def record(self, job_id: str, result: BlockResult) -> None:
        """Keep one block's outcomes."""
        job, trial, seconds = self._open[job_id]
        self.outcomes.record(job.recipe, job.split, result.block, result.outcomes, result.evaluate_seconds)
        self._open[job_id] = (job, trial, seconds + result.materialize_seconds)
        self.scored_items += sum(len(o.scores) for o in result.outcomes.values())

    def finish(self, job_id: str, error: str | None = None) -> None:
        """End a job: tell Optuna the score of what is recorded, or that it failed."""
        job, trial, seconds = self._open.pop(job_id)
        if trial is None:
            if error:
                self.failure = f"{job.recipe} could not be confirmed: {error}"
            return
        scored = None if error else self.outcomes.scored_one(self.spec, "search", job.recipe)
        trial.set_user_attr("materialize_seconds", seconds)
        if scored is None:
            trial.set_user_attr("error", error or "not every item was scored")
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, scored.score)
        self._finish(self._study.get_trials(deepcopy=False)[trial.number], job.recipe)
        self._failed_in_a_row = self._failed_in_a_row + 1 if scored is None else 0
        if self._failed_in_a_row >= MAX_FAILED:
            self.failure = f"{MAX_FAILED} candidates in a row failed, the last one: {error}"

    def died(self, job_id: str) -> None:
        """Take note that a job's worker died: another one gets what is left of it, some times."""
        key = self._open[job_id][0].recipe.key
        self._deaths[key] += 1
        if self._deaths[key] > WORKER_DEATHS:
            self.finish(job_id, f"its worker died {self._deaths[key]} times")
        else:
            self._orphans.append(job_id)

    def _next_orphan(self, job_id: str) -> Job | None:
        while self._orphans:
            job, trial, seconds = self._open.pop(self._orphans.popleft())
            job = self._job(job.recipe, job.split)
            self._open[job_id] = (job, trial, seconds)
            if job.todo:
                return job
            self.finish(job_id)
        return None

    def leave(self, job_id: str) -> None:
        """Give a job up without an end: its candidate stays RUNNING, and the next run takes it up."""
        self._open.pop(job_id)

    def stop(self, job_id: str, reason: str) -> None:
        """End the search for a reason that is no candidate's."""
        self.leave(job_id)
        self.failure = reason

    def _finish(self, trial: optuna.trial.FrozenTrial, recipe: Recipe) -> None:
        scored = self.outcomes.scored_one(self.spec, "search", recipe)
        if trial.state == TrialState.COMPLETE and scored is not None:
            self._known[recipe.key] = scored
            self._failed.discard(recipe.key)
        elif recipe.key not in self._known:
            self._failed.add(recipe.key)
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        self._on_finished(
            Finished(
                number=trial.number,
                recipe=recipe,
                state="complete" if trial.state == TrialState.COMPLETE else "failed",
                scored=scored,
                materialize_seconds=float(trial.user_attrs.get("materialize_seconds", 0.0)),
                started=trial.datetime_start,
                ended=trial.datetime_complete,
                error=trial.user_attrs.get("error"),
            )
        )


def recipe_of_trial(spec: Spec, folder: Path, number: str) -> str | None:
    """The key of a candidate's recipe, by its number; None where there is no such candidate."""
    if not spec.search.storage and not (folder / "study.db").is_file():
        return None
    trials = _open(spec, folder).get_trials(deepcopy=False)
    recipe = _recipe_of(trials[int(number)]) if number.isdecimal() and int(number) < len(trials) else None
    return recipe.key if recipe else None


def _open(spec: Spec, folder: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = spec.search.storage or f"sqlite:///{folder / 'study.db'}"
    try:
        return optuna.create_study(storage=storage, study_name=spec.name, direction="maximize", load_if_exists=True)
    except Exception as error:
        raise ValueError(f"{storage}: the study cannot be opened: {first_line(error)}") from error


def _recipe_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> Recipe | None:
    text = trial.user_attrs.get("recipe")
    return Recipe.from_dict(json.loads(text)) if text else None


def _counts(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial is a candidate that ended by itself."""
    if "duplicate" in trial.user_attrs:
        return False
    return trial.state == TrialState.COMPLETE or (trial.state == TrialState.FAIL and "error" in trial.user_attrs)
