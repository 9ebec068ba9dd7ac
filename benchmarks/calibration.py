"""Calibration of the statistics: their claims checked on simulated studies with known truth.

Scores are simulated as they are in our records: each item has a difficulty, by which candidates
mostly agree, and each candidate a part of its own that neighbours in λ share. The truth is exact:
with u standard normal, an item is scored right if u < Φ⁻¹(a), which has probability a; a graded
score is Φ(α - βu), which has mean Φ(α / √(1 + β²)).

``make calibration`` writes docs/results/calibration.json, and the table in docs/statistics.md from
it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from tqdm import tqdm

from cabs_search.stats.simultaneous import (
    Size,
    holm,
    resample_weights,
    selection_bias,
    sign_flips,
    simultaneous,
    tie_set,
)

DOCS = Path(__file__).parents[1] / "docs"
FILE, PAGE = DOCS / "results" / "calibration.json", DOCS / "statistics.md"
MARK, END = "<!-- calibration -->", "<!-- end -->"
TASKS = (0.90, 0.87, 0.69, 0.87)
"""Accuracy of the best merge on each task, taken from the quickstart."""
STEEPNESS = 2.0
"""β of graded scores: most items near 0 or 1, like F1 of answers."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class World:
    """Kind of study to simulate."""

    name: str
    truths: str
    """``basin``: scores fall off on both sides of the best λ; ``null``: all are equal; ``clear``:
    one is better.
    """
    candidates: int = 20
    items: int = 300
    """Items of each task on the confirm split."""
    agreement: float = 0.95
    """Share of the latent score's variance that comes from the item's difficulty."""
    graded: bool = False
    tried: int = 100
    """Candidates of the search; the best of them are confirmed."""
    searched: int = 150
    """Items of each task on the search split."""


WORLDS = (
    World(name="basin, 0/1", truths="basin"),
    World(name="basin, graded", truths="basin", graded=True),
    World(name="null, 0/1", truths="null"),
    World(name="null, graded", truths="null", graded=True),
    World(name="one better, 0/1", truths="clear"),
    World(name="null, few items", truths="null", items=50, searched=50),
    World(name="basin, few items", truths="basin", items=50, searched=50),
    World(name="basin, near-equal candidates", truths="basin", agreement=0.995),
)


def truths(world: World, count: int) -> Array:
    """Return the true score of each candidate by task, [tasks, count]."""
    place = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
    fall = {
        "basin": 0.03 * (place - 0.2) ** 2,
        "null": np.zeros(count),
        "clear": np.where(place < 1, 0.04, 0.0),
    }
    return np.array([best - fall[world.truths] * (0.5 + i / 3) for i, best in enumerate(TASKS)])


def draw_scores(world: World, truth: Array, items: int, draw: np.random.Generator) -> list[Array]:
    """Draw the scores of one study's items, by task [items, candidates]."""
    latents = draw_latents(world, truth.shape, items, draw)
    return [as_scores(world, row, latent) for row, latent in zip(truth, latents, strict=True)]


def draw_latents(
    world: World, shape: tuple[int, ...], items: int, draw: np.random.Generator
) -> Iterator[Array]:
    """Draw what makes items hard for candidates, standard normal; yield [items, candidates]."""
    tasks, count = shape
    distance = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    root = np.linalg.cholesky(np.exp(-distance / (0.15 * count + 1)) + 1e-9 * np.eye(count))
    for _ in range(tasks):
        shared = np.sqrt(world.agreement) * draw.standard_normal((items, 1))
        own = np.sqrt(1 - world.agreement) * (draw.standard_normal((items, count)) @ root.T)
        yield shared + own


def as_scores(world: World, truth: Array, latent: Array) -> Array:
    """Return one task's scores of candidates with true scores ``truth``, [items, candidates]."""
    if world.graded:
        return ndtr(ndtri(truth) * np.sqrt(1 + STEEPNESS**2) - STEEPNESS * latent)
    return (latent < ndtri(truth)).astype(np.float64)


class Resamples:
    """Bootstrap samples of a world's items, drawn once since they do not depend on the scores."""

    def __init__(self, items: int, count: int) -> None:
        self.weights = [
            np.concatenate(list(resample_weights(np.arange(items), count, (0, task))))
            for task in range(len(TASKS))
        ]

    def means(self, scores: list[Array]) -> Array:
        """Compute the mean of the tasks' means in each sample, [samples, candidates]."""
        parts = [
            (w @ s.astype(np.float32)) / w.sum(axis=1, keepdims=True)
            for w, s in zip(self.weights, scores, strict=True)
        ]
        return np.mean(parts, axis=0, dtype=np.float64)


def studies(world: World, repetitions: int, replicates: int) -> Iterator[dict[str, float]]:
    """Simulate studies; yield of each whether its claims are true."""
    draw = np.random.default_rng(20261122)
    confirm, search = Resamples(world.items, replicates), Resamples(world.searched, 500)
    truth, wide = truths(world, world.candidates), truths(world, world.tried)
    means, size = truth.mean(axis=0), Size.of([world.items] * len(TASKS))
    for seed in range(repetitions):
        scores = draw_scores(world, truth, world.items, draw)
        estimates = np.mean([s.mean(axis=0) for s in scores], axis=0)
        replicates = confirm.means(scores)
        low, high = simultaneous(estimates, replicates, size)
        gaps = estimates[1:] - estimates[0]
        gap_low, gap_high = simultaneous(gaps, replicates[:, 1:] - replicates[:, [0]], size)
        true_gaps = means[1:] - means[0]
        kept = tie_set(estimates, replicates, size)
        weighted = np.concatenate([s / len(s) / len(scores) for s in scores])
        p = sign_flips(weighted[:, 1:] - weighted[:, [0]], seed=seed, count=2000)
        tried = draw_scores(world, wide, world.searched, draw)
        searched, resampled = np.mean([s.mean(axis=0) for s in tried], axis=0), search.means(tried)
        chosen = int(searched.argmax())
        yield {
            "scores covered": bool(((low <= means) & (means <= high)).all()),
            "differences covered": bool(((gap_low <= true_gaps) & (true_gaps <= gap_high)).all()),
            "best in tie set": bool(
                kept[means >= means.max() - 1e-12].all() if world.truths != "null" else kept[0]
            ),
            "tie set": int(kept.sum()),
            "rejected, Holm": bool((holm(p) < 0.05)[np.abs(true_gaps) < 1e-12].any()),
            "rejected, each by itself": bool((p < 0.05)[np.abs(true_gaps) < 1e-12].any()),
            "optimism": float(searched[chosen] - wide.mean(axis=0)[chosen]),
            "optimism, estimated": selection_bias(searched, resampled),
        }


def measure(world: World, repetitions: int, replicates: int = 2000) -> dict[str, float]:
    """Return the share of true claims, and means of sizes, over repetitions."""
    outcomes = list(
        tqdm(
            studies(world, repetitions, replicates),
            total=repetitions,
            desc=world.name,
            disable=repetitions < 500,
        )
    )
    return {key: float(np.mean([study[key] for study in outcomes])) for key in outcomes[0]}


COLUMNS = {
    "scores covered": "scores",
    "differences covered": "differences",
    "best in tie set": "best in tie set",
    "tie set": "size of tie set",
    "rejected, Holm": "false finds, Holm",
    "rejected, each by itself": "false finds, each by itself",
    "optimism": "optimism, points",
    "optimism, estimated": "as estimated",
}


def as_table(worlds: list[dict[str, Any]]) -> str:
    """Write results in Markdown, shares in %."""
    lines = [
        "| kind of study | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for world in worlds:
        cells = [
            f"{value:.1f}" if key == "tie set" else f"{100 * value:.1f}"
            for key, value in world["found"].items()
        ]
        lines.append(f"| {world['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def keep(
    worlds: list[dict[str, Any]], repetitions: int, file: Path, table: str, marks: tuple[str, str]
) -> None:
    """Write results as JSON, and their table between two marks of the page."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    plain = {"repetitions": repetitions, **versions, "worlds": worlds}
    file.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    begin, end = marks
    before, mark, after = PAGE.read_text(encoding="utf-8").partition(begin)
    PAGE.write_text(f"{before}{mark}\n\n{table}{after[after.index(end) :]}", encoding="utf-8")


def main() -> None:
    """Simulate every world and write the results to docs/."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repetitions", type=int, default=2000)
    chosen = options.parse_args()
    start, found = time.monotonic(), []
    for world in WORLDS:
        found.append(asdict(world) | {"found": measure(world, chosen.repetitions)})
        print(world.name, {k: round(v, 4) for k, v in found[-1]["found"].items()}, flush=True)
    keep(found, chosen.repetitions, FILE, as_table(found), (MARK, END))
    print(f"{FILE} and {PAGE}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
