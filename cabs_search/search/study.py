"""What a search does next, and what it keeps: all of it durable, none of it Ray's.

The Optuna study is the only state of the search, the outcomes the only state of scoring. A driver
may die at any
moment: the next one takes up the trials that were running, and scores only blocks that are not
recorded. A candidate is told COMPLETE when every item is scored, with the score computed from the
record.

What is sampled is sampled in memory, where a parameter costs no transaction; the database gets a
trial when it is proposed and again when it ends.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState

from cabs_search.merging.recipe import Recipe
from cabs_search.metrics.base import Values
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import Block, Outcomes, Scored
from cabs_search.scoring.batches import blocks
from cabs_search.search import space
from cabs_search.search.candidates import baselines, best_shared, ranked, reference_recipes
from cabs_search.search.jobs import BlockResult, Finished, Job
from cabs_search.search.storage import is_candidate, load_study, open_storage, recipe_of
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items, SplitName

MAX_DUPLICATES = 200
"""Proposals in a row that repeat known candidates, after which the space counts as searched
through.
"""
WORKER_DEATHS = 3
"""Workers that may die over one candidate before it counts as failed."""
MAX_FAILED = 3
"""Candidates in a row that fail, after which the search gives up."""


@dataclass
class _Open:
    """A job that was given and has not ended."""

    job: Job
    trial: optuna.Trial | None = None
    """The sampler's; None of a row to confirm."""
    trial_id: int = -1
    """The database's."""
    seconds: float = 0.0
    """Spent on materializing."""


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
            ValueError: the database cannot be had, or its study is another folder's or of another
                space.

        """
        self.spec, self.outcomes, self._part = spec, outcomes, part
        self._on_finished: Callable[[Finished], object] = lambda _: None
        self.blocks = {
            split: blocks(by_task, spec.search.block) for split, by_task in items.items()
        }
        self._storage = open_storage(spec, folder)
        self._study = load_study(spec, self._storage)
        self._study_id = self._storage.get_study_id_from_name(spec.name)
        self._claim()
        self._open: dict[str, _Open] = {}
        self._queue: deque[tuple[Recipe, int | None]] = deque()
        self._known: dict[str, Scored] = {}
        self._failed: set[str] = set()
        self._failed_in_a_row = 0
        self._deaths: Counter[str] = Counter()
        self._orphans: deque[str] = deque()
        self.best: Scored | None = None
        """The best candidate so far, without its outcomes."""
        self.failure: str | None = None
        self.exhausted = False
        self.scored_items = 0
        self._repeated = 0
        """Proposals that were known, and are not yet written down."""
        self._singles = tuple(reference_recipes(spec.experts).values() if alone else ())
        self.singles = deque(self._singles)
        self._is_busy = is_busy
        self._confirm: deque[Recipe] | None = None

    def _claim(self) -> None:
        """Tie study and record to one another: in a shared database two studies may have one
        name.
        """
        source = self.spec.search.storage or "study.db"
        ours = str(self.id)
        if self._study.user_attrs.get("id", ours) != ours:
            raise ValueError(
                f"{source}: the study {self.spec.name!r} there belongs to another record; choose"
                " another name, or another --output"
            )
        self._study.set_user_attr("id", ours)
        now = self.spec.space.identity() | {
            "order": ", ".join(map(space.ORDER_MARK.join, self.spec.orders))
        }
        before = self._study.user_attrs.get("space", now)
        for field, value in now.items():
            if before.get(field) != value:
                raise ValueError(
                    f"space.{field}: must stay as it was when the study in {source} began"
                    f" ({before.get(field)}), but got {value}; choose another --output"
                )
        self._study.set_user_attr("space", now)

    @property
    def id(self) -> StudyId:
        """Name that no other study has."""
        return StudyId(self.outcomes.study_id(), self._part)

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
    def left(self) -> int:
        """Jobs that are not given yet, as far as they are known."""
        candidates = 0 if self.exhausted else max(0, self.budget - self.done - self._searching)
        return candidates + len(self._orphans) + len(self.singles) + len(self._confirm or ())

    @property
    def _searching(self) -> int:
        return sum(found.trial is not None for found in self._open.values())

    @cached_property
    def _labels(self) -> Mapping[str, Values]:
        return self.outcomes.labels("search")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within this the databases stay open; they are closed behind it."""
        with self.outcomes.kept_open():
            try:
                yield
            finally:
                self.close()

    def close(self) -> None:
        """Close the search's database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def take_up(self, on_finished: Callable[[Finished], object] = lambda _: None) -> None:
        """Take up what earlier runs left: finished candidates count, interrupted ones are scored
        first.

        Args:
            on_finished: told every finished candidate as they end, those of earlier runs first.

        """
        self._on_finished = on_finished
        trials = sorted(
            self._storage.get_all_trials(self._study_id),
            key=lambda trial: trial.datetime_complete or datetime.max,
        )
        self._sampled = optuna.create_study(
            direction="maximize", sampler=self._sampler(len(trials))
        )
        queued: dict[str, tuple[Recipe, int | None]] = {}
        for trial in trials:
            recipe = recipe_of(trial)
            if not trial.state.is_finished():
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(
                    self._study_id, trial.number
                )
                seen = queued.keys() | self._known.keys() | self._failed
                if recipe and "error" not in trial.user_attrs and recipe.key not in seen:
                    queued[recipe.key] = (recipe, trial_id)
                    continue
                self._storage.set_trial_state_values(
                    trial_id, TrialState.FAIL
                )  # killed while it was told
                trial = self._storage.get_trial(trial_id)
            self._sampled.add_trial(trial)
            if recipe and is_candidate(trial):
                self._finish(
                    trial,
                    recipe,
                    self.outcomes.scored_one("search", recipe, self._labels),
                )
        for recipe in baselines(self.spec):
            if recipe.key not in queued.keys() | self._known.keys() | self._failed:
                queued[recipe.key] = (recipe, None)
        self._queue.extend(queued.values())

    def _sampler(self, begun: int) -> optuna.samplers.BaseSampler:
        seed = self.spec.seed + begun
        startup = len(baselines(self.spec)) + 4
        if self.spec.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with (
            warnings.catch_warnings()
        ):  # group, multivariate and constant_liar count as experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=startup,
            )

    def next_job(self, job_id: str) -> Job | Literal["finished"] | None:
        """The next job, by an id of the caller's; None while there is nothing to do until another
        job ends.
        """
        if self.failure:
            return "finished"
        if (
            job := self._next_orphan(job_id)
            or self._next_candidate(job_id)
            or self._next_row(job_id)
        ):
            return job
        return "finished" if self.complete else None

    def _next_candidate(self, job_id: str) -> Job | None:
        repeated = 0
        for _ in range(MAX_DUPLICATES):
            if self.exhausted or self.done + self._searching >= self.spec.search.trials:
                return None
            wanted, trial_id = self._queue.popleft() if self._queue else (None, None)
            trial, recipe = self._ask(wanted)
            if self._is_duplicate(recipe):
                known = self._known.get(recipe.key)
                values = (known.score, TrialState.COMPLETE) if known else (None, TrialState.FAIL)
                self._sampled.tell(trial, values[0], values[1])
                repeated += 1
                continue
            self._repeated += repeated
            if trial_id is None:
                trial_id = self._keep(trial, recipe)
            job = self._job(recipe, "search")
            self._open[job_id] = _Open(job, trial, trial_id)
            if not job.todo:
                self.finish(job_id)
                continue
            return job
        self.exhausted = True
        return None

    def _ask(self, wanted: Recipe | None) -> tuple[optuna.Trial, Recipe]:
        """A proposal of the sampler's; or a recipe that is wanted, so that the sampler learns from
        it.
        """
        if wanted is None:
            trial = self._sampled.ask()
            return trial, space.suggest(self.spec, trial)
        params = space.params_of(self.spec, wanted)
        self._sampled.enqueue_trial(params or {})
        trial = self._sampled.ask()
        if params is not None:
            space.suggest(self.spec, trial)
        return trial, wanted

    def _keep(self, trial: optuna.Trial, recipe: Recipe) -> int:
        """Write a proposal down, whole; its id in the database."""
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"recipe": json.dumps(recipe.as_dict())},
        )
        return int(self._storage.create_new_trial(self._study_id, template_trial=template))

    def _is_duplicate(self, recipe: Recipe) -> bool:
        in_work = {found.job.recipe.key for found in self._open.values() if found.trial is not None}
        return recipe.key in self._known or recipe.key in in_work or recipe.key in self._failed

    def _next_row(self, job_id: str) -> Job | None:
        """A row of the leaderboard to score on the confirm split."""
        while True:
            if self.singles:
                recipe = self.singles.popleft()
            else:
                if self._confirm is None:
                    if self._searching:
                        return None
                    self._confirm = deque(self.rows_to_confirm())
                if not self._confirm:
                    return None
                recipe = self._confirm.popleft()
            job = self._job(recipe, "confirm")
            if job.todo and self._is_busy(recipe):
                (self.singles if self._confirm is None else self._confirm).append(recipe)
                return None
            if job.todo and not self.is_confirming(recipe):
                self._open[job_id] = _Open(job)
                return job

    def is_confirming(self, recipe: Recipe) -> bool:
        """Whether a recipe is being scored on the confirm split."""
        return any(o.job.recipe.key == recipe.key for o in self._open.values() if o.trial is None)

    def rows_to_confirm(self) -> list[Recipe]:
        """The best shared-λ candidate of each baseline method, and the best candidates of all."""
        found = [s.recipe for s in best_shared(self.spec, self._known).values()]
        found += [s.recipe for s in ranked(self._known.values())[: self.spec.search.confirm]]
        return list({recipe.key: recipe for recipe in found}.values())

    def _job(self, recipe: Recipe, split: SplitName) -> Job:
        done = self.outcomes.done_blocks(recipe, split)
        return Job(
            recipe=recipe,
            split=split,
            todo=tuple(b for b in range(len(self.blocks[split])) if b not in done),
        )

    def record(self, results: Sequence[tuple[str, BlockResult]]) -> None:
        """Keep blocks' outcomes, each by its job's id, in one transaction."""
        found = [(self._open[job_id], result) for job_id, result in results]
        self.outcomes.record(
            [
                Block(
                    recipe=of.job.recipe,
                    split=of.job.split,
                    number=result.block,
                    outcomes=result.outcomes,
                    evaluate_seconds=result.evaluate_seconds,
                )
                for of, result in found
            ],
            {
                "materialize": sum(result.materialize_seconds for _, result in found),
                "repeated": self._repeated,
            },
        )
        self._repeated = 0
        for of, result in found:
            of.seconds += result.materialize_seconds
            self.scored_items += sum(len(o.scores) for o in result.outcomes.values())

    def finish(self, job_id: str, error: str | None = None) -> None:
        """End a job: tell Optuna the score of what is recorded, or that it failed."""
        ended = self._open.pop(job_id)
        recipe, trial_id = ended.job.recipe, ended.trial_id
        if ended.trial is None:
            if error:
                self.failure = f"{recipe} could not be confirmed: {error}"
            return
        scored = None if error else self.outcomes.scored_one("search", recipe, self._labels)
        if scored is not None and not math.isfinite(scored.score):
            scored, error = None, "its score is not a finite number"
        self._storage.set_trial_user_attr(trial_id, "materialize_seconds", ended.seconds)
        if scored is None:
            self._storage.set_trial_user_attr(
                trial_id, "error", error or "not every item was scored"
            )
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            self._sampled.tell(ended.trial, state=TrialState.FAIL)
        else:
            self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [scored.score])
            self._sampled.tell(ended.trial, scored.score)
        self._finish(self._storage.get_trial(trial_id), recipe, scored)
        self._failed_in_a_row = self._failed_in_a_row + 1 if scored is None else 0
        if self._failed_in_a_row >= MAX_FAILED:
            self.failure = f"{MAX_FAILED} candidates in a row failed, the last one: {error}"

    def died(self, job_id: str) -> None:
        """Take note that a job's worker died: another one gets what is left of it, some times."""
        key = self._open[job_id].job.recipe.key
        self._deaths[key] += 1
        if self._deaths[key] > WORKER_DEATHS:
            self.finish(job_id, f"its worker died {self._deaths[key]} times")
        else:
            self._orphans.append(job_id)

    def _next_orphan(self, job_id: str) -> Job | None:
        while self._orphans:
            orphan = self._open.pop(self._orphans.popleft())
            orphan.job = job = replace(self._job(orphan.job.recipe, orphan.job.split), alone=True)
            self._open[job_id] = orphan
            if job.todo:
                return job
            self.finish(job_id)
        return None

    def give_up(self) -> list[Recipe]:
        """Let go of jobs whose workers died; base and experts that are not confirmed, where this
        study was to.
        """
        orphaned = [self._open.pop(job_id).job.recipe for job_id in self._orphans]
        mine = {recipe.key for recipe in self._singles}
        rows = [*self.singles, *(recipe for recipe in orphaned if recipe.key in mine)]
        self._orphans.clear()
        self.singles.clear()
        return rows

    def stop(self, reason: str) -> None:
        """End the search for a reason that is no candidate's; the next run takes up what is at
        work.
        """
        self.failure = reason

    def _finish(
        self, trial: optuna.trial.FrozenTrial, recipe: Recipe, scored: Scored | None
    ) -> None:
        if trial.state == TrialState.COMPLETE and scored is not None:
            self._known[recipe.key] = known = replace(
                scored, tasks={}
            )  # its outcomes are on record
            self.best = ranked([known] if self.best is None else [known, self.best])[0]
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
