"""Replay searches on emulated landscapes: what is recommended, against items spent.

python -m benchmarks.search_rivals [--seeds N] [--only NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
from tqdm import trange

from benchmarks.emulator import Emulator, emulate
from benchmarks.landscapes import SPACES, read
from cabs_search.search.samplers.registry import SAMPLERS
from cabs_search.search.samplers.surface import ANSWERS, SurfaceSampler
from cabs_search.search.surface import Answers
from cabs_search.spec.locations import cache_folder

Floats = npt.NDArray[np.float64]
BUDGETS = (5, 10, 20, 30, 50)
"""Full evaluations at which what is recommended is judged."""
SEARCH_ITEMS, BLOCKS = 150, 10
"""Of each task, and of each candidate."""
STARTUP = 12
"""Random candidates of our sampler."""

Choice = Callable[[], Floats]
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

    def lambdas(self, params: dict[str, float]) -> Floats:
        """Return λ from Optuna's parameters."""
        return np.array([params[name] for name in sorted(params)])

    def fresh(self, lambdas: Floats) -> float:
        """Return the score on the items that judge."""
        scores, _ = self.emulator.answer(lambdas)
        return float(np.mean([scores[columns].mean() for columns in self.judge.values()]))

    def score(self, lambdas: Floats) -> float:
        """Score all search items."""
        self.spent += 1
        scores, _ = self.emulator.answer(lambdas)
        return float(np.mean([scores[columns].mean() for columns in self.search.values()]))

    def answers(self, lambdas: Floats, blocks: list[int]) -> dict[str, Answers]:
        """Return the results on some blocks of search items."""
        scores, odds = self.emulator.answer(lambdas)
        found = {}
        for task, columns in self.search.items():
            parts = np.array_split(np.arange(len(columns)), BLOCKS)
            rows = np.concatenate([parts[block] for block in blocks])
            own = [np.full(len(columns), np.nan) for _ in range(2)]
            own[0][rows], own[1][rows] = scores[columns[rows]], odds[columns[rows]]
            found[task] = Answers(scores=own[0], responses=own[1])
        return found

    def params(self, trial: optuna.Trial) -> dict[str, float]:
        """Have a trial's sampler choose every λ."""
        low, high = float(self.emulator.low[0]), float(self.emulator.high[0])
        return {
            f"l{i:02}": trial.suggest_float(f"l{i:02}", low, high, step=0.01)
            for i in range(len(self.emulator.low))
        }


def shared_grid(game: Game, seed: int) -> Iterator[Choice]:
    """Try one λ for all experts: ever finer halves of the range."""
    tried: list[tuple[float, Floats]] = []
    size, low, high = len(game.emulator.low), game.emulator.low[0], game.emulator.high[0]
    for number in range(1, 65):
        # van der Corput's sequence: 1/2, 1/4, 3/4, 1/8, ...
        share = sum(((number >> bit) & 1) / 2 ** (bit + 1) for bit in range(7))
        lambdas = np.full(size, round(low + share * (high - low), 2))
        tried.append((game.score(lambdas), lambdas))
        best = max(tried, key=lambda one: one[0])[1]
        yield lambda best=best: best


Player = Callable[[Game, int], Iterator[Choice]]
"""Plays a search with a seed; yields after every candidate."""


def by_score(name: str) -> Player:
    """Recommend the best-scored of a sampler's proposals."""

    def play(game: Game, seed: int) -> Iterator[Choice]:
        study = optuna.create_study(direction="maximize", sampler=SAMPLERS[name](seed, 10))
        while True:
            trial = study.ask()
            lambdas = game.lambdas(game.params(trial))
            study.tell(trial, game.score(lambdas))
            best = game.lambdas(study.best_params)
            yield lambda best=best: best

    return play


def surface(*, stops: bool) -> Player:
    """Ours: recommend the best prediction; or also stop what is unlikely to be the best."""

    def play(game: Game, seed: int) -> Iterator[Choice]:
        sampler = SurfaceSampler(seed=seed, startup_trials=STARTUP)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        while True:
            trial = study.ask()
            lambdas = game.lambdas(game.params(trial))
            done, start = 0, trial.number * 7 % BLOCKS
            stopped = False
            while done < BLOCKS and not stopped:
                done = min(BLOCKS, 1 << done.bit_length()) if stops else BLOCKS
                blocks = [(start + i) % BLOCKS for i in range(done)]
                trial.set_user_attr(ANSWERS, game.answers(lambdas, blocks))
                if stops and done < BLOCKS:
                    frozen = study.get_trials(deepcopy=False)[trial.number]
                    stopped = sampler.is_hopeless(study, frozen)
            game.spent += done / BLOCKS
            if stopped:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                scores, _ = game.emulator.answer(lambdas)
                value = np.mean([scores[c].mean() for c in game.search.values()])
                study.tell(trial, float(value))
            yield lambda: _recommended(sampler, study, game)

    return play


def _recommended(sampler: SurfaceSampler, study: optuna.Study, game: Game) -> Floats:
    found = sampler.recommend(study)
    if found is None:
        trials = study.get_trials(deepcopy=False)
        return game.lambdas(trials[-1].params)
    return game.lambdas(found.params)


PLAYERS = {
    "shared λ grid": shared_grid,
    "random": by_score("random"),
    "tpe": by_score("tpe"),
    "cma-es": by_score("cma-es"),
    "awa": by_score("awa"),
    "gp": by_score("gp"),
    "surface": surface(stops=False),
    "surface + stops": surface(stops=True),
}


def curve(emulator: Emulator, name: str, seed: int) -> list[float]:
    """Return the fresh score of what is recommended at each budget."""
    game = Game(emulator, seed)
    found: list[float] = []
    last = 0.0
    for choice in PLAYERS[name](game, seed):
        # what exceeds a budget is not bought with it
        while len(found) < len(BUDGETS) and game.spent > BUDGETS[len(found)] + 1e-9:
            found.append(last)
        if len(found) == len(BUDGETS):
            break
        if game.spent > BUDGETS[len(found)] - 1 - 1e-9:  # the next candidate may exceed it
            last = game.fresh(choice())
    return found + [last] * (len(BUDGETS) - len(found))


def main() -> None:
    """Replay and print a table for each landscape."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=list(PLAYERS), choices=list(PLAYERS))
    parser.add_argument("--spaces", nargs="*", default=["task-arithmetic"], choices=list(SPACES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables: dict[str, dict[str, list[list[float]]]] = {}
    for space in options.spaces:
        landscape = read(space, cache_folder() / "landscapes" / space)
        range_ = SPACES[space]["lambda"]
        emulator = emulate(landscape, range_["low"], range_["high"])
        print(
            f"{space}: emulated from {len(emulator.x)} candidates; a left-out mean score is wrong"
            f" by {emulator.left_out:.4f}, where scores differ by {emulator.spread:.4f}"
        )
        print(f"{'full evaluations':18}", *(f"{budget:6}" for budget in BUDGETS))
        tables[space] = {}
        for name in options.only:
            seeds = trange(options.seeds, desc=name, leave=False)
            curves = [curve(emulator, name, seed) for seed in seeds]
            tables[space][name] = curves
            print(f"{name:18}", *(f"{mean:.4f}" for mean in np.mean(curves, axis=0)), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"budgets": BUDGETS, "curves": tables}) + "\n")


if __name__ == "__main__":
    main()
