"""A driver without workers: scores by a formula, and can stop at any block as a kill would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna

from cabs_search.kinds.base import Outcome
from cabs_search.record.folder import StudyId
from cabs_search.record.outcomes import Outcomes
from cabs_search.scoring.forward import ENTROPY, TEMPERATURES
from cabs_search.search.jobs import BlockResult, Finished, Job
from cabs_search.search.study import Study, open_database
from cabs_search.spec.study import Spec

TENSORS = ("encoder.layer.0.weight", "encoder.layer.1.weight", "embeddings.weight")


class Bench:
    """A driver that scores by a formula and can stop at any block as a kill would."""

    def __init__(self, spec: Spec, folder: Path, items: Any, weights: Any = None) -> None:
        self.spec, self.folder, self.items = spec, folder, items
        self.outcomes = Outcomes(folder / "outcomes", spec.tasks)
        self.outcomes.bind(spec, items, weights or {"base": "b"})
        self.finished: list[Finished] = []
        self.scored: list[tuple[str, str, int]] = []
        self.evaluated: list[tuple[str, str, int]] = []
        database = open_database(spec, folder, StudyId(self.outcomes.study_id()))
        self.study = Study(
            spec, database, items, self.outcomes, on_finished=self.finished.append, tensors=TENSORS
        )

    def result(self, job: Job, block: int) -> BlockResult:
        if job.purpose != "score":
            return self.evaluation(job, block)
        self.scored.append((job.recipe.key, job.split, block))
        quality = 1 - min(1.0, sum(abs(v - 0.8) for v in job.recipe.lambda_by_name.values()) / 3)
        outcomes = {}
        for task, rows in self.study.blocks[job.split][block].items():
            draws = np.random.default_rng(list(rows)).random(len(rows))
            scores = (draws < quality).astype(np.float32)
            labels = self.items[job.split][task].labels[rows]
            outcomes[task] = Outcome(scores, 1 - scores, np.where(scores > 0, labels, labels + 1))
        return BlockResult(
            block=block, outcomes=outcomes, materialize_seconds=0.1, evaluate_seconds=0.2
        )

    def evaluation(self, job: Job, block: int) -> BlockResult:
        """Evaluate squares of the distance to the best λ, 0.6 and 0.2 more for each layer."""
        self.evaluated.append((job.recipe.key, job.purpose, block))
        best = np.array(
            [[0.6 + 0.2 * layer for layer in range(len(TENSORS))] for _ in self.spec.experts]
        )
        lambdas = np.array(
            [[job.recipe.lambda_of(e, t) for t in TENSORS] for e in self.spec.experts]
        )
        outcomes, gradients, sums = {}, {}, {}
        for task, rows in self.study.blocks["search"][block].items():
            ease = np.random.default_rng(list(rows)).normal(scale=0.01, size=(len(rows), 1, 1))
            away = lambdas - best - ease
            losses = (away**2).sum(axis=(1, 2)).astype(np.float32)
            scores, labels = np.exp(-losses), self.items["search"][task].labels[rows]
            outcomes[task] = Outcome(scores, losses, labels)
            gradients[task] = 2 * away.sum(axis=0).astype(np.float32)
            if job.purpose == "temperature":  # the losses do not depend on it
                sums[task] = np.full(len(TEMPERATURES), losses.sum())
                sums[task][TEMPERATURES.index(2.0)] -= 1
                del outcomes[task]
            else:
                own = {1.0} if self.spec.search.objective == "awa" else {2.0, ENTROPY}
                assert job.temperatures[task] in own
        return BlockResult(
            block=block,
            outcomes=outcomes,
            materialize_seconds=0.1,
            evaluate_seconds=0.2,
            gradients=gradients if job.purpose == "gradient" else None,
            by_temperature=sums or None,
        )

    def run(self, blocks: int | None = None, fail: str | None = None) -> int:
        """Score up to a number of blocks, two jobs at a time; return how many were left."""
        live: dict[str, tuple[Job, list[int]]] = {}
        count, left = 0, 10**9 if blocks is None else blocks
        while left:
            while len(live) < 2 and (job := self.study.next_job(str(count))):
                live[str(count)] = (job, list(job.todo))
                count += 1
            if not live:
                assert self.study.is_finished
                break
            name = sorted(live)[count % len(live)]
            job, todo = live[name]
            if fail and job.split == "search":
                del live[name]
                self.study.finish(name, fail)
                continue
            self.study.record([(name, self.result(job, todo.pop(0)))])
            left -= 1
            if not todo:
                del live[name]
                self.study.finish(name)
        return left

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        storage = f"sqlite:///{self.folder / 'study.db'}"
        return optuna.load_study(study_name=self.spec.name, storage=storage).get_trials()
