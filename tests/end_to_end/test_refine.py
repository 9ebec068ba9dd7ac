"""Refinement of λ by real workers."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from cabs_search.record.evaluations import Notes
from cabs_search.record.folder import StudyFolder
from cabs_search.record.outcomes import Outcomes
from cabs_search.spec.load import parse
from cabs_search.workflows.export import export_trial
from cabs_search.workflows.run import run
from tests.conftest import pico_values


@pytest.mark.slow
def test_one_worker_and_four_refine_alike(pico: Path, cache: Path, tmp_path: Path) -> None:
    found = {}
    for workers in (1, 4):
        # the baselines, of which the best is the start
        refine = {"steps": 3, "levels": ["expert", "tensor"]}
        values = pico_values(pico, trials=4, workers=workers, confirm=1, refine=refine)
        spec, folder = parse(values), tmp_path / str(workers)
        result = run(spec, folder, say=lambda _: None)
        outcomes = Outcomes(StudyFolder(folder).outcomes, spec.tasks, must_exist=True)
        note = Notes(outcomes).found
        assert note is not None
        assert "error" not in note
        found[workers] = [level["recipe"] for level in note["levels"]]
        paths = [path for level in note["levels"] for path in level["paths"]]
        assert all(min(path) < path[0] for path in paths), "the gradient leads downhill"
        assert result.leaderboard.refinement is not None
        page = html.unescape((folder / "report.html").read_text())
        assert result.leaderboard.refinement.text in page
    assert found[1] == found[4]
    exported, _ = export_trial(folder, "best", tmp_path / "best")
    chosen = result.leaderboard.chosen
    assert chosen is not None
    assert exported.key == chosen.key
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"{len(exported.lambdas) // 3} λ from" in card
    kept = json.loads((tmp_path / "best" / "recipe.json").read_text())
    assert len(kept["lambda"]) == len(exported.lambdas) > 60
