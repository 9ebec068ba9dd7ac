"""Samplers: one from the outside, and a name that nobody knows."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from cabs_search.search import space
from cabs_search.search.candidates import Candidates
from cabs_search.search.proposals import Proposer
from cabs_search.search.samplers.registry import SAMPLERS
from cabs_search.spec.load import parse
from cabs_search.workflows.prepare import prepare
from tests.conftest import pico_values


def test_a_sampler_is_a_function_and_a_line(pico: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def quasi_random(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
        made.append((seed, startup_trials))
        return optuna.samplers.RandomSampler(seed=seed)

    monkeypatch.setitem(SAMPLERS, "quasi-random", quasi_random)
    spec = parse(pico_values(pico, sampler="quasi-random"))
    candidates = Candidates.of(spec)
    proposal = Proposer(candidates, spec.search.sampler, earlier_trials=3).propose()
    assert made == [(3, 8)]
    assert space.params_of(candidates, proposal.recipe) == pytest.approx(proposal.trial.params)


def test_an_unknown_sampler_is_refused_before_anything_is_written(
    pico: Path, tmp_path: Path
) -> None:
    spec = parse(pico_values(pico, sampler="luck"))
    with pytest.raises(
        ValueError, match="^search.sampler: Input should be 'tpe' or 'random', but got 'luck'$"
    ):
        prepare(spec, tmp_path / "out", None, lambda _: None)
    assert not (tmp_path / "out").exists()
