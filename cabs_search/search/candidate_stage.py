"""The stage of a search that proposes candidates, scores them, and says which one it recommends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import Literal, TypeAlias

from optuna.trial import FrozenTrial, TrialState

from cabs_search.merging.recipe import Recipe
from cabs_search.metrics.base import Values
from cabs_search.record.entries import Expected, Scored
from cabs_search.record.outcomes import SEARCHING, Outcomes
from cabs_search.search.budget import RECOMMENDED, Budget
from cabs_search.search.candidates import Candidates
from cabs_search.search.convergence import Convergence
from cabs_search.search.due import DueBlocks
from cabs_search.search.ended import EndedCandidates, OnFinished
from cabs_search.search.judge import Judge
from cabs_search.search.known import NOTHING, KnownReader
from cabs_search.search.open_jobs import CandidateTrial, OpenJob, OpenJobs
from cabs_search.search.proposals import Proposal, Proposer
from cabs_search.search.pruners.registry import find_pruner
from cabs_search.search.storage import (
    StudyDatabase,
    has_ended_by_itself,
    in_order_of_end,
    is_recommended,
    is_repeat,
    recipe_of,
)
from cabs_search.search.twins import Twins
from cabs_search.spec.study import Spec

MAX_DUPLICATES = 200
"""Duplicate proposals in a row after which the space counts as exhausted."""
MAX_FAILED = 3
"""Candidates in a row that fail, after which the search gives up."""
Look: TypeAlias = Literal["goes on", "beaten", "ended"]
"""Result of a look at a candidate: more of its blocks are to be scored, or none."""


class CandidateStage:
    """Opens candidates, looks at them between their blocks, and ends them."""

    def __init__(
        self,
        spec: Spec,
        database: StudyDatabase,
        outcomes: Outcomes,
        jobs: OpenJobs,
        due: DueBlocks,
        refined: Set[str],
        on_finished: OnFinished,
    ) -> None:
        """Resume what is in ``database``: ended candidates count, interrupted ones come first.

        Args:
            spec: what to search.
            database: the study's trials.
            outcomes: the record.
            jobs: the study's open jobs.
            due: tells which blocks are to be scored.
            refined: keys of all recipes that were ever refined; refining adds to it. They have
                trials, and are none of the search's candidates.
            on_finished: told each candidate that ends, those of earlier runs first.

        Raises:
            ValueError: the objective cannot compare with what is on record.

        """
        trials = database.trials()
        self._database, self._outcomes, self._jobs, self._due = database, outcomes, jobs, due
        self._refined = refined
        self.candidates = Candidates.of(spec)
        seconds = outcomes.amount(SEARCHING + database.id.value)
        self.budget = Budget(
            spec.search, sum(due.items), spec.workers, seconds, stops_at=due.stops_at
        )
        self.judge = Judge(spec, outcomes)
        name, pruner = spec.search.pruner_used, None
        if name is not None:
            pruner = find_pruner(name)(self.budget.most_candidates(min(due.items)))
        self._proposer = Proposer(
            self.candidates, spec.search.sampler_used, len(trials), pruner, len(self.judge.names)
        )
        self._proposer.weigh(self.judge.weights)
        self._known = KnownReader(
            outcomes,
            spec.tasks,
            due.blocks["search"],
            self.judge,
            reads_rounds=pruner is not None,
            reads_answers=self._proposer.learns_from_items,
        )
        self.ended = EndedCandidates(on_finished)
        self._twins = Twins(self.ended, jobs, self._known, self._proposer, database)
        due.compared |= {recipe.key for recipe in self.candidates.baseline_recipes}
        due.compared |= self.judge.references
        self.convergence = Convergence(spec, outcomes, database, self._proposer)
        self.exhausted = self.convergence.is_reached
        """True once the sampler proposes nothing new."""
        self.failure: str | None = None
        """The reason why the search cannot go on."""
        self.is_refining = False
        """True once what was refined is scored, and nothing else is proposed."""
        self.repeated = 0
        """Duplicate proposals that are not recorded yet."""
        self._failed_in_a_row = 0
        self._has_opened = False
        """True once this run has opened a candidate."""
        self._resume(trials)

    def _resume(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in the trials of earlier runs; queue those that were interrupted, and baselines."""
        queue: dict[str, tuple[Recipe, int | None]] = {}
        for trial in in_order_of_end([*trials, *self._database.repeats()]):
            recipe = recipe_of(trial)
            if is_repeat(trial):
                self._proposer.add(trial)
                continue
            if recipe and is_recommended(trial):
                self._due.whole.add(recipe.key)
            if not trial.state.is_finished():
                trial_id = self._database.trial_id(trial)
                is_known = recipe is None or recipe.key in queue or recipe.key in self.ended
                if recipe and is_recommended(trial) and self.ended.is_stopped(recipe.key):
                    is_known = False  # it is being scored to the end
                if recipe and not is_known and "error" not in trial.user_attrs:
                    queue[recipe.key] = (recipe, trial_id)
                    continue
                # a driver was killed after it wrote the error and before it ended the trial
                trial = self._database.discard(trial_id)
            self._take_in(trial, recipe)
        first = (*self.judge.first_candidates, *self.candidates.baseline_recipes)
        for recipe in (*first, *self.candidates.starts):
            is_whole = recipe.key in self.ended and not self.ended.is_stopped(recipe.key)
            if recipe.key not in queue and not is_whole:
                queue[recipe.key] = (recipe, None)
        for recipe, known_trial in queue.values():
            self._proposer.enqueue(recipe, known_trial)

    def _take_in(self, trial: FrozenTrial, recipe: Recipe | None) -> None:
        """Take in a trial that has ended in an earlier run."""
        is_complete = trial.state == TrialState.COMPLETE
        scored = self._score(recipe) if recipe and is_complete else None
        is_refined = recipe is not None and self._is_refined(recipe)
        if not is_refined:
            self._proposer.add(trial, self._known.read(recipe, scored) if recipe else NOTHING)
        if recipe and has_ended_by_itself(trial):
            is_counted = not is_refined and recipe.key not in self.ended
            self.budget.items += self._due.recorded(recipe) if is_counted else 0
            self.ended.add(trial, recipe, scored)

    @property
    def searched(self) -> dict[str, Scored]:
        """Candidates of the search that have a score, without those that were refined."""
        scored = self.ended.scored
        return {key: s for key, s in scored.items() if key not in self._refined}

    @property
    def done(self) -> int:
        """Candidates that have ended, of the budget."""
        return self.ended.count(without=self._refined)

    def _is_refined(self, recipe: Recipe) -> bool:
        return recipe.key in self._refined

    def left(self, at_a_time: int | None = None) -> int:
        """Count the candidates that may still be started; arguments as of ``Budget.left``."""
        started = self.done + self._jobs.searching
        open_jobs = [open_job for open_job in self._jobs.whole if open_job.trial]
        owed = sum(max(0, self._due.most(o.job.recipe) - o.items) for o in open_jobs)
        return self.budget.left(started, owed, at_a_time=at_a_time)

    @property
    def next_to_open(self) -> int:
        """Candidates that can be opened before others have ended."""
        is_last = self.is_refining or self.exhausted or self._is_time_to_recommend()
        return self._proposer.queued if is_last else self.left()

    def take_references(self) -> None:
        """Judge by what candidates are compared with, once all of it is scored."""
        try:
            self.judge.update()
        except ValueError as error:
            self.failure = str(error)
        self._proposer.weigh(self.judge.weights)

    # opening candidates

    def open_next(self) -> OpenJob | None:
        """Open the next candidate; None if there is none, or others have to end first.

        Its job has nothing to do if all of its blocks are recorded, or those up to a look.
        """
        for repeated in range(MAX_DUPLICATES):
            if not self._has_room():
                return None
            is_last = self._is_time_to_recommend()
            if not (is_last or self.is_refining) and self.convergence.look():
                self.exhausted, is_last = True, self._is_time_to_recommend()
            if is_last and self._jobs.searching:
                return None  # they may change what is best
            if is_last:
                self._enqueue_recommended()
            # what was recommended may have failed, or be no candidate
            is_scored = bool(self.ended.scored) or not self.convergence.is_reached
            if self.exhausted and is_scored and not self._proposer.queued:
                return None
            proposal = self._propose_new()
            if proposal is not None:
                if is_last and not self.ended.scored:
                    self._due.whole.add(proposal.recipe.key)  # or nothing would have a score
                self.repeated += repeated
                self._twins.keep()
                self._has_opened = True
                return self._opened(proposal)
            if self._proposer.is_exhausted:
                break
        if self._has_opened:  # a run that finds nothing new writes nothing
            self._twins.keep()
        if self.exhausted:
            return None
        self.exhausted = True
        return self.open_next()  # what is recommended is still to be scored

    def _has_room(self) -> bool:
        """Tell whether one more candidate may be opened."""
        if self.failure or not self.judge.is_ready:
            return False
        if self.is_refining:
            return self._proposer.queued > 0
        self.budget.start_clock()
        return self.left() > 0 or self._lacks_a_score

    @property
    def _lacks_a_score(self) -> bool:
        """True if candidates were stopped and none has a score: one more is scored in full.

        How long a block takes is not known before: seconds may end at the first ones.
        """
        failed = len(self.ended.failed)
        is_stopped = self.done > failed and not self.ended.scored and failed < MAX_FAILED
        return self._proposer.learns_from_items and is_stopped and not self._jobs.searching

    def _propose_new(self) -> Proposal | None:
        """Return a proposal; None if it is a merged model that is known, or no candidate."""
        is_queued = self._proposer.queued > 0  # such as a baseline, which has a row of its own
        proposal = self._proposer.propose()
        if not is_queued and self._twins.is_repeated(proposal.recipe, proposal.trial):
            return None
        if self.judge.is_outsider(proposal.recipe):
            self._proposer.tell(proposal.trial, None)
            return None
        return proposal

    def _opened(self, proposal: Proposal) -> OpenJob:
        """Open a candidate; write its trial unless an earlier run has."""
        recipe, trial_id = proposal.recipe, proposal.trial_id
        if trial_id is None:
            is_whole = recipe.key in self._due.whole
            trial_id = self._database.add(proposal.trial, recipe, is_recommended=is_whole)
        if proposal.expected is not None:
            self._outcomes.expect(proposal.expected)
        job = self._due.job(recipe, "search")
        if self._due.is_at_look(recipe):
            # a driver may have been killed between a look's last block and the look
            job = replace(job, todo=())
        items = self._due.recorded(recipe)  # by an earlier run, or another study of the record
        is_counted = not self._is_refined(recipe) and recipe.key not in self.ended
        self.budget.items += items if is_counted else 0
        return OpenJob(job, CandidateTrial(proposal.trial, trial_id), items=items)

    # what is recommended

    def _is_time_to_recommend(self) -> bool:
        """Tell whether the rest of the budget is for what is recommended."""
        if self._proposer.queued or not self._proposer.learns_from_items:
            return False
        # one after another: the second may depend on the first
        return self.exhausted or self.left(at_a_time=1) <= RECOMMENDED

    def _enqueue_recommended(self) -> None:
        """Have the best prediction of the space scored in full, unless it is."""
        if self.convergence.has_recommended:
            return
        found = self._proposer.recommend()
        if found is None or self.judge.is_outsider(found.recipe):
            return
        same = self.ended.same_model(found.recipe)
        if same is None:
            self._outcomes.expect(found)
        if same is None or self.ended.is_stopped(same.key):
            recipe = same or found.recipe
            self._due.whole.add(recipe.key)
            self._proposer.enqueue(recipe)

    def recommend(self) -> Expected | None:
        """Return the candidate with the best prediction among those scored in full."""
        found = self._proposer.recommend(only_scored=True)
        if found is None:
            return None
        return replace(found, recipe=self.ended.same_model(found.recipe) or found.recipe)

    def propose_only(self, recipes: Sequence[Recipe]) -> None:
        """Score what was refined, in full and beyond the budget, and propose nothing else."""
        self.is_refining = bool(recipes)
        self._due.whole |= {recipe.key for recipe in recipes}
        done = self.ended.scored.keys() | self.ended.failed
        self.queue_only([recipe for recipe in recipes if recipe.key not in done])

    def queue_only(self, recipes: Sequence[Recipe]) -> None:
        """Drop what else waits: it was interrupted, and the budget, now lower, is spent."""
        for trial_id in self._proposer.queue_only(recipes):
            self._database.discard(trial_id)

    # ending candidates

    def count(self, open_job: OpenJob, items: int, seconds: float) -> None:
        """Count items of a job that were scored, which took a worker so many seconds."""
        open_job.items += items
        if open_job.trial and not self._is_refined(open_job.job.recipe):
            self.budget.add(items, seconds)

    def look(self, open_job: OpenJob) -> Look:
        """Look at a candidate whose blocks up to here are scored."""
        recipe, trial = open_job.job.recipe, open_job.trial
        if trial is None or not self._due.has_looks or self._is_refined(recipe):
            return "ended"
        known = self._known.read(recipe)
        self._proposer.report(trial.sampled, known)
        done = len(self._outcomes.done_blocks(recipe, "search"))
        if done == len(self._due.items):
            return "ended"
        try:
            is_beaten = known.rounds is not None and self._proposer.is_beaten(trial.sampled)
        except ValueError as error:
            self.failure = str(error)
            return "goes on"
        return "beaten" if is_beaten else "goes on"

    def stop(self, open_job: OpenJob) -> None:
        """End the trial of a candidate that is beaten, with the score of what is recorded."""
        assert open_job.trial is not None
        recipe, trial = open_job.job.recipe, open_job.trial
        score = self.judge.partial(self._outcomes.block_results(recipe, "search").values())
        stored = self._database.prune(
            trial.trial_id, score, open_job.items, open_job.materialize_seconds
        )
        self._proposer.stop(trial.sampled)
        self.ended.add(stored, recipe, None)
        self._twins.tell_waiting(open_job)
        self._failed_in_a_row = 0

    def end(self, open_job: OpenJob, error: str | None) -> None:
        """End a candidate's trial with the score of all items, or with an error."""
        assert open_job.trial is not None
        recipe, trial = open_job.job.recipe, open_job.trial
        seconds = open_job.materialize_seconds
        scored = None if error else self._score(recipe)
        if scored is not None and not all(map(math.isfinite, scored.objectives)):
            scored, error = None, "its score is not a finite number"
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
        self.ended.add(stored, recipe, scored)
        self._twins.tell_waiting(open_job)
        self._failed_in_a_row = 0 if scored else self._failed_in_a_row + 1
        if self._failed_in_a_row >= MAX_FAILED:
            self.failure = f"{MAX_FAILED} candidates in a row failed, the last one: {error}"

    @cached_property
    def _labels(self) -> Mapping[str, Values]:
        return self._outcomes.labels("search")

    def _score(self, recipe: Recipe) -> Scored | None:
        scored = self._outcomes.scored_one("search", recipe, self._labels)
        return self.judge.judged(scored) if scored is not None else None
