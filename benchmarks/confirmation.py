"""Confirmation that stops early, on simulated studies with known truth, beside scoring all items.

Studies are those of benchmarks/calibration.py, with base and four experts as more rows. Two rows
are seen to the end: the best baseline and, chosen by search scores, the best found.

``make calibration`` writes docs/results/confirmation.json, and the table in docs/statistics.md from
it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.calibration import (
    DOCS,
    END,
    PAGE,
    TASKS,
    WORLDS,
    Array,
    Resamples,
    World,
    as_scores,
    draw_latents,
    draw_scores,
    keep,
    truths,
)
from cabs_search.stats.sequential import decide, first_items, look_ends, partial_means
from cabs_search.stats.simultaneous import Size, holm, sign_flips, simultaneous, tie_set

FILE, MARK = DOCS / "results" / "confirmation.json", "<!-- confirmation -->"
BELOW = np.array([[-0.30] * 4, *(np.where(np.arange(4) == own, 0.01, -0.15) for own in range(4))]).T
"""True scores of base and experts by task, less those of the best merge, [tasks, rows]."""
BLOCKS = 8
"""Blocks of the items to confirm."""
FLIPS = 1000
COLUMNS = {
    "scores covered": "scores",
    "differences covered": "differences",
    "best in tie set": "best in tie set",
    "tie set": "size of tie set",
    "tie set, all items": "with all items",
    "same of the tie set": "rows decided alike",
    "same verdict": "same verdict",
    "false finds": "false finds, Holm",
    "items": "items",
}
UNITS = {"tie set", "tie set, all items"}
"""Columns that are no shares."""


def draw_rows(world: World, truth: Array, draw: np.random.Generator) -> list[Array]:
    """Draw candidates, base and experts; the latter agree half as much. By task [items, rows]."""
    scores = []
    shape = (len(TASKS), world.candidates)
    for row, latent in zip(truth, draw_latents(world, shape, world.items, draw), strict=True):
        others = np.sqrt(0.5) * latent[:, [0]]
        others = others + np.sqrt(0.5) * draw.standard_normal((len(latent), BELOW.shape[1]))
        scores.append(as_scores(world, row, np.hstack([latent, others])))
    return scores


def studies(world: World, repetitions: int, replicates: int) -> Iterator[dict[str, float]]:
    """Simulate studies; yield of each what the early and the whole confirmation say."""
    draw, count = np.random.default_rng(20261126), world.candidates
    samples = Resamples(world.items, replicates)
    drawn = [partial(lambda w: [w], w) for w in samples.weights]
    truth = truths(world, count)
    truth = np.hstack([truth, np.array(TASKS)[:, None] + BELOW])
    means, clusters = truth.mean(axis=0), [np.arange(world.items)] * len(TASKS)
    steps = [round(world.items * (b + 1) / BLOCKS) for b in range(BLOCKS)]
    stops = [steps[end - 1] for end in look_ends([[step] * len(TASKS) for step in steps], clusters)]
    whole = Size.of([world.items] * len(TASKS))
    is_candidate = np.arange(len(means)) < count
    for seed in range(repetitions):
        searched = draw_scores(world, truth[:, :count], world.searched, draw)
        found = 1 + int(np.mean([s.mean(axis=0) for s in searched], axis=0)[1:].argmax())
        stays = np.isin(np.arange(len(means)), [0, found])
        scores = draw_rows(world, truth, draw)
        looks = first_items(scores, drawn, [[stop] * len(TASKS) for stop in stops], clusters)
        decisions = decide(looks, stays, is_candidate)
        items = np.array(stops)[decisions.ended]
        early = [np.where(np.arange(len(s))[:, None] < items, s, np.nan) for s in scores]
        ones = np.ones((1, world.items))
        estimates = np.mean([partial_means(s, ones)[0] for s in early], axis=0)
        resampled = np.mean(
            [partial_means(s, w) for s, w in zip(early, samples.weights, strict=True)], axis=0
        )
        low, high = simultaneous(estimates, resampled, _sizes(items))
        gaps = estimates[1:] - estimates[0]
        gap_low, gap_high = simultaneous(
            gaps, resampled[:, 1:] - resampled[:, [0]], _sizes(items[1:])
        )
        true_gaps = means[1:] - means[0]
        all_tied = tie_set(looks[-1].estimates[:count], looks[-1].replicates[:, :count], whole)
        tied, best = decisions.tied[:count], means[:count] >= means[:count].max() - 1e-12
        p, p_all = (_p_values(s, count, seed) for s in (early, scores))
        # both rows of the verdict have all items: it is the family's correction that may differ
        is_told, is_told_by_all = (holm(q)[found - 1] < 0.05 for q in (p, p_all))
        is_null = np.abs(true_gaps[: count - 1]) < 1e-12
        yield {
            "scores covered": bool(((low <= means) & (means <= high)).all()),
            "differences covered": bool(((gap_low <= true_gaps) & (true_gaps <= gap_high)).all()),
            "best in tie set": bool(tied[best].all() if world.truths != "null" else tied[0]),
            "tie set": int(tied.sum()),
            "tie set, all items": int(all_tied.sum()),
            "same of the tie set": float((tied == all_tied).mean()),
            "same verdict": bool(is_told == is_told_by_all),
            "false finds": bool((holm(p) < 0.05)[is_null].any()),
            "items": float(items.mean() / world.items),
        }


def _sizes(items: Array) -> Size:
    return Size.of_each([Size.of([int(count)] * len(TASKS)) for count in items])


def _p_values(scores: list[Array], count: int, seed: int) -> Array:
    """Return p of every candidate against the first, on the items that both have."""
    differences = [s[:, 1:count] - s[:, [0]] for s in scores]
    weighted = [np.nan_to_num(d) / (~np.isnan(d)).sum(axis=0) for d in differences]
    return sign_flips(np.concatenate(weighted), seed=seed, count=FLIPS)


def measure(world: World, repetitions: int, replicates: int = 1000) -> dict[str, float]:
    """Return means over repetitions."""
    outcomes = list(
        tqdm(
            studies(world, repetitions, replicates),
            total=repetitions,
            desc=world.name,
            disable=repetitions < 500,
        )
    )
    return {key: float(np.mean([study[key] for study in outcomes])) for key in outcomes[0]}


def as_table(worlds: list[dict[str, Any]]) -> str:
    """Write results in Markdown, shares in %."""
    lines = [
        "| kind of study | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for world in worlds:
        cells = [
            f"{value:.1f}" if key in UNITS else f"{100 * value:.1f}"
            for key, value in world["found"].items()
        ]
        lines.append(f"| {world['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate every world, two at a time, and write the results to docs/."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repetitions", type=int, default=2000)
    chosen = options.parse_args()
    start = time.monotonic()
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(partial(measure, repetitions=chosen.repetitions), WORLDS))
    worlds = [asdict(w) | {"found": f} for w, f in zip(WORLDS, found, strict=True)]
    keep(worlds, chosen.repetitions, FILE, as_table(worlds), (MARK, END))
    print(f"{FILE} and {PAGE}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
