"""Several studies over one record, one after another, as one run of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from cabs_search.merging.recipe import Recipe
from cabs_search.record.outcomes import Outcomes, Scored
from cabs_search.scoring.batches import blocks
from cabs_search.search.candidates import ranked
from cabs_search.search.jobs import BlockResult, Job
from cabs_search.search.study import Study
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items, SplitName


class Studies:
    """What the driver sees of one study, for several; one that fails does not end the others."""

    def __init__(
        self,
        spec: Spec,
        items: Mapping[SplitName, Mapping[str, Items]],
        outcomes: Outcomes,
        makers: Mapping[str, tuple[int, Callable[[], Study]]],
        on_end: Callable[[str, Study], object],
    ) -> None:
        """Take over studies that are not opened yet.

        Args:
            spec: what the studies have in common: models, tasks, workers.
            items: by split and task.
            outcomes: the record they share.
            makers: each study's budget, and what opens it and takes it up, by its name.
            on_end: told a study's name when it has ended.

        """
        self.spec = spec
        self.blocks = {
            split: blocks(by_task, spec.search.block) for split, by_task in items.items()
        }
        self.budget = sum(budget for budget, _ in makers.values())
        self.failure: str | None = None
        self._makers = {name: make for name, (_, make) in makers.items()}
        self._studies: dict[str, Study] = {}
        self._ended: set[str] = set()
        self._on_end, self._outcomes = on_end, outcomes
        self._unopened = {name: budget for name, (budget, _) in makers.items()}
        self._jobs: dict[str, Study] = {}

    def _study(self, name: str) -> Study:
        if name not in self._studies:
            self._studies[name] = self._makers[name]()
            del self._unopened[name]
        return self._studies[name]

    @property
    def complete(self) -> bool:
        """Whether every study has ended."""
        return len(self._ended) == len(self._makers)

    @property
    def phase(self) -> str:
        """Which study workers are at."""
        return next((name for name in self._makers if name not in self._ended), "done")

    @property
    def done(self) -> int:
        """Candidates that have ended."""
        return sum(min(study.done, study.budget) for study in self._studies.values())

    @property
    def best(self) -> Scored | None:
        """The best candidate so far, of any study."""
        return next(
            iter(ranked(s.best for s in self._studies.values() if s.best is not None)), None
        )

    @property
    def scored_items(self) -> int:
        """Items scored in this run."""
        return sum(study.scored_items for study in self._studies.values())

    @property
    def left(self) -> int:
        """Jobs that are not given yet, as far as they are known."""
        at_work = sum(
            study.left for name, study in self._studies.items() if name not in self._ended
        )
        return at_work + sum(self._unopened.values())

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within this the databases stay open; they are closed behind it."""
        with self._outcomes.kept_open():
            try:
                yield
            finally:
                for study in self._studies.values():
                    study.close()

    def next_job(self, job_id: str) -> Job | Literal["finished"] | None:
        """The first study's next job, or the next one's while the first can only wait."""
        if self.failure:
            return "finished"
        for name in self._makers:
            if name in self._ended:
                continue
            study = self._study(name)
            job = study.next_job(job_id)
            if isinstance(job, Job):
                self._jobs[job_id] = study
                return job
            if job == "finished":
                self._ended.add(name)
                self._on_end(name, study)
                self._hand_over(study)
        return "finished" if self.complete else None

    def _hand_over(self, study: Study) -> None:
        """Have another study confirm what is everybody's, where one failed before."""
        rows = study.give_up()
        if left := [name for name in self._makers if name not in self._ended]:
            self._study(left[0]).singles.extend(rows)

    def is_confirming(self, recipe: Recipe) -> bool:
        """Whether some study is confirming a recipe now."""
        return any(study.is_confirming(recipe) for study in self._studies.values())

    def record(self, results: Sequence[tuple[str, BlockResult]]) -> None:
        """Keep blocks' outcomes, each by its job's id; those of a study in one transaction."""
        by_study: dict[int, list[tuple[str, BlockResult]]] = {}
        for job_id, result in results:
            by_study.setdefault(id(self._jobs[job_id]), []).append((job_id, result))
        for found in by_study.values():
            self._jobs[found[0][0]].record(found)

    def finish(self, job_id: str, error: str | None = None) -> None:
        """End a job."""
        self._jobs.pop(job_id).finish(job_id, error)

    def died(self, job_id: str) -> None:
        """Take note that a job's worker died."""
        study = self._jobs.pop(job_id)
        study.died(job_id)
        if any(self._studies.get(name) is study for name in self._ended):
            self._hand_over(study)

    def stop(self, reason: str) -> None:
        """End the search for a reason that is no candidate's; the next run takes up what is at
        work.
        """
        self.failure = reason
