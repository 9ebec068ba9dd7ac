"""Replay searches on emulated landscapes: what is recommended, against items spent.

    python -m benchmarks.search_rivals [--seeds N] [--spaces NAME ...] [--only PLAYER ...]

Of all items, 150 of each task are searched on, drawn anew for each seed; all others choose nothing
and judge what is recommended. Curves are kept in docs/results/search.json, where a run adds seeds
that are missing, unless the landscape is another; ``--docs`` writes docs/results/search.md and its
picture from it.
"""

from __future__ import annotations

import argparse
import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import optuna
from tqdm import tqdm

from benchmarks.emulator import Emulator, emulate
from benchmarks.landscapes import FILES, SPACES, read
from benchmarks.search_page import UNEVEN, write
from cabs_search.search.answered_trials import ANSWERS
from cabs_search.search.proposals import MOST_HOPELESS
from cabs_search.search.samplers.registry import SAMPLERS
from cabs_search.search.samplers.surface import Recommended, SurfaceSampler
from cabs_search.search.surface import Answers

Floats = npt.NDArray[np.float64]
FILE = Path(__file__).parents[1] / "docs" / "results" / "search.json"
BUDGETS = (2, 5, 10, 20, 50, 300)
"""Full evaluations at which what is recommended is judged."""
SEARCH_ITEMS, BLOCKS = 150, 10
"""Of each task, and of each candidate."""
STARTUP = 12
"""Random candidates before a sampler learns."""
FEW = 5
"""Items of each task for the search on few items: 20 in all with four tasks."""
NINETY = 1.645
"""Standard deviations on either side of a mean that hold 90 % of a normal distribution."""
Ints = npt.NDArray[np.int64]
Point = tuple[Floats, int]
"""λ, and the number of other settings."""

Choice = Callable[[], Point]
"""Tells what λ a search recommends by now."""


class Game:
    """One search: the items that are searched on, the others that judge, and what is spent."""

    def __init__(self, emulator: Emulator, seed: int) -> None:
        self.emulator = emulator
        random = np.random.default_rng(seed)
        shuffled = {task: random.permutation(c) for task, c in emulator.tasks.items()}
        self.search = {task: c[:SEARCH_ITEMS] for task, c in shuffled.items()}
        self.judge = {task: c[SEARCH_ITEMS:] for task, c in shuffled.items()}
        self.spent = 0.0
        """In full evaluations."""
        self.covered: list[bool] = []
        """True for each prediction whose 90 % interval held the score on all search items."""

    def point(self, params: dict[str, float]) -> Point:
        """Return the candidate that Optuna's parameters name."""
        names = [name for name in sorted(params) if name != "arm"]
        return np.array([params[name] for name in names]), int(params.get("arm", 0))

    def fresh(self, point: Point) -> float:
        """Return the score on the items that judge."""
        return self._mean(point, self.judge)

    def score(self, point: Point) -> float:
        """Score all search items."""
        self.spent += 1
        return self._mean(point, self.search)

    def score_on(self, point: Point, columns: dict[str, Ints]) -> float:
        """Score some search items."""
        self.spent += len(columns[next(iter(columns))]) / SEARCH_ITEMS
        return self._mean(point, columns)

    def check(self, point: Point, predicted: Recommended | None) -> None:
        """Note whether a prediction that was made before a candidate was scored has held."""
        if predicted is not None:
            error = abs(self._mean(point, self.search) - predicted.mean)
            self.covered.append(error <= NINETY * predicted.deviation)

    def _mean(self, point: Point, columns: dict[str, Ints]) -> float:
        scores, _ = self.emulator.answer(*point)
        return float(np.mean([scores[own].mean() for own in columns.values()]))

    def block(self, number: int) -> dict[str, Ints]:
        """Return the items of a block of the search items."""
        return {t: np.array_split(own, BLOCKS)[number] for t, own in self.search.items()}

    def answers(self, point: Point, blocks: list[int]) -> dict[str, Answers]:
        """Return the results on some blocks of search items."""
        scores, odds = self.emulator.answer(*point)
        found = {}
        for task, columns in self.search.items():
            parts = np.array_split(np.arange(len(columns)), BLOCKS)
            rows = np.concatenate([parts[block] for block in blocks])
            own = [np.full(len(columns), np.nan) for _ in range(2)]
            own[0][rows], own[1][rows] = scores[columns[rows]], odds[columns[rows]]
            found[task] = Answers(scores=own[0], responses=own[1])
        return found

    @property
    def owners(self) -> dict[str, str]:
        """The expert of each λ of a group of tensors."""
        keys = self.emulator.keys
        return {f"l{i:02}": key.rpartition(".")[0] for i, key in enumerate(keys) if "." in key}

    def suggest(self, trial: optuna.Trial) -> Point:
        """Have a trial's sampler choose every λ, and the other settings."""
        low, high = float(self.emulator.low[0]), float(self.emulator.high[0])
        for i in range(len(self.emulator.low)):
            trial.suggest_float(f"l{i:02}", low, high, step=0.01)
        arms = sorted(set(self.emulator.arms.tolist()))
        if len(arms) > 1:
            trial.suggest_categorical("arm", arms)
        return self.point(trial.params)


def shared_grid(game: Game, seed: int) -> Iterator[Choice]:
    """Try one λ for all experts: ever finer halves of the range, with each of the settings."""
    best: tuple[float, Point] | None = None
    size, low, high = len(game.emulator.low), game.emulator.low[0], game.emulator.high[0]
    arms = sorted(set(game.emulator.arms.tolist()))
    for number in range(1, 400):
        # van der Corput's sequence: 1/2, 1/4, 3/4, 1/8, ...
        turn, arm = 1 + (number - 1) // len(arms), arms[(number - 1) % len(arms)]
        share = sum(((turn >> bit) & 1) / 2 ** (bit + 1) for bit in range(9))
        point = np.full(size, round(low + share * (high - low), 2)), arm
        score = game.score(point)
        if best is None or score > best[0]:
            best = score, point
        yield lambda chosen=best[1]: chosen


Player = Callable[[Game, int], Iterator[Choice]]
"""Plays a search with a seed; yields after every candidate."""


def by_score(name: str) -> Player:
    """Recommend the best-scored of a sampler's proposals."""

    def play(game: Game, seed: int) -> Iterator[Choice]:
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[name](seed, STARTUP))
        while True:
            trial = study.ask()
            study.tell(trial, game.score(game.suggest(trial)))
            best = game.point(study.best_params)
            yield lambda best=best: best

    return play


def few_items(game: Game, seed: int) -> Iterator[Choice]:
    """Score random candidates on the same 20 items; recommend the best."""
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS["random"](seed, STARTUP))
    items = {task: own[:FEW] for task, own in game.search.items()}
    while True:
        trial = study.ask()
        study.tell(trial, game.score_on(game.suggest(trial), items))
        best = game.point(study.best_params)
        yield lambda best=best: best


def pruned(pruner: Callable[[], optuna.pruners.BasePruner], *, reports_means: bool) -> Player:
    """TPE with a pruner of Optuna, which looks after each block; recommend the best complete one.

    Args:
        pruner: makes the pruner.
        reports_means: whether it is told the mean so far, else each block's score.

    """

    def play(game: Game, seed: int) -> Iterator[Choice]:
        sampler = SAMPLERS["tpe"](seed, STARTUP)
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner())
        while True:
            trial = study.ask()
            point, scores = game.suggest(trial), list[float]()
            state = optuna.trial.TrialState.COMPLETE
            for number in range(BLOCKS):
                scores.append(game.score_on(point, game.block(number)))
                trial.report(float(np.mean(scores)) if reports_means else scores[-1], number + 1)
                if number + 1 < BLOCKS and trial.should_prune():
                    state = optuna.trial.TrialState.PRUNED
                    break
            if state == optuna.trial.TrialState.PRUNED:
                study.tell(trial, state=state)
            else:
                study.tell(trial, float(np.mean(scores)))
            best = game.point(study.best_params)
            yield lambda best=best: best

    return play


def surface(*, stops: bool, ends: bool = False) -> Player:
    """Ours: recommend the best prediction.

    Args:
        stops: whether each candidate is scored on one block of items, or on all.
        ends: whether the search ends when what it may still gain is less than the noise.

    """

    def play(game: Game, seed: int) -> Iterator[Choice]:
        sampler, study = surface_study(game, seed)
        while not ends or sampler.hopeless < MOST_HOPELESS:
            trial = study.ask()
            point = game.suggest(trial)
            blocks = [block_of(trial)] if stops else list(range(BLOCKS))
            game.check(point, sampler.predicted.get(trial.number))
            game.spent += len(blocks) / BLOCKS
            learn(study, trial, game.answers(point, blocks))
            yield lambda: recommended(sampler, study, game)

    return play


def surface_study(
    game: Game, seed: int, startup_trials: int = STARTUP
) -> tuple[SurfaceSampler, optuna.Study]:
    """Return our sampler, and a study that it drives."""
    sampler = SurfaceSampler(seed=seed, startup_trials=startup_trials, owners=game.owners)
    return sampler, optuna.create_study(direction="maximize", sampler=sampler)


def block_of(trial: optuna.Trial) -> int:
    """Return the block on which a candidate is scored that stops after one."""
    return int(trial.number * 7 % BLOCKS)


def learn(study: optuna.Study, trial: optuna.Trial, answers: Mapping[str, Answers]) -> None:
    """End a trial with the results of some items, from which our sampler learns."""
    trial.set_user_attr(ANSWERS, answers)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def recommended(sampler: SurfaceSampler, study: optuna.Study, game: Game) -> Point:
    """Return the point with the best prediction; the last one tried if there is none."""
    found = sampler.recommend(study)
    params = study.get_trials(deepcopy=False)[-1].params if found is None else found.params
    return game.point(params)


PLAYERS = {
    "shared λ grid": (shared_grid, 50),
    "random": (by_score("random"), 300),
    "20 random items": (few_items, 20),
    "tpe": (by_score("tpe"), 50),
    "tpe + asha": (
        pruned(
            lambda: optuna.pruners.SuccessiveHalvingPruner(reduction_factor=3), reports_means=True
        ),
        50,
    ),
    "tpe + wilcoxon": (
        pruned(lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.1), reports_means=False),
        50,
    ),
    "gp": (by_score("gp"), 50),
    "cma-es": (by_score("cma-es"), 50),
    "awa": (by_score("awa"), 300),
    "surface, all items": (surface(stops=False), 50),
    "surface": (surface(stops=True), 50),
    "surface, ends": (surface(stops=True, ends=True), 50),
}
"""Players, and the largest budget of each."""


class Curve(NamedTuple):
    """What a player achieved."""

    scores: list[float]
    """Fresh score of what is recommended at each budget."""
    covered: float
    """Share of 90 % intervals that held a new candidate's score; NaN if none was predicted."""
    ended: float
    """Full evaluations after which the search ended by itself; NaN if it did not."""


def curve(space: str, name: str, seed: int) -> Curve:
    """Let a player play, up to the largest budget that it has."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    game, (player, most) = Game(emulated(space), seed), PLAYERS[name]
    budgets = [budget for budget in BUDGETS if budget <= most]
    found: list[float] = []
    last, ended = 0.0, float("nan")
    for choice in player(game, seed):
        # what exceeds a budget is not bought with it
        while len(found) < len(budgets) and game.spent > budgets[len(found)] + 1e-9:
            found.append(last)
        if len(found) == len(budgets):
            break
        if game.spent > budgets[len(found)] - 1 - 1e-9:  # the next candidate may exceed it
            last = game.fresh(choice())
            if game.spent > budgets[len(found)] - 1e-9:
                found.append(last)
    else:
        last, ended = game.fresh(choice()), game.spent
    covered = float(np.mean(game.covered)) if game.covered else float("nan")
    return Curve(found + [last] * (len(budgets) - len(found)), covered, ended)


@cache
def emulated(space: str) -> Emulator:
    """Return the emulator of a space's landscape."""
    name = space.removesuffix(UNEVEN)
    landscape, range_ = read(name), SPACES[name]["lambda"]
    return emulate(landscape, range_["low"], range_["high"], uneven=name != space)


def file_of(space: str) -> Path:
    """Return the file of a space's landscape."""
    return FILES / f"{space.removesuffix(UNEVEN)}.npz"


def main() -> None:
    """Replay, and keep what is found."""
    names = [name + end for name in SPACES for end in ("", UNEVEN)]
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=list(PLAYERS), choices=list(PLAYERS))
    parser.add_argument("--spaces", nargs="*", default=["task-arithmetic"], choices=names)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--docs", action="store_true", help="write the page of what is kept")
    options = parser.parse_args()
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for space in options.spaces:
        if not file_of(space).is_file():
            parser.error(f"record it first: python -m benchmarks.landscapes --only {space}")
    with ProcessPoolExecutor(options.workers) as pool:
        for space in options.spaces:
            emulator = emulated(space)
            checksum = zlib.crc32(file_of(space).read_bytes())
            of_space = kept.setdefault(space, {})
            if of_space.get("landscape") != checksum:
                of_space |= {"landscape": checksum, "curves": {}, "covered": {}, "ended": {}}
            of_space |= {
                "candidates": len(emulator.x),
                "left out": round(emulator.left_out, 4),
                "spread": round(emulator.spread, 4),
            }
            for name in options.only:
                curves = of_space["curves"].setdefault(name, [])
                covered = of_space["covered"].setdefault(name, [])
                ended = of_space.setdefault("ended", {}).setdefault(name, [])
                seeds = range(len(curves), options.seeds)
                jobs = [pool.submit(curve, space, name, seed) for seed in seeds]
                for job in tqdm(jobs, desc=f"{space}, {name}", disable=not jobs):
                    found = job.result()
                    curves.append([round(score, 4) for score in found.scores])
                    covered += [] if np.isnan(found.covered) else [round(found.covered, 4)]
                    ended += [] if np.isnan(found.ended) else [round(found.ended, 1)]
                    FILE.write_text(json.dumps(kept) + "\n")
                means = np.mean(curves, axis=0) if curves else []
                print(f"{space:16} {name:20}", *(f"{mean:.4f}" for mean in means), flush=True)
    if options.docs:
        write(kept, BUDGETS)


if __name__ == "__main__":
    main()
