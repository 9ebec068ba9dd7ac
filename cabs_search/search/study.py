"""The search of one study: gives out jobs, takes their results, says when all is done.

The Optuna database is the only state of the search, the record of outcomes the only state of
scoring. A driver may be killed at any moment: the next one resumes the trials that were running
and scores only blocks that are not recorded. A trial is COMPLETE only when every item is scored;
its score is computed from the record.

A study has three stages, each with a file: candidates, refining, rows to confirm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Block, Scored
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import SEARCHING, Outcomes
from cabs_search.record.progress_file import Share
from cabs_search.scoring.batches import blocks
from cabs_search.search import space
from cabs_search.search.candidate_stage import CandidateStage
from cabs_search.search.candidates import ensemble_recipes, ranked, reference_recipes
from cabs_search.search.confirm_looks import ConfirmLooks
from cabs_search.search.confirm_stage import ConfirmStage
from cabs_search.search.due import DueBlocks
from cabs_search.search.ended import OnFinished
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.objectives.registry import objective_identity, objective_of
from cabs_search.search.open_jobs import MAX_WORKER_DEATHS, OpenJob, OpenJobs
from cabs_search.search.refine.stage import RefineStage
from cabs_search.search.storage import StudyDatabase
from cabs_search.spec.study import SURFACE, Spec
from cabs_search.tasks.items import Items, SplitName

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
        self.spec, self.outcomes = spec, outcomes
        size = spec.search.block
        self.blocks = {split: blocks(by_task, size) for split, by_task in items.items()}
        self.scored_items, self.workers = 0, 1
        self._database, self._is_busy = database, is_busy
        self._jobs = OpenJobs()
        alone = reference_recipes(spec.experts) | ensemble_recipes(spec)
        references = list(alone.values()) if confirms_references else []
        looks = ConfirmLooks(spec, self.blocks["confirm"], outcomes, references)
        pruner = spec.search.pruner_used
        self._due = DueBlocks(
            self.blocks,
            outcomes,
            looks.due,
            has_looks=pruner is not None,
            rotates=pruner == SURFACE,
        )
        self._refining = RefineStage(spec, tensors, self.blocks["search"], outcomes, self.id.value)
        self._searching = CandidateStage(
            spec,
            database,
            outcomes,
            self._jobs,
            self._due,
            self._refining.refined_ever,
            on_finished,
        )
        self._confirming = ConfirmStage(
            spec, self._searching.candidates, outcomes, looks, references, self.id.value
        )
        self._stopped: str | None = None

    @property
    def id(self) -> StudyId:
        """A name that no other study has."""
        return self._database.id

    @property
    def failure(self) -> str | None:
        """The reason why the search cannot go on."""
        return self._stopped or self._searching.failure

    @property
    def exhausted(self) -> bool:
        """True once the sampler proposes nothing new."""
        return self._searching.exhausted

    @property
    def converged(self) -> bool:
        """True if the search ended before its budget, as it could gain less than the noise."""
        return self._searching.convergence.is_reached

    @property
    def budget(self) -> int:
        """Candidates to score on the search split, as far as they can be counted."""
        return self.done + self._jobs.searching + self._searching.left()

    @property
    def shares(self) -> list[Share]:
        """Parts of all limits of the search that are spent."""
        return self._searching.budget.shares(self.done)

    @property
    def stage_share(self) -> Share | None:
        """Items of the stage after the search that are spent; None while candidates are scored."""
        if self._is_confirming:
            return self._confirming.share
        return self._refining.share if self._is_refining else None

    @property
    def _is_confirming(self) -> bool:
        """True once rows are all that is left; after refining, base and experts may still be."""
        is_refined = self._refining.has_begun and not self._is_refining
        return self._confirming.has_candidates or is_refined

    @property
    def _is_refining(self) -> bool:
        """True while λ are refined, and until what was found is scored."""
        return self._refining.has_begun and (
            not self._refining.is_over or self._searching.is_refining
        )

    @property
    def done(self) -> int:
        """Candidates that have ended, of the budget."""
        return self._searching.done

    @property
    def best(self) -> Scored | None:
        """The best candidate so far, without its outcomes."""
        return self._searching.ended.best

    @property
    def chosen(self) -> Scored | None:
        """The recommended candidate, else the best so far."""
        return self._confirming.chosen or self.best

    @property
    def left(self) -> int:
        """Jobs not given out yet, as far as they can be counted."""
        candidates = 0 if self.exhausted else self._searching.left()
        return candidates + self._jobs.waiting + self._refining.waiting + len(self._confirming)

    @property
    def phase(self) -> str:
        """The stage of the work, for the progress bar."""
        if self._is_confirming:
            return "confirm"
        return self._refining.phase if self._is_refining else "search"

    @property
    def is_finished(self) -> bool:
        """True if there will be no more jobs: all is done, or the search cannot go on."""
        return self.failure is not None or (self._confirming.are_over and not self._jobs)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep the databases open inside the context; close them after it."""
        with self.outcomes.kept_open(), closing(self):
            yield

    def close(self) -> None:
        """Close the search's database."""
        self._database.close()

    # giving out jobs

    def next_job(self, job_id: str) -> Job | None:
        """Open a job that waits, a candidate, or a row to confirm, under an id of the caller's.

        Returns:
            None if there is nothing to do until another job ends, or nothing at all any more.

        """
        while not self.failure:
            open_job = self._open_next(job_id)
            if open_job is None:
                return None
            if open_job.job.todo and not open_job.error:
                return open_job.job
            self.finish(job_id)  # all of it is on record, or another part has failed
        return None

    def _open_next(self, job_id: str) -> OpenJob | None:
        open_job = self._next_waiting(job_id)
        if open_job is None:
            sources = (
                self._next_reference,
                self._next_candidate,
                self._next_evaluation,
                self._next_row,
            )
            open_job = next(filter(None, (source() for source in sources)), None)
        if open_job is None:
            return None
        self._jobs[job_id] = open_job
        if self._jobs.part(job_id) is None and (parts := self._parts(open_job)) > 1:
            self._jobs.cut(job_id, parts)
        return open_job

    def _next_waiting(self, job_id: str) -> OpenJob | None:
        waiting = self._jobs.reopen(job_id)
        if waiting is None:
            return None
        job, part = waiting.job, self._jobs.part(job_id)
        if job.purpose == "score":
            job = self._due.job(job.recipe, job.split)
        if part is not None:
            job = replace(job, todo=tuple(block for block in job.todo if block in part))
        waiting.job = replace(job, alone=self._jobs.killed_a_worker(job_id))
        return waiting

    def _parts(self, open_job: OpenJob) -> int:
        """Return the number of parts to cut a job into, so that no worker is idle near the end.

        A candidate that may be stopped is one worker's, and what other studies may score too.
        """
        job = open_job.job
        is_row = open_job.trial is None and self._confirming.is_candidate(job.recipe)
        is_whole = open_job.trial is not None and not self._due.is_raced(job.recipe)
        if job.alone or not (is_row or is_whole):
            return 1
        jobs = len(self._jobs.whole) + len(self._confirming)
        if is_whole:
            jobs += self._searching.next_to_open
        return min(len(job.todo), -(-self.workers // jobs))

    def _next_reference(self) -> OpenJob | None:
        """Open a job of what the objective compares candidates with."""
        recipe = self._searching.judge.next_reference()
        if recipe is not None and self._is_busy(recipe, "search"):
            self._searching.judge.put_back(recipe)
            return None
        return OpenJob(self._due.job(recipe, "search")) if recipe is not None else None

    def _next_candidate(self) -> OpenJob | None:
        return None if self._confirming.has_candidates else self._searching.open_next()

    def _next_evaluation(self) -> OpenJob | None:
        """Open an evaluation of the refinement, after the last candidate of the search.

        What was refined is then scored as candidates beyond the budget.
        """
        is_searched = self._searching.judge.is_ready and not self._jobs.searching
        if self._refining.is_over or not is_searched:
            return None
        self._searching.budget.stop_clock()
        if not self._refining.has_begun:
            recommended = self._searching.recommend()
            found = ranked(self._searching.searched.values())
            best = recommended.recipe if recommended else found[0].recipe if found else None
            judge = self._searching.judge
            self._refining.begin(best, len(found), judge.weights, judge.at_one)
        if job := self._refining.next_job():
            return OpenJob(job)
        if not self._refining.is_over:
            return None
        self._searching.propose_only(self._refining.refined)
        return self._searching.open_next()

    def _next_row(self) -> OpenJob | None:
        """Open a row that is to be confirmed."""
        while recipe := self._next_to_confirm():
            job = self._due.job(recipe, "confirm")
            if job.todo and self._is_busy(recipe, "confirm"):
                self._confirming.put_back(recipe)
                return None
            if job.todo and not self.is_scoring(recipe, "confirm"):
                return OpenJob(job)
        return None

    def _next_to_confirm(self) -> Recipe | None:
        """Return the next row; the search's are chosen when its last candidate has ended."""
        searching, confirming = self._searching, self._confirming
        is_searched = searching.judge.is_ready and not self._jobs.searching
        if is_searched:
            searching.budget.stop_clock()
        has_rows = len(confirming) > 0 or confirming.has_candidates
        if is_searched and self._refining.is_over and not has_rows:
            searching.queue_only([])
            scored = searching.ended.scored
            refined = [scored.get(recipe.key) for recipe in self._refining.refined]
            confirming.choose(searching.searched, searching.recommend(), refined)
        return confirming.next_row()

    def is_scoring(self, recipe: Recipe, split: SplitName) -> bool:
        """Tell whether a recipe that is no candidate is being scored on a split."""
        return self._jobs.is_scoring(recipe, split)

    # taking results

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
            "repeated": self._searching.repeated,
            SEARCHING + self.id.value: self._searching.budget.take_seconds(),
        }
        self.outcomes.record(scored_blocks, spent)
        self._searching.repeated = 0
        for open_job, result in by_job:
            items = sum(len(outcome.scores) for outcome in result.outcomes.values())
            open_job.materialize_seconds += result.materialize_seconds
            self.scored_items += items
            seconds = result.materialize_seconds + result.evaluate_seconds
            self._searching.count(open_job, items, seconds)

    def finish(self, job_id: str, error: str | None = None) -> None:
        """Close a job, or a part of it: the last ends its trial with the score of what is recorded,
        or with an error.

        A candidate whose blocks up to a look are scored waits for more, or is stopped.
        """
        open_job = self._jobs.close(job_id, error)
        if open_job is None or open_job.is_dropped:
            return  # other workers have parts of it, or nobody
        job, error = open_job.job, open_job.error
        look = "ended" if error else self._searching.look(open_job)
        if look == "goes on":
            self._jobs[job_id] = open_job
            self._jobs.wait(job_id)
            return
        if look == "beaten":
            self._searching.stop(open_job)
        elif open_job.trial:
            self._searching.end(open_job, error)
        elif error and job.purpose != "score":
            self._refining.fail(error)
        elif error:
            what = "confirmed" if job.split == "confirm" else "scored"
            self.stop(f"{job.recipe} could not be {what}: {error}")
        elif job.purpose == "score" and job.split == "search":
            self._searching.take_references()

    def put_back(self, job_id: str) -> None:
        """Keep a job for another worker, as if it had not been given out."""
        self._jobs.wait(job_id)
        self._searching.budget.stop_clock()  # the next candidate that is opened starts it

    def job_lost(self, job_id: str) -> None:
        """Keep a job whose worker died for another worker; too many deaths fail its candidate."""
        deaths = self._jobs.orphan(job_id)
        if deaths > MAX_WORKER_DEATHS:
            self.finish(job_id, f"its worker died {deaths} times")

    def confirm_references(self, recipes: Sequence[Recipe]) -> None:
        """Confirm base and experts that another study has released."""
        self._confirming.add_references(recipes)

    def release(self) -> list[Recipe]:
        """Drop jobs that wait; return the base and expert rows still to confirm."""
        return self._confirming.release(self._jobs.drop_waiting())

    def stop(self, reason: str) -> None:
        """End the search for a reason that is no candidate's fault; the next run resumes it."""
        self._stopped = reason
