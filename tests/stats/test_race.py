"""Races: the best is hardly ever stopped, however often one looks; the clearly worse are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cabs_search.stats.race import BETS, is_beaten, log_evidence, rounds

ALPHA = 0.05
RIVALS = 20
TASKS = 2


def answers(rates: np.ndarray, items: int, random: np.random.Generator) -> np.ndarray:
    """Draw right and wrong answers, [candidates, items]: some items are hard for all."""
    hard = random.normal(size=items)
    logits = np.log(rates / (1 - rates))[:, None] * 1.3 + hard
    right = random.random((len(rates), items)) < 1 / (1 + np.exp(-logits))
    return right.astype(float).reshape(len(rates), -1, TASKS)


@pytest.mark.parametrize("gap", [0.0, 0.002, 0.01, 0.05])
def test_the_best_is_stopped_in_less_than_alpha_of_races(gap: float) -> None:
    """Ties and near ties: every look of 150 at the best, against 20 rivals."""
    random = np.random.default_rng(1)
    rates = np.full(RIVALS + 1, 0.8 - gap)
    rates[0] = 0.8
    stopped = 0
    for _ in range(500):
        scores = answers(rates, 300, random)
        stopped += is_beaten(scores[0], scores[1:], len(rates), ALPHA)
    assert stopped <= ALPHA * 500


def test_a_worse_candidate_is_stopped_and_sooner_if_it_is_much_worse() -> None:
    random = np.random.default_rng(2)
    needed = []
    for rate in (0.5, 0.65):
        scores = answers(np.array([rate, 0.85]), 4000, random)
        looks = [
            n for n in range(50, 2000, 50) if is_beaten(scores[0, :n], scores[1:, :n], 30, ALPHA)
        ]
        needed.append(looks[0])
    assert needed[0] < needed[1] <= 600


def test_a_fixed_level_at_every_look_would_stop_the_best_too_often() -> None:
    """The rival rule that races replace: a z-test at every look, without a correction."""
    random = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        scores = answers(np.full(RIVALS + 1, 0.8), 300, random).mean(axis=2)
        d = (scores[1:] - scores[0])[:, None, :]
        for n in range(10, 151, 10):
            error = np.maximum(d[..., :n].std(axis=-1), 1e-9) / n**0.5
            if np.any(d[..., :n].mean(axis=-1) / error > 1.645):
                wrong += 1
                break
    assert wrong > 0.5 * 200


@given(st.lists(st.tuples(*[st.floats(0, 1)] * TASKS), min_size=1, max_size=30), st.integers(0, 30))
def test_evidence_is_the_product_that_it_says(values: list[tuple[float, ...]], end: int) -> None:
    scores, others = np.full((len(values), TASKS), 0.5), np.array([values])
    others[0, end:] = np.nan
    wealth, expected = np.ones(len(BETS)), []
    for round_, row in enumerate(values):
        for value in row if round_ < end else ():
            wealth = wealth * (1 + BETS * (value - 0.5))
        expected.append(np.log(wealth.mean()))
    assert log_evidence(scores, others)[0] == pytest.approx(expected, abs=1e-9)


def test_tasks_that_trade_off_are_no_evidence() -> None:
    """One task gains what the other loses: no candidate is better."""
    random = np.random.default_rng(4)
    gains = random.random((200, 20, 300)) < 0.7
    losses = random.random((200, 20, 300)) < 0.3
    others = np.stack([gains, losses], axis=3).astype(float)
    ours = (random.random((200, 300, 2)) < 0.5).astype(float)
    beaten = [is_beaten(own, rivals, 21, ALPHA) for own, rivals in zip(ours, others, strict=True)]
    assert sum(beaten) <= ALPHA * 200


def test_rounds_have_items_of_every_task_and_the_mean_of_the_block() -> None:
    tasks = [np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0])]
    assert rounds(tasks).tolist() == [[0.5, 0.0], [1.0, 1.0]]
    equal = [np.array([1.0, 0.0, 0.5]), np.array([0.0, 0.25, 1.0])]
    assert rounds(equal).mean() == pytest.approx(np.mean([task.mean() for task in equal]))


@pytest.mark.parametrize("wrong", [1.5, -0.1])
def test_scores_that_bets_cannot_take_are_refused(wrong: float) -> None:
    scores, others = np.full((4, 2), 0.5), np.full((3, 4, 2), 0.5)
    others[1, 2, 0] = wrong
    with pytest.raises(ValueError, match=f"^scores must be from 0 to 1, but got {wrong}$"):
        is_beaten(scores, others, 10, ALPHA)


def test_no_rivals_stop_nobody() -> None:
    assert not is_beaten(np.zeros((4, 2)), np.empty((0, 4, 2)), 10, ALPHA)
