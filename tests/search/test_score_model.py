"""Predictions of candidates' scores: honest about their errors, and the same whatever was kept."""

from __future__ import annotations

import numpy as np
import pytest

from cabs_search.search import surface
from cabs_search.search.surface import Answers, ScoreModel

ITEMS, BLOCKS = 60, 4


def made(
    seed: int, candidates: int, blocks: int = BLOCKS
) -> tuple[np.ndarray, list[dict[str, Answers]], np.ndarray]:
    """Return λ, each candidate's answers to one of the blocks of two tasks' items, true scores."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (candidates, 2))
    answers, true = [dict[str, Answers]() for _ in x], np.zeros(candidates)
    for task, peak in (("a", 0.5), ("b", -0.2)):
        easy = random.normal(2, 1.5, ITEMS)
        odds = easy - 2 * ((x - peak) ** 2).sum(axis=1)[:, None]
        odds = odds + random.normal(0, 0.4, odds.shape)
        true += (odds > 0).mean(axis=1) / 2
        for row in range(candidates):
            scored = np.arange(ITEMS) % blocks == row % blocks
            scores = np.where(scored, odds[row] > 0, np.nan)
            responses = np.where(scored, odds[row], np.nan)
            answers[row][task] = Answers(scores=scores, responses=responses)
    return x, answers, true


def test_ninety_in_a_hundred_predictions_hold() -> None:
    covered = []
    for seed in range(8):
        x, answers, true = made(seed, 140)
        model, none = ScoreModel(tasks=["a", "b"]), np.zeros((140, 0))
        model.fit(x[:40], none[:40], answers[:40], range(40))
        found = model.predict(x[40:], none[40:])
        deviation = np.hypot(found.deviation, found.noise)
        covered += list(np.abs(found.mean - true[40:]) < surface.NORMAL_90 * deviation)
        assert found.mean == pytest.approx(model.predict_means(x[40:], none[40:]))
        assert np.corrcoef(found.mean, true[40:])[0, 1] > 0.9
    assert 0.85 < np.mean(covered) < 0.97


def test_surfaces_are_fitted_again_only_as_answers_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    x, answers, _ = made(0, 61)
    none, fits = np.zeros((61, 0)), list[int]()
    fit = surface.surface.fit
    monkeypatch.setattr(
        surface.surface, "fit", lambda *given: (fits.append(len(given[0])), fit(*given))[1]
    )
    model = ScoreModel(tasks=["a", "b"])
    model.fit(x[:60], none[:60], answers[:60], range(60))
    before = model.predict(x, none)
    # in another order, with one more: a 60th of new answers
    order = [60, *range(60)]
    model.fit(x[order], none, [answers[i] for i in order], order)
    assert fits == [60, 60], "once for each task"
    assert np.abs(model.predict(x, none).mean - before.mean).max() < 0.02
    monkeypatch.setattr(surface, "GROWTH_OF_ANSWERS", 0.0)
    model.fit(x[order], none, [answers[i] for i in order], order)
    assert len(fits) == 4


def test_candidates_at_workers_count_as_if_they_scored_what_is_predicted() -> None:
    x, answers, _ = made(1, 40)
    none = np.zeros((40, 0))
    model = ScoreModel(tasks=["a", "b"])
    model.fit(x[:30], none[:30], answers[:30], range(30))
    before, after = model.predict(x[30:], none[30:]), None
    after = model.expecting(x[30:], none[30:]).predict(x[30:], none[30:])
    assert after.mean == pytest.approx(before.mean, abs=1e-9)
    assert (after.deviation < before.deviation).all()
    assert model.predict(x[30:], none[30:]).deviation == pytest.approx(before.deviation)


def test_a_metric_that_is_no_mean_corrects_what_items_say() -> None:
    x, answers, true = made(2, 60, blocks=1)
    none = np.zeros((60, 0))
    higher = [
        {
            name: Answers(scores=o.scores, responses=o.responses, metric=score + 0.1)
            for name, o in one.items()
        }
        for one, score in zip(answers, true, strict=True)
    ]
    model = ScoreModel(tasks=["a", "b"])
    model.fit(x[:40], none[:40], higher[:40], range(40))
    gap = model.predict_means(x[40:], none[40:]) - true[40:]
    assert gap.mean() == pytest.approx(0.1, abs=0.03)


def test_a_candidate_that_came_after_the_fit_is_judged_by_its_own_scores() -> None:
    x, answers, _ = made(4, 61)
    none, model = np.zeros((61, 0)), ScoreModel(tasks=["a", "b"])
    model.fit(x[:60], none[:60], answers[:60], range(60))
    fitted, task = model._surfaces["a"], [one["a"] for one in answers]
    wrong = Answers(scores=task[60].scores * 0.0, responses=task[60].responses)
    features, _ = surface.surface.polynomial(x, none)
    found = surface._unexplained(features, [*task[:60], wrong], range(61), fitted)
    scored = np.isfinite(wrong.scores)
    expected = -fitted.surface.scores(features[60:])[0, scored].mean()
    assert found.residual[60] == pytest.approx(expected)
    seen = task[0].scores - fitted.surface.left_out[0]
    assert found.residual[0] == pytest.approx(np.nanmean(seen)), "its prediction left it out"
