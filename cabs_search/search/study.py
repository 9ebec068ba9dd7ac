"""The search of one study: proposes jobs, takes their results, says when all is done.

The Optuna database is the only state of the search, the record of outcomes the only state of
scoring. A driver may be killed at any moment: the next one resumes the trials that were running
and scores only blocks that are not recorded. A trial is COMPLETE only when every item is scored;
its score is computed from the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from optuna.trial import FrozenTrial, TrialState

from cabs_search.merging.recipe import Recipe
from cabs_search.metrics.base import Values
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import SEARCHING, Block, Expected, Outcomes, Scored
from cabs_search.scoring.batches import blocks
from cabs_search.search import space
from cabs_search.search.budget import Budget, Share
from cabs_search.search.candidates import Candidates, ranked, reference_recipes
from cabs_search.search.confirm import ConfirmQueue, rows_to_compare, rows_to_confirm
from cabs_search.search.confirm_looks import ConfirmLooks
from cabs_search.search.due import DueBlocks
from cabs_search.search.ended import EndedCandidates, OnFinished
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.judge import Judge
from cabs_search.search.known import NOTHING, KnownReader
from cabs_search.search.objectives.registry import objective_identity, objective_of
from cabs_search.search.open_jobs import MAX_WORKER_DEATHS, CandidateTrial, OpenJob, OpenJobs
from cabs_search.search.proposals import Proposer
from cabs_search.search.pruners.registry import find_pruner
from cabs_search.search.refine.stage import RefineStage
from cabs_search.search.storage import StudyDatabase, has_ended_by_itself, is_recommended, recipe_of
from cabs_search.search.twins import Twins
from cabs_search.spec.study import SURFACE, Spec
from cabs_search.tasks.items import Items, SplitName

MAX_DUPLICATES = 200
"""Duplicate proposals in a row after which the space counts as exhausted."""
RECOMMENDED = 2
"""Candidates at the end of the budget that are kept for what is recommended: its score may change
what is.
"""
MAX_FAILED = 3
"""Candidates in a row that fail, after which the search gives up."""

IsBusy: TypeAlias = Callable[[Recipe, SplitName], bool]
"""Tells whether some study of the record is scoring a recipe that is no candidate."""


def open_database(spec: Spec, folder: Path, study_id: StudyId) -> StudyDatabase:
    """Open or create a spec's study; ValueError if it is another record's, or its space or
    objective is another.
    """
    orders = ", ".join(map(space.ORDER_MARK.join, spec.orders))
    return StudyDatabase(
        folder,
        url=spec.search.storage,
        name=spec.name,
        study_id=study_id,
        space=spec.space.identity() | {"order": orders},
        objective=objective_identity(spec),
        names=objective_of(spec).names,
    )


class Study:
    """The search of one study; a ``JobSource``."""

    def __init__(
        self,
        spec: Spec,
        database: StudyDatabase,
        items: Mapping[SplitName, Mapping[str, Items]],
        outcomes: Outcomes,
        *,
        on_finished: OnFinished = lambda _: None,
        confirms_references: bool = True,
        is_busy: IsBusy = lambda *_: False,
        tensors: Sequence[str] = (),
    ) -> None:
        """Resume what is in ``database``: ended candidates count, interrupted ones come first.

        Args:
            spec: what to search.
            database: the study's trials.
            items: by split and task.
            outcomes: the record.
            on_finished: told each candidate that ends, those of earlier runs first.
            confirms_references: whether to confirm base and experts too.
            is_busy: for several studies of one record, which confirm each recipe once.
            tensors: names of the merged tensors, to refine λ.

        Raises:
            ValueError: the objective cannot compare with what is on record.

        """
        trials = database.trials()
        self.spec, self.outcomes = spec, outcomes
        size = spec.search.block
        self.blocks = {split: blocks(by_task, size) for split, by_task in items.items()}
        self.failure: str | None = None
        self.exhausted = False
        """True once the sampler proposes nothing new."""
        self.scored_items = 0
        self._database = database
        self._candidates = Candidates.of(spec)
        block_items = [sum(map(len, rows.values())) for rows in self.blocks["search"]]
        self._candidate_items = sum(block_items)
        seconds = outcomes.search_seconds(database.id.value)
        self._budget = Budget(spec.search, self._candidate_items, spec.workers, seconds)
        name, pruner = spec.search.pruner_used, None
        if name is not None:
            pruner = find_pruner(name)(self._budget.most_candidates(min(block_items)))
        self._judge = Judge(spec, outcomes)
        objectives = len(self._judge.names)
        self._proposer = Proposer(
            self._candidates, spec.search.sampler_used, len(trials), pruner, objectives
        )
        self._proposer.weigh(self._judge.weights)
        self._known = KnownReader(
            outcomes,
            spec.tasks,
            self.blocks["search"],
            self._judge,
            reads_rounds=pruner is not None,
            reads_answers=self._proposer.learns_from_items,
        )
        self._ended = EndedCandidates(on_finished)
        self._jobs = OpenJobs()
        self._twins = Twins(self._ended, self._jobs, self._known, self._proposer)
        references = list(reference_recipes(spec.experts).values()) if confirms_references else []
        self._rows = ConfirmQueue(references)
        self._looks = ConfirmLooks(spec, self.blocks["confirm"], outcomes, references)
        self._refining = RefineStage(spec, tensors, self.blocks["search"], outcomes, self.id.value)
        self._is_busy = is_busy
        self._failed_in_a_row = 0
        self._due = DueBlocks(
            self.blocks,
            outcomes,
            lambda r: self._candidates.is_baseline(r) or self._judge.is_reference(r),
            self._looks.due,
            has_looks=pruner is not None,
            rotates=spec.search.pruner_used == SURFACE,
        )
        self._refined: dict[str, Recipe] = {}
        """Recipes that refining has found, coarse to fine, by their keys."""
        self._chosen: Scored | None = None
        self._repeated = 0
        """Duplicate proposals that are not recorded yet."""
        self._resume(trials)

    def _resume(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in the trials of earlier runs; queue those that were interrupted, and baselines."""
        queue: dict[str, tuple[Recipe, int | None]] = {}
        for trial in sorted(trials, key=lambda t: t.datetime_complete or datetime.max):
            recipe = recipe_of(trial)
            if recipe and is_recommended(trial):
                self._due.whole.add(recipe.key)
            if not trial.state.is_finished():
                trial_id = self._database.trial_id(trial)
                is_known = recipe is None or recipe.key in queue or recipe.key in self._ended
                if recipe and is_recommended(trial) and self._ended.is_stopped(recipe.key):
                    is_known = False  # it is being scored to the end
                if recipe and not is_known and "error" not in trial.user_attrs:
                    queue[recipe.key] = (recipe, trial_id)
                    continue
                # a driver was killed after it wrote the error and before it ended the trial
                trial = self._database.discard(trial_id)
            is_complete = trial.state == TrialState.COMPLETE
            scored = self._score(recipe) if recipe and is_complete else None
            is_refined = recipe is not None and self._is_refined(recipe)
            if not is_refined:
                self._proposer.add(trial, self._known.read(recipe, scored) if recipe else NOTHING)
            if recipe and has_ended_by_itself(trial):
                is_counted = not is_refined and recipe.key not in self._ended
                self._budget.items += self._due.recorded(recipe) if is_counted else 0
                self._ended.add(trial, recipe, scored)
        for recipe in (*self._judge.first_candidates, *self._candidates.baseline_recipes):
            is_whole = recipe.key in self._ended and not self._ended.is_stopped(recipe.key)
            if recipe.key not in queue and not is_whole:
                queue[recipe.key] = (recipe, None)
        for recipe, known_trial in queue.values():
            self._proposer.enqueue(recipe, known_trial)

    @property
    def id(self) -> StudyId:
        """A name that no other study has."""
        return self._database.id

    @property
    def budget(self) -> int:
        """Candidates to score on the search split, as far as they can be counted."""
        return self.done + self._jobs.searching + self._candidates_left()

    @property
    def shares(self) -> list[Share]:
        """Parts of all limits of the search that are spent."""
        return self._budget.shares(self.done)

    def _candidates_left(self, at_a_time: int | None = None) -> int:
        started, owed = self.done + self._jobs.searching, self._jobs.owed(self._candidate_items)
        return self._budget.left(started, owed, at_a_time=at_a_time)

    @property
    def done(self) -> int:
        """Candidates that have ended, of the budget."""
        return self._ended.count(without=self._refining.refined_ever)

    @property
    def best(self) -> Scored | None:
        """The best candidate so far, without its outcomes."""
        return self._ended.best

    @property
    def chosen(self) -> Scored | None:
        """The recommended candidate, else the best so far."""
        return self._chosen or self.best

    @property
    def left(self) -> int:
        """Jobs not given out yet, as far as they can be counted."""
        candidates = 0 if self.exhausted else self._candidates_left()
        return candidates + self._jobs.waiting + self._refining.waiting + len(self._rows)

    @property
    def phase(self) -> str:
        """The stage of the work, for the progress bar."""
        if not self._rows.has_candidates:
            return self._refining.phase or "search"
        return f"confirm ({len(self._rows) + len(self._jobs)} rows left)"

    @property
    def is_finished(self) -> bool:
        """True if there will be no more jobs: all is done, or the search cannot go on."""
        is_done = self._looks.are_over and not self._rows and not self._jobs
        return self.failure is not None or is_done

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep the databases open inside the context; close them after it."""
        with self.outcomes.kept_open(), closing(self):
            yield

    def close(self) -> None:
        """Close the search's database."""
        self._database.close()

    def next_job(self, job_id: str) -> Job | None:
        """Open a job that waits, a candidate, or a row to confirm, under an id of the caller's.

        Returns:
            None if there is nothing to do until another job ends, or nothing at all any more.

        """
        if self.failure:
            return None
        sources = (
            self._next_waiting,
            self._next_reference,
            self._next_candidate,
            self._next_evaluation,
            self._next_row,
        )
        return next(filter(None, (source(job_id) for source in sources)), None)

    def _next_waiting(self, job_id: str) -> Job | None:
        while waiting := self._jobs.pop_waiting():
            job = waiting.job
            if job.purpose == "score":
                job = self._due.job(job.recipe, job.split)
            waiting.job = replace(job, alone=self._jobs.killed_a_worker(job.recipe))
            self._jobs[job_id] = waiting
            if job.todo:
                return waiting.job
            self.finish(job_id)
        return None

    def _next_reference(self, job_id: str) -> Job | None:
        """Open a job of what the objective compares candidates with."""
        while recipe := self._judge.next_reference():
            if self._is_busy(recipe, "search"):
                self._judge.put_back(recipe)
                return None
            job = self._due.job(recipe, "search")
            if job.todo:
                self._jobs[job_id] = OpenJob(job)
                return job
            self._take_references()
        return None

    def _take_references(self) -> None:
        """Judge by the references, once all of them are scored."""
        try:
            self._judge.update()
        except ValueError as error:
            self.failure = str(error)
        self._proposer.weigh(self._judge.weights)

    def _next_candidate(self, job_id: str) -> Job | None:
        repeated = 0
        if not self._judge.is_ready or self._rows.has_candidates:
            return None
        for _ in range(MAX_DUPLICATES):
            has_room = self._candidates_left() or (self._refined and self._proposer.queued)
            if self.failure or not has_room:
                return None
            if not self._refined:
                self._budget.start_clock()
            is_last = self._is_time_to_recommend()
            if is_last:
                if self._jobs.searching:
                    return None  # they may change what is best
                self._enqueue_recommended()
            if self.exhausted and not self._proposer.queued:
                return None
            is_queued = self._proposer.queued > 0  # such as a baseline, which has a row of its own
            proposal = self._proposer.propose()
            recipe, trial_id = proposal.recipe, proposal.trial_id
            is_repeated = not is_queued and self._twins.is_repeated(recipe, proposal.trial)
            if is_repeated or self._judge.is_outsider(recipe):
                if not is_repeated:
                    self._proposer.tell(proposal.trial, None)
                repeated += 1
                if self._proposer.is_exhausted:
                    break
                continue
            self._repeated += repeated
            repeated = 0
            if is_last and not self._ended.scored:
                self._due.whole.add(recipe.key)  # or nothing would have a score
            if trial_id is None:
                is_whole = recipe.key in self._due.whole
                trial_id = self._database.add(proposal.trial, recipe, is_recommended=is_whole)
            if proposal.expected is not None:
                self.outcomes.expect(proposal.expected)
            job = self._due.job(recipe, "search")
            items = self._due.recorded(recipe)  # by an earlier run, or another study of the record
            is_counted = not self._is_refined(recipe) and recipe.key not in self._ended
            self._budget.items += items if is_counted else 0
            candidate = CandidateTrial(proposal.trial, trial_id)
            self._jobs[job_id] = OpenJob(job, candidate, items=items)
            # a driver may have been killed between a look's last block and the look
            if job.todo and not self._due.is_at_look(recipe):
                return job
            self.finish(job_id)
            if job_id in self._jobs:  # it was looked at, and goes on
                return self._next_waiting(job_id)
        if not self.exhausted:
            self.exhausted = True
            return self._next_candidate(job_id)  # what is recommended is still to be scored
        return None

    def _is_time_to_recommend(self) -> bool:
        """Tell whether the rest of the budget is for what is recommended."""
        if self._proposer.queued or not self._proposer.learns_from_items:
            return False
        # one after another: the second may depend on the first
        return self.exhausted or self._candidates_left(at_a_time=1) <= RECOMMENDED

    def _enqueue_recommended(self) -> None:
        """Have the best prediction of the space scored in full, unless it is."""
        found = self._proposer.recommend()
        if found is None or self._judge.is_outsider(found.recipe):
            return
        same = self._ended.same_model(found.recipe)
        if same is None:
            self.outcomes.expect(found)
        if same is None or self._ended.is_stopped(same.key):
            recipe = same or found.recipe
            self._due.whole.add(recipe.key)
            self._proposer.enqueue(recipe)

    def _next_evaluation(self, job_id: str) -> Job | None:
        """Open an evaluation of the refinement, after the last candidate of the search.

        What was refined is then scored as candidates beyond the budget.
        """
        if self._refining.is_over or not self._judge.is_ready or self._jobs.searching:
            return None
        self._budget.stop_clock()
        if not self._refining.has_begun:
            recommended, found = self._recommend(), ranked(self._searched.values())
            best = recommended.recipe if recommended else found[0].recipe if found else None
            self._refining.begin(best, len(found), self._judge.weights)
        if job := self._refining.next_job():
            self._jobs[job_id] = OpenJob(job)
            return job
        if not self._refining.is_over:
            return None
        self._refined = {recipe.key: recipe for recipe in self._refining.refined}
        self._due.whole |= self._refined.keys()
        done = self._ended.scored.keys() | self._ended.failed
        self._proposer.queue_only([r for key, r in self._refined.items() if key not in done])
        return self._next_candidate(job_id)

    @property
    def _searched(self) -> dict[str, Scored]:
        """Candidates of the search that have a score, without those that were refined."""
        refined = self._refining.refined_ever
        return {key: s for key, s in self._ended.scored.items() if key not in refined}

    def _is_refined(self, recipe: Recipe) -> bool:
        """Tell whether a candidate was refined: it is none of the search's."""
        return recipe.key in self._refining.refined_ever

    def _recommend(self) -> Expected | None:
        """Return the candidate with the best prediction among those scored in full."""
        found = self._proposer.recommend(only_scored=True)
        if found is None:
            return None
        return replace(found, recipe=self._ended.same_model(found.recipe) or found.recipe)

    def _next_row(self, job_id: str) -> Job | None:
        while self._has_row():
            recipe = self._rows.pop()
            job = self._due.job(recipe, "confirm")
            if job.todo and self._is_busy(recipe, "confirm"):
                self._rows.put_back(recipe)
                return None
            if job.todo and not self.is_scoring(recipe, "confirm"):
                self._jobs[job_id] = OpenJob(job)
                return job
        return None

    def _has_row(self) -> bool:
        """Tell whether a row waits; the search's are chosen when its last candidate has ended."""
        is_searched = self._judge.is_ready and not self._jobs.searching
        if is_searched:
            self._budget.stop_clock()
        is_searched = is_searched and self._refining.is_over
        if is_searched and not (self._rows or self._rows.has_candidates):
            scored, top = self._searched, self.spec.search.confirm
            recommended = self._recommend()
            if recommended is not None:
                self._chosen = self._ended.scored.get(recommended.recipe.key)
                self.outcomes.recommend(recommended, self.id.value)
            rows = rows_to_confirm(self._candidates, scored, top)
            chosen = recommended.recipe if recommended else None
            compared = rows_to_compare(self._candidates, scored, chosen)
            refined = [r for key, r in self._refined.items() if key in self._ended.scored]
            if refined and refined[-1] == self._refining.refined[-1]:
                self._chosen = self._ended.scored[refined[-1].key]
            self._rows.add_candidates([*refined, *rows], chosen)
            self._looks.start([*refined, *rows], [*compared, *refined[-1:]])
        if self._rows.has_candidates and not self._rows:
            self._rows.extend(self._looks.next_rows())
        return bool(self._rows)

    def is_scoring(self, recipe: Recipe, split: SplitName) -> bool:
        """Tell whether a recipe that is no candidate is being scored on a split."""
        return self._jobs.is_scoring(recipe, split)

    def record(self, results: Sequence[tuple[str, BlockResult]]) -> None:
        """Record blocks by job id, candidates and rows in one transaction."""
        by_job = [(self._jobs[job_id], result) for job_id, result in results]
        refining = [(o.job, r) for o, r in by_job if o.job.purpose != "score"]
        if refining:
            self.scored_items += self._refining.record(refining)
        by_job = [(o, r) for o, r in by_job if o.job.purpose == "score"]
        scored_blocks = [
            Block(
                recipe=open_job.job.recipe,
                split=open_job.job.split,
                number=result.block,
                outcomes=result.outcomes,
                evaluate_seconds=result.evaluate_seconds,
            )
            for open_job, result in by_job
        ]
        spent = {"materialize": sum(result.materialize_seconds for _, result in by_job)}
        spent |= {
            "repeated": self._repeated,
            SEARCHING + self.id.value: self._budget.take_seconds(),
        }
        self.outcomes.record(scored_blocks, spent)
        self._repeated = 0
        for open_job, result in by_job:
            items = sum(len(outcome.scores) for outcome in result.outcomes.values())
            open_job.materialize_seconds += result.materialize_seconds
            open_job.items += items
            self.scored_items += items
            if open_job.trial and not self._is_refined(open_job.job.recipe):
                self._budget.add(items, result.materialize_seconds + result.evaluate_seconds)

    def finish(self, job_id: str, error: str | None = None) -> None:
        """Close a job: end its trial with the score of what is recorded, or with an error.

        A candidate whose blocks up to a look are scored waits for more, or is stopped.
        """
        recipe, trial = self._jobs[job_id].job.recipe, self._jobs[job_id].trial
        is_looked_at = trial and not error and self._due.has_looks and not self._is_refined(recipe)
        if trial and is_looked_at and self._look(job_id, recipe, trial):
            return
        open_job = self._jobs.pop(job_id)
        if open_job.job.purpose != "score":
            if error:
                self._refining.fail(error)
            return
        if trial is None:
            if error:
                what = "confirmed" if open_job.job.split == "confirm" else "scored"
                self.failure = f"{recipe} could not be {what}: {error}"
            elif open_job.job.split == "search":
                self._take_references()
            return
        scored = None if error else self._score(recipe)
        if scored is not None and not all(map(math.isfinite, scored.objectives)):
            scored, error = None, "its score is not a finite number"
        seconds = open_job.materialize_seconds
        if scored is None:
            error = error or "not every item was scored"
            stored = self._database.fail(trial.trial_id, error, seconds)
        else:
            stored = self._database.complete(trial.trial_id, scored.objectives, seconds)
        is_of_search = scored is not None and not self._is_refined(recipe)
        if is_of_search:
            known = self._known.read(recipe, scored)
            # its rounds were told at the last look
            self._proposer.report(trial.sampled, known._replace(rounds=None))
        self._proposer.tell(trial.sampled, scored.objectives if scored and is_of_search else None)
        self._ended.add(stored, recipe, scored)
        self._twins.tell_waiting(open_job)
        self._failed_in_a_row = 0 if scored else self._failed_in_a_row + 1
        if self._failed_in_a_row >= MAX_FAILED:
            self.failure = f"{MAX_FAILED} candidates in a row failed, the last one: {error}"

    def _look(self, job_id: str, recipe: Recipe, trial: CandidateTrial) -> bool:
        """Stop a candidate that is beaten, or have it wait for more blocks; True if either."""
        known = self._known.read(recipe)
        self._proposer.report(trial.sampled, known)
        scores = known.rounds
        done = len(self.outcomes.done_blocks(recipe, "search"))
        if done == len(self.blocks["search"]):
            return False
        if scores is None or not self._proposer.is_beaten(trial.sampled):
            self._jobs.wait(job_id)
            return True
        open_job = self._jobs.pop(job_id)
        seconds = open_job.materialize_seconds
        score = self._judge.partial(self.outcomes.block_results(recipe, "search").values())
        stored = self._database.prune(trial.trial_id, score, open_job.items, seconds)
        self._proposer.stop(trial.sampled)
        self._ended.add(stored, recipe, None)
        self._twins.tell_waiting(open_job)
        self._failed_in_a_row = 0
        return True

    @cached_property
    def _labels(self) -> Mapping[str, Values]:
        return self.outcomes.labels("search")

    def _score(self, recipe: Recipe) -> Scored | None:
        scored = self.outcomes.scored_one("search", recipe, self._labels)
        return self._judge.judged(scored) if scored is not None else None

    def job_lost(self, job_id: str) -> None:
        """Keep a job whose worker died for another worker; too many deaths fail its candidate."""
        deaths = self._jobs.orphan(job_id)
        if deaths > MAX_WORKER_DEATHS:
            self.finish(job_id, f"its worker died {deaths} times")

    def confirm_references(self, recipes: Sequence[Recipe]) -> None:
        """Confirm base and experts that another study has released."""
        self._rows.add_references(recipes)

    def release(self) -> list[Recipe]:
        """Drop jobs that wait; return the base and expert rows still to confirm."""
        return self._rows.release(self._jobs.drop_waiting())

    def stop(self, reason: str) -> None:
        """End the search for a reason that is no candidate's fault; the next run resumes it."""
        self.failure = reason
