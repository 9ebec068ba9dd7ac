"""Results of a candidate in its recorded blocks, as samplers and pruners want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from cabs_search.merging.recipe import Recipe
from cabs_search.record.entries import Scored
from cabs_search.record.outcomes import Outcomes
from cabs_search.search.judge import Judge
from cabs_search.search.surface import Answers, log_odds
from cabs_search.spec.task import Task
from cabs_search.stats.race import Floats, rounds
from cabs_search.tasks.items import Ints

BlockResults: TypeAlias = Mapping[int, Mapping[str, tuple[Floats, Floats]]]
"""Scores and losses by block and task."""


class Known(NamedTuple):
    """Results of a candidate in its recorded blocks."""

    rounds: Floats | None = None
    """Scores, NaN where a block is missing, [rounds, tasks], if there is a pruner."""
    answers: Mapping[str, Answers] | None = None
    """Results on items by task, if the sampler learns from them."""


NOTHING = Known()


class KnownReader:
    """Reads what a study's record knows of a candidate on the search split."""

    def __init__(
        self,
        outcomes: Outcomes,
        tasks: Mapping[str, Task],
        blocks: Sequence[Mapping[str, Ints]],
        judge: Judge,
        *,
        reads_rounds: bool,
        reads_answers: bool,
    ) -> None:
        """Prepare to read.

        Args:
            outcomes: the record.
            tasks: by name.
            blocks: rows by task of each block of the search split.
            judge: knows the tasks' weights.
            reads_rounds: whether a pruner wants scores of rounds.
            reads_answers: whether the sampler wants results on items.

        """
        self._outcomes, self._tasks, self._blocks = outcomes, tasks, blocks
        self._judge = judge
        self._reads_rounds, self._reads_answers = reads_rounds, reads_answers
        inputs = [task.inputs for task in tasks.values()]
        self._share_texts = any(inputs.count(one) > 1 for one in inputs)

    def read(self, recipe: Recipe, scored: Scored | None = None) -> Known:
        """Read a candidate's recorded blocks.

        Args:
            recipe: the candidate.
            scored: its scores, if it is scored in full.

        """
        if not (self._reads_rounds or self._reads_answers):
            return NOTHING
        by_block = self._outcomes.block_results(recipe, "search")
        if not by_block:
            return NOTHING
        answers = self._answers(by_block, scored) if self._reads_answers else None
        return Known(self._rounds(by_block) if self._reads_rounds else None, answers)

    def _rounds(self, by_block: BlockResults) -> Floats:
        """Return scores of rounds of items, NaN where a block is missing, [rounds, tasks]."""
        parts = []
        for number, rows in enumerate(self._blocks):
            if number in by_block:
                parts.append(rounds([scores for scores, _ in by_block[number].values()]))
            else:
                parts.append(np.full((min(map(len, rows.values())), len(rows)), np.nan))
        by_task = self._judge.weighed(np.concatenate(parts))
        # Items of tasks that read the same texts are not independent: one score for all tasks.
        return by_task.mean(axis=1, keepdims=True) if self._share_texts else by_task

    def _answers(self, by_block: BlockResults, scored: Scored | None) -> dict[str, Answers]:
        answers = {}
        for name, task in self._tasks.items():
            scores = np.full(sum(len(rows[name]) for rows in self._blocks), np.nan)
            losses = scores.copy()
            for number, by_task in by_block.items():
                rows = self._blocks[number][name]
                scores[rows], losses[rows] = by_task[name]
            is_measured = scored is not None and not task.measure.is_mean
            answers[name] = Answers(
                scores=scores,
                responses=log_odds(losses) if task.kind.has_log_losses else scores,
                metric=scored.scores[name] if scored and is_measured else None,
            )
        return answers
