"""Searches whose clock is set back by an hour in the middle end as others do."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from cabs_search.results.leaderboard import build_leaderboard
from cabs_search.search.samplers.awa import AwaSampler
from cabs_search.search.storage import in_order_of_end, recipe_of
from cabs_search.spec.load import parse
from cabs_search.tasks.load import load_study_items
from tests.conftest import pico_values
from tests.support.bench import Bench

HOUR = timedelta(hours=1)


class Clock:
    """The time of day, which may be set back."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.back = timedelta()
        outer, real = self, time.time

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.now(tz) - outer.back

        patch.setattr("optuna.storages._rdb.storage.datetime", Shifted)
        patch.setattr("optuna.storages._in_memory.datetime", Shifted)
        patch.setattr(time, "time", lambda: real() - outer.back.total_seconds())


class Jumping(Bench):
    """A driver in the middle of whose work the clock is set back."""

    clock: Clock | None = None

    def result(self, job: Any, block: int) -> Any:
        if len(self.scored) == 16 and self.clock is not None:
            self.clock.back = HOUR
        return super().result(job, block)


@pytest.mark.parametrize("sampler", ["tpe", "awa"])
def test_a_clock_that_is_set_back_changes_nothing(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Neither in the run in which it happens nor in the one that goes on after it."""
    values = pico_values(pico, trials=20, sampler=sampler)
    values["space"] |= {"method": ["cabs"], "nm": ["2:8"], "order": [["mood", "animal", "pair"]]}
    spec = parse(values)
    items = load_study_items(spec)
    found = {}
    for name in ("steady", "jumping"):
        with monkeypatch.context() as patch:
            clock = Clock(patch)
            first = Jumping(spec, tmp_path / name, items)
            first.clock = clock if name == "jumping" else None
            assert first.run(blocks=40) == 0
            assert clock.back == (HOUR if name == "jumping" else timedelta())
            again = Bench(spec, tmp_path / name, items)
            ended = [one.recipe.key for one in again.finished]
            assert ended == [one.recipe.key for one in first.finished]
            again.run()
            recipes = filter(None, map(recipe_of, in_order_of_end(again.trials())))
            in_order = [recipe.key for recipe in recipes]
            assert in_order == [one.recipe.key for one in again.finished]
            assert all(one.started <= one.ended for one in (*first.finished, *again.finished))
            board = build_leaderboard(spec, again.outcomes)
            found[name] = [(r.label, r.search_score, r.score) for r in board.rows], in_order
    assert found["steady"] == found["jumping"]


def test_awas_first_results_of_a_generation_count_also_after_a_jump(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of eight results of the first generation the six that came first make the second."""
    drawn = []
    for back in (timedelta(), HOUR):
        with monkeypatch.context() as patch:
            clock = Clock(patch)
            study = optuna.create_study(direction="maximize", sampler=AwaSampler(0))
            trials = [study.ask() for _ in range(8)]
            for trial in trials:
                trial.suggest_float("x", 0, 2)
            for place, trial in enumerate(trials):
                if place == 4:
                    clock.back = back
                study.tell(trial, float(place))
            drawn.append([study.ask().suggest_float("x", 0, 2) for _ in range(4)])
    assert np.array_equal(*drawn)
