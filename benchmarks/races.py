"""Simulate races of candidates, and compare rules that stop them.

    python -m benchmarks.races [--races 2000] [--json FILE]

In each race 30 candidates come one after another, as in a search with one worker. Each answers the
same 150 rounds of four items, in the same order; some items are harder than others for all. A rule
looks after 10, 20, 40 and 80 rounds and may stop a candidate that is worse than some other one.
Printed of each rule: how often it stopped the candidate that is the best in truth, which may be
in ``ALPHA`` of races at most, and what share of the items it saved.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import trange

from cabs_search.search.pruners.race import ALPHA
from cabs_search.stats.race import Floats, is_beaten

CANDIDATES, ROUNDS, TASKS = 30, 150, 4
LOOKS = (10, 20, 40, 80)
TESTS = (CANDIDATES - 1) * len(LOOKS)

Rule = Callable[[Floats, Floats], bool]
"""Tells from scores [rounds, tasks], and the others' [others, rounds, tasks], whether to stop."""


def evidence(own: Floats, others: Floats) -> bool:
    """Ours: bets on paired rounds, valid at any look."""
    return is_beaten(own, others, CANDIDATES, ALPHA)


def paired_z(own: Floats, others: Floats, level: float) -> bool:
    """Test paired differences by the normal distribution."""
    mean, error = mean_and_error(others.mean(axis=2) - own.mean(axis=1))
    return bool(np.any(mean > error * stats.norm.isf(level)))


def unpaired_z(own: Floats, others: Floats, level: float) -> bool:
    """Test the two means as if the items were different ones."""
    mean, error = mean_and_error(own.mean(axis=1)[None])
    means, errors = mean_and_error(others.mean(axis=2))
    return bool(np.any(means - mean > np.hypot(errors, error) * stats.norm.isf(level)))


def mean_and_error(values: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard error of each row, without its NaN."""
    count = (~np.isnan(values)).sum(axis=1)
    return np.nanmean(values, axis=1), np.nanstd(values, axis=1, ddof=1) / count**0.5


def at_once(own: Floats, others: Floats) -> bool:
    """Look once, after 80 rounds, with a correction for the rivals."""
    return len(own) == LOOKS[-1] and paired_z(own, others, ALPHA / (CANDIDATES - 1))


RULES: dict[str, Rule] = {
    "bets on paired rounds (race)": evidence,
    "paired z, corrected for rivals and looks": lambda a, b: paired_z(a, b, ALPHA / TESTS),
    "paired z, one look, corrected for rivals": at_once,
    "unpaired z, corrected for rivals and looks": lambda a, b: unpaired_z(a, b, ALPHA / TESTS),
    "paired z, not corrected": lambda a, b: paired_z(a, b, ALPHA),
}
SKILLS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "all equal": lambda random: np.full(CANDIDATES, 0.8),
    "near ties": lambda random: 0.8 - 0.002 * np.arange(CANDIDATES, dtype=float),
    "as in a search": lambda random: np.clip(random.normal(0.79, 0.03, CANDIDATES), 0.5, 0.9),
}
"""True scores of the candidates; the last as those of random λ in the quickstart."""


def answers(skills: Floats, random: np.random.Generator) -> Floats:
    """Draw right and wrong answers, [candidates, rounds, tasks]."""
    hardness = random.normal(0, 2, (ROUNDS, TASKS))
    # the mean over hardness of a logistic of this offset is near the skill
    offset = np.log(skills / (1 - skills)) * (1 + 4 / 2.9) ** 0.5
    right = 1 / (1 + np.exp(-(offset[:, None, None] + hardness)))
    drawn: Floats = (random.random(right.shape) < right).astype(float)
    return drawn


def run_race(rounds: Floats, rule: Rule) -> tuple[set[int], float]:
    """Return which candidates a rule stops, and the share of the rounds that it saves."""
    played = np.full(rounds.shape, np.nan)
    stopped: set[int] = set()
    for candidate, own in enumerate(rounds):
        for look in LOOKS:
            others = played[:candidate, :look]
            if candidate and rule(own[:look], others):
                stopped.add(candidate)
                played[candidate, :look] = own[:look]
                break
        else:
            played[candidate] = own
    return stopped, float(np.isnan(played).mean())


def simulate(races: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the share of races whose best was stopped and the items saved, by skills and rule."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for label, skills_of in SKILLS.items():
        random = np.random.default_rng(0)
        table[label] = {rule: {"best stopped": 0.0, "items saved": 0.0} for rule in RULES}
        for _ in trange(races, desc=label):
            skills = random.permutation(skills_of(random))
            rounds = answers(skills, random)
            for name, rule in RULES.items():
                stopped, saved = run_race(rounds, rule)
                # of candidates that are equally good, one is the best: here the last
                best = int(np.flatnonzero(skills == skills.max())[-1])
                table[label][name]["best stopped"] += (best in stopped) / races
                table[label][name]["items saved"] += saved / races
    return table


def main() -> int:
    """Print the table; 1 if races stopped the best too often."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.races", description=__doc__)
    parser.add_argument("--races", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    table = simulate(chosen.races)
    for label, by_rule in table.items():
        print(f"\n{label}\n{'rule':46}{'best stopped':>14}{'items saved':>14}")
        for rule, found in by_rule.items():
            print(f"{rule:46}{found['best stopped']:14.3f}{found['items saved']:14.3f}")
    if chosen.json:
        chosen.json.write_text(json.dumps(table, indent=1) + "\n")
    ours = next(iter(RULES))
    return int(any(by_rule[ours]["best stopped"] > ALPHA for by_rule in table.values()))


if __name__ == "__main__":
    raise SystemExit(main())
