"""Messages between a search and its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cabs_search.kinds.base import Outcome
from cabs_search.kinds.generation import Sampling
from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Scored
from cabs_search.record.progress_file import Share
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Ints, SplitName

Purpose: TypeAlias = Literal["score", "temperature", "gradient", "losses"]
"""Use of a job; all but ``score`` are evaluations of a refinement, no candidate's."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Blocks of items that one worker scores for one recipe."""

    recipe: Recipe
    split: SplitName
    todo: tuple[int, ...]
    """Blocks that are not recorded yet."""
    alone: bool = False
    """True if it must be a worker's only job, because a worker died over it."""
    purpose: Purpose = "score"
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Number that logits are divided by before the loss, or ``ENTROPY``, by task; 1 where none is
    given.
    """
    sampling: Sampling | None = None
    """Settings of a sampled run, by which tokens are drawn; None: the likeliest is taken."""


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """Outcomes of one block."""

    block: int
    outcomes: Mapping[str, Outcome]
    """Per-item outcomes by task."""
    materialize_seconds: float
    evaluate_seconds: float
    gradients: Mapping[str, npt.NDArray[np.float32]] | None = None
    """Gradients of the losses in λ by task, [experts, tensors], if the job asks for them."""
    by_temperature: Mapping[str, npt.NDArray[np.float32]] | None = None
    """Sums of the losses by task, [temperatures], if the job asks for them."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A candidate of the search that has ended."""

    number: int
    recipe: Recipe
    state: Literal["complete", "stopped", "failed"]
    scored: Scored | None
    """None unless it is complete."""
    items: int
    """Items that were scored."""
    partial_score: float | None
    """Mean of what was scored, of a stopped candidate."""
    materialize_seconds: float
    started: datetime
    ended: datetime
    error: str | None


class JobSource(Protocol):
    """One or several studies, as the cluster sees them."""

    spec: Spec
    """Models, tasks and workers."""
    workers: int
    """Workers that share the last jobs of a stage; whoever gives jobs to several sets it."""

    @property
    def failure(self) -> str | None:
        """The reason why the search cannot go on."""

    @property
    def blocks(self) -> Mapping[SplitName, list[dict[str, Ints]]]:
        """Rows by task of each block."""

    @property
    def budget(self) -> int:
        """Candidates to score on the search split, as far as they can be counted."""

    @property
    def shares(self) -> list[Share]:
        """Parts of all limits of the search that are spent."""

    @property
    def stage_share(self) -> Share | None:
        """Items of the stage after the search that are spent; None while candidates are scored."""

    @property
    def done(self) -> int:
        """Candidates that have ended."""

    @property
    def left(self) -> int:
        """Jobs not given out yet, as far as they can be counted."""

    @property
    def scored_items(self) -> int:
        """Items scored in this run."""

    @property
    def best(self) -> Scored | None:
        """The best candidate so far."""

    @property
    def phase(self) -> str:
        """The stage of the work, for the progress bar."""

    @property
    def is_finished(self) -> bool:
        """True if there will be no more jobs: all is done, or the search cannot go on."""

    def connected(self) -> AbstractContextManager[None]:
        """Keep the databases open inside the context; close them after it."""

    def next_job(self, job_id: str) -> Job | None:
        """Open a job under an id of the caller's; None: nothing to do until another job ends."""

    def record(self, results: Sequence[tuple[str, BlockResult]]) -> None:
        """Record blocks by job id; those of a study in one transaction."""

    def finish(self, job_id: str, error: str | None = None) -> None:
        """Close a job whose blocks are recorded, or that failed."""

    def put_back(self, job_id: str) -> None:
        """Keep a job for another worker, as if it had not been given out."""

    def job_lost(self, job_id: str) -> None:
        """Keep a job whose worker died for another worker."""

    def stop(self, reason: str) -> None:
        """End the search for a reason that is no candidate's fault."""
