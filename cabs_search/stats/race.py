"""Evidence, at any number of items, that a candidate is not the best.

Candidates are scored on the same rounds of items: a score in [0, 1] for each of T tasks. Let D_rt
be the difference between another candidate and this one on task t of round r. If this one is at
least as good, the means of D_r1 … D_rT add up to at most 0. A gambler who bets a share b < 1 of
what they have on every task of a round

    W_n(b) = ∏_{r ≤ n} ∏_t (1 + b D_rt)

cannot expect to win: items of different tasks are drawn independently, so that a round multiplies
W by ∏_t (1 + b E[D_rt]) on average, which is at most (1 + b mean_t E[D_rt])^T ≤ 1 (the geometric
mean is no larger than the arithmetic one). So W is a test martingale: nonnegative, begins at 1,
does not grow on average. A mean of test martingales is one too, over several b and over all other
candidates. By Ville's inequality it ever reaches 1/α with a probability of α at most, however
often one looks.

Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, Journal
of the Royal Statistical Society B 86 (2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BETS = np.array([0.2, 0.4, 0.8])
"""Shares that are bet; large ones find large differences soon. None reaches 1, so that one lost
item does not end the game.
"""


def log_evidence(scores: Floats, others: Floats) -> Floats:
    """Return the log of what bets on each other candidate have grown to after each round.

    Args:
        scores: the candidate's score on each task of each round, [rounds, tasks].
        others: those of other candidates, [others, rounds, tasks]; NaN from the round on which a
            candidate was not scored any more: what was won until then is kept.

    Returns:
        log mean_b W_n(b), [others, rounds].

    """
    differences = np.nan_to_num(others - scores, nan=0.0)
    # logs, for a product of many rounds overflows: [others, rounds, tasks, bets]
    growth = np.log1p(differences[..., None] * BETS).sum(axis=2).cumsum(axis=1)
    evidence: Floats = np.logaddexp.reduce(growth, axis=2) - np.log(len(BETS))
    return evidence


def is_beaten(scores: Floats, others: Floats, candidates: int, alpha: float) -> bool:
    """Tell whether a candidate can no longer plausibly be the best.

    Of a fixed set of candidates, the best is called beaten with a probability of at most ``alpha``
    over all looks at all of them: nothing but the bets against the best itself can be wrong.

    Args:
        scores: the candidate's score on each task of each round, in [0, 1], [rounds, tasks].
        others: those of other candidates, [others, rounds, tasks]; NaN where they have none.
        candidates: number of candidates that there will be in all.
        alpha: the probability that the best of all is ever stopped.

    Raises:
        ValueError: a score is not from 0 to 1.

    """
    outside = [one for known in (scores, others) for one in known[(known < 0) | (known > 1)]]
    if outside:
        raise ValueError(f"scores must be from 0 to 1, but got {outside[0]:g}")
    if not others.size:
        return False
    rivals = max(candidates - 1, len(others))
    evidence = np.logaddexp.reduce(log_evidence(scores, others), axis=0) - np.log(rivals)
    return bool(evidence.max() >= -np.log(alpha))


def rounds(scores: Sequence[Floats]) -> Floats:
    """Divide a block of items into rounds that have items of every task.

    Args:
        scores: for each task, scores of its items, [items of the task].

    Returns:
        Each task's mean score in each round; as many rounds as the smallest task has items, also
        none: [rounds, tasks].

    """
    count = min(map(len, scores))
    if not count:
        return np.empty((0, len(scores)))
    means = [[part.mean() for part in np.array_split(task, count)] for task in scores]
    return np.array(means, dtype=np.float64).T
