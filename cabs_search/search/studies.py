"""Several studies over one record, searched one after another by the same workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Scored
from cabs_search.record.outcomes import Outcomes
from cabs_search.record.progress_file import Share
from cabs_search.scoring.batches import blocks
from cabs_search.search.budget import Budget
from cabs_search.search.candidates import ranked
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.study import IsBusy, Study
from cabs_search.spec.study import Search, Spec
from cabs_search.tasks.items import Items, SplitName


@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """A study that is opened when workers reach it."""

    search: Search
    open: Callable[[IsBusy], Study]


class Studies:
    """Several studies as one ``JobSource``; one that fails does not end the others."""

    def __init__(
        self,
        spec: Spec,
        items: Mapping[SplitName, Mapping[str, Items]],
        outcomes: Outcomes,
        planned: Mapping[str, PlannedStudy],
        on_end: Callable[[str, Study], object],
    ) -> None:
        """Plan studies; none is opened yet.

        Args:
            spec: what the studies have in common: models, tasks, workers.
            items: by split and task.
            outcomes: the record they share.
            planned: by name, in the order of work.
            on_end: told a study and its name when it has ended.

        """
        self.spec = spec
        size = spec.search.block
        self.blocks = {split: blocks(by_task, size) for split, by_task in items.items()}
        items_each = sum(map(len, items["search"].values()))
        self._budgets = {
            name: Budget(plan.search, items_each, spec.workers) for name, plan in planned.items()
        }
        self.failure: str | None = None
        self.workers = 1
        self._planned, self._outcomes, self._on_end = planned, outcomes, on_end
        self._opened: dict[str, Study] = {}
        self._ended: set[str] = set()
        self._study_of_job: dict[str, str] = {}

    def _study(self, name: str) -> Study:
        if name not in self._opened:
            self._opened[name] = self._planned[name].open(self.is_scoring)
        self._opened[name].workers = self.workers
        return self._opened[name]

    @property
    def _unended(self) -> list[str]:
        return [name for name in self._planned if name not in self._ended]

    @property
    def budget(self) -> int:
        """Candidates to score on the search split, as far as they can be counted."""
        opened = sum(study.budget for study in self._opened.values())
        return opened + sum(self._budgets[name].left(0, 0) for name in self._unopened)

    @property
    def shares(self) -> list[Share]:
        """Parts of all limits of the searches together that are spent."""
        shares = [share for study in self._opened.values() for share in study.shares]
        shares += [share for name in self._unopened for share in self._budgets[name].shares(0)]
        units = {share.unit: [one for one in shares if one.unit == share.unit] for share in shares}
        return [
            Share(unit, sum(one.spent for one in same), sum(one.limit for one in same))
            for unit, same in units.items()
        ]

    @property
    def stage_share(self) -> Share | None:
        """None: studies are at different stages."""
        return None

    @property
    def _unopened(self) -> list[str]:
        return [name for name in self._planned if name not in self._opened]

    @property
    def done(self) -> int:
        """Candidates that have ended."""
        return sum(study.done for study in self._opened.values())

    @property
    def best(self) -> Scored | None:
        """The best candidate so far, of any study."""
        best_of_each = [s.best for s in self._opened.values() if s.best is not None]
        return ranked(best_of_each)[0] if best_of_each else None

    @property
    def scored_items(self) -> int:
        """Items scored in this run."""
        return sum(study.scored_items for study in self._opened.values())

    @property
    def left(self) -> int:
        """Jobs not given out yet, as far as they can be counted."""
        return sum(
            self._opened[name].left if name in self._opened else self._budgets[name].left(0, 0)
            for name in self._unended
        )

    @property
    def phase(self) -> str:
        """The name of the study that workers are at."""
        return next(iter(self._unended), "done")

    @property
    def is_finished(self) -> bool:
        """True if there will be no more jobs: all is done, or the search cannot go on."""
        return self.failure is not None or not self._unended

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep the databases open inside the context; close them after it."""
        with self._outcomes.kept_open():
            try:
                yield
            finally:
                for study in self._opened.values():
                    study.close()

    def next_job(self, job_id: str) -> Job | None:
        """Open a job of the first study; of a later one while the first can only wait."""
        if self.failure:
            return None
        for name in self._unended:
            study = self._study(name)
            if job := study.next_job(job_id):
                self._study_of_job[job_id] = name
                return job
            if study.is_finished:
                self._ended.add(name)
                self._on_end(name, study)
                self._hand_over(study)
        return None

    def _hand_over(self, ended: Study) -> None:
        """Have the next study confirm base and experts, if the one that ended could not."""
        rows = ended.release()
        if rows and self._unended:
            self._study(self._unended[0]).confirm_references(rows)

    def is_scoring(self, recipe: Recipe, split: SplitName) -> bool:
        """Tell whether some study is scoring a recipe that is no candidate on a split."""
        return any(study.is_scoring(recipe, split) for study in self._opened.values())

    def record(self, results: Sequence[tuple[str, BlockResult]]) -> None:
        """Record blocks by job id; those of a study in one transaction."""
        by_study: dict[str, list[tuple[str, BlockResult]]] = {}
        for job_id, result in results:
            by_study.setdefault(self._study_of_job[job_id], []).append((job_id, result))
        for name, study_results in by_study.items():
            self._opened[name].record(study_results)

    def finish(self, job_id: str, error: str | None = None) -> None:
        """Close a job whose blocks are recorded, or that failed."""
        self._opened[self._study_of_job.pop(job_id)].finish(job_id, error)

    def put_back(self, job_id: str) -> None:
        """Keep a job for another worker, as if it had not been given out."""
        self._opened[self._study_of_job.pop(job_id)].put_back(job_id)

    def job_lost(self, job_id: str) -> None:
        """Keep a job whose worker died for another worker."""
        name = self._study_of_job.pop(job_id)
        self._opened[name].job_lost(job_id)
        if name in self._ended:
            self._hand_over(self._opened[name])

    def stop(self, reason: str) -> None:
        """End the search for a reason that is no candidate's fault; the next run resumes it."""
        self.failure = reason
