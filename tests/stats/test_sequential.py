"""Confirmation that stops early: level, numbers against one look, means of part of the items."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from cabs_search.stats.sequential import Look, decide, first_items, look_ends, partial_means
from cabs_search.stats.simultaneous import Floats, resample_weights, tie_set

ITEMS, TASKS = 80, 2
ENDS = [[30] * TASKS, [50] * TASKS, [ITEMS] * TASKS]
CLUSTERS = [np.arange(ITEMS)] * TASKS
WEIGHTS = [np.concatenate(list(resample_weights(CLUSTERS[t], 1000, t))) for t in range(TASKS)]
SAMPLES = [partial(lambda weights: [weights], weights) for weights in WEIGHTS]


def draw_scores(draw: np.random.Generator, quality: list[float]) -> list[Floats]:
    """Draw 0/1 scores of rows that mostly agree, by task."""
    hard = [np.sqrt(0.8) * draw.normal(size=(ITEMS, 1)) for _ in range(TASKS)]
    own = [np.sqrt(0.2) * draw.normal(size=(ITEMS, len(quality))) for _ in range(TASKS)]
    return [(h + o < np.array(quality)).astype(float) for h, o in zip(hard, own, strict=True)]


def looks_at(scores: list[Floats]) -> list[Look]:
    return first_items(scores, SAMPLES, ENDS, CLUSTERS)


def test_one_look_gives_the_tie_set() -> None:
    scores = draw_scores(np.random.default_rng(0), [1.0, 0.9, 0.5, 0.3, -0.5])
    last = looks_at(scores)[-1]
    every = np.ones(5, dtype=bool)
    found = decide([last], ~every, every)
    assert found.tied.tolist() == tie_set(last.estimates, last.replicates, last.size).tolist()
    assert 0 < found.tied.sum() < 5
    assert (found.ended == 0).all()
    assert last.estimates == pytest.approx(np.mean([s.mean(axis=0) for s in scores], axis=0))


def test_what_is_far_below_ends_first_and_what_stays_goes_on() -> None:
    scores = draw_scores(np.random.default_rng(1), [1.2, 1.2, -1.0, -1.0, -1.0])
    stays = np.array([False, False, True, False, False])
    is_candidate = np.array([True, True, True, True, False])
    looks = looks_at(scores)
    first, last = decide(looks[:1], stays, is_candidate), decide(looks, stays, is_candidate)
    assert first.ended[3] == first.ended[4] == last.ended[4] == 0
    assert first.ended[2] == -1
    assert last.ended[2] == 2
    assert last.tied.tolist() == [True, True, False, False, False]


def test_the_best_is_kept_in_95_of_100_studies() -> None:
    """All are equal: the one that stays is lost in few studies, others end early."""
    draw, lost, ended = np.random.default_rng(2), 0, []
    stays = np.arange(8) == 0
    for _ in range(200):
        found = decide(looks_at(draw_scores(draw, [0.7] * 8)), stays, np.ones(8, dtype=bool))
        lost += not found.tied[0]
        ended.append(found.ended)
    assert lost <= 17, "5 % are allowed, and three standard errors"
    assert np.mean(np.array(ended) < len(ENDS) - 1) > 0.3, "rows that end before the last look"


def test_looks_need_items_and_groups() -> None:
    ends = [[10 * block] for block in range(1, 9)]
    assert look_ends(ends, [np.arange(80)]) == [2, 3, 4, 5, 6, 7, 8]
    assert look_ends(ends, [np.arange(80) // 2]) == [4, 5, 6, 7, 8]
    assert look_ends(ends, [np.arange(80) // 20]) == [8]


def test_a_row_on_part_of_the_items_is_corrected_for_how_hard_they_are() -> None:
    """The first half is easy; a row that differs by 0.1 from the others does so on all items."""
    whole = np.repeat([[0.9], [0.5]], 40, axis=0) + 0.05 * np.sin(np.arange(80))[:, None]
    values = np.hstack([whole, whole, whole - 0.1])
    values[30:, 2] = np.nan
    ones = np.ones((1, 80))
    assert partial_means(values, ones)[0, :2] == pytest.approx(whole.mean())
    assert partial_means(values, ones)[0, 2] == pytest.approx(whole.mean() - 0.1)
    resampled = partial_means(values, WEIGHTS[0].astype(float))
    assert resampled[:, 2] == pytest.approx(resampled[:, 0] - 0.1)
