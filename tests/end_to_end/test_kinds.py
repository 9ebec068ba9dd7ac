"""Whole runs of every kind: train, merge, search with Ray, export, and predict as recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from mlflow import MlflowClient

from cabs_search.results.leaderboard import Leaderboard, read_leaderboard
from cabs_search.scoring.forward import evaluate
from cabs_search.spec.load import load
from cabs_search.tasks.load import load_study_items
from cabs_search.tracking.server import default_uri
from cabs_search.workflows.export import export_trial
from tests.conftest import write_spec
from tests.support.records import record_of
from tests.support.served import served
from tests.support.standins import fields_of, make_base, make_expert, one_thread, write_data

FAMILIES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "roberta": {
        "squad": ("question-answering", {}),
        "race": ("multiple-choice", {}),
        "stsb": ("regression", {}),
        "ner": ("token-classification", {}),
        "rte": ("classification", {"pair": True}),
    },
    "gpt2": {
        "sst2": ("classification", {}),
        "mnli": ("classification", {"pair": True, "labels": 3}),
    },
    "llama": {
        "copa": ("choices-by-likelihood", {}),
        "wikitext": ("language-modeling", {}),
        "lambada": ("greedy-continuation", {}),
        "gsm8k": ("generation", {}),
    },
}
CHANGES: dict[str, dict[str, Any]] = {
    "ner": {"metric": "f1", "metric_arguments": {"average": "macro"}},
    "sst2": {"metric": "matthews_correlation"},
}
TRIALS = 6


def make_values(root: Path, architecture: str) -> dict[str, Any]:
    """Make a family's base, experts and data; return the spec that searches it."""
    base = make_base(root / "base", architecture)
    experts, tasks = {}, {}
    for seed, (name, (kind, options)) in enumerate(FAMILIES[architecture].items(), 1):
        experts[name] = str(make_expert(root / name, base, architecture, kind, seed, **options))
        suffix = "parquet" if seed % 2 else "json"
        rows = write_data(root / f"{name}.{suffix}", kind, seed, 64, **options)
        fields = fields_of(kind, pair=options.get("pair", False)) | CHANGES.get(name, {})
        tasks[name] = {
            "dataset": {suffix: str(rows)},
            "search": {"items": 24},
            "confirm": {"items": 24},
            **fields,
        }
    return {
        "name": architecture,
        "base": str(base),
        "experts": experts,
        "tasks": tasks,
        "space": {"nm": "2:8", "lambda": {"low": 0.5, "high": 2.0, "step": 0.1}},
        "baselines": {"task-arithmetic": {"lambda": [0.5]}},
        "search": {"sampler": "tpe", "trials": TRIALS, "block": 10, "workers": 2, "confirm": 2},
        "device": "cpu",
    }


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "llama")]


@pytest.fixture(scope="module", params=["roberta", *SLOW])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study."""
    root = tmp_path_factory.mktemp(request.param)
    spec = write_spec(root / "spec.yaml", make_values(root, request.param))
    command = [
        sys.executable,
        "-m",
        "cabs_search.cli",
        "run",
        str(spec),
        "--output",
        str(root / "out"),
    ]
    environment = os.environ | {"CABS_SEARCH_CACHE": str(root / "cache")}
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "Warning" not in found.stderr
    return root / "out"


@pytest.fixture(scope="module")
def board(study: Path) -> Leaderboard:
    return read_leaderboard(study)


def test_every_kind_is_searched_and_exported(
    study: Path, board: Leaderboard, tmp_path: Path
) -> None:
    spec = load(study / "spec.yaml")
    outcomes = record_of(study)
    assert board.candidates == TRIALS
    assert {"base", "ideal", "best found"} <= {row.label for row in board.rows}
    recipe, folder = export_trial(study, "best", tmp_path / "best")
    items, row = load_study_items(spec)["confirm"], board.chosen
    assert row is not None
    recorded = outcomes.scored("confirm")[recipe.key]
    for name, task in spec.tasks.items():
        auto = getattr(transformers, f"AutoModel{task.kind.head}")
        own = folder if task.kind.is_causal else folder / "heads" / name
        model = auto.from_pretrained(own).eval()
        with one_thread():
            found = evaluate(model, items[name], np.arange(24), torch.device("cpu"))
        said = recorded.tasks[name]
        if task.kind.predicts is float:
            assert found.predictions == pytest.approx(said.predictions, abs=1e-4)
        else:
            assert found.predictions.tolist() == said.predictions.tolist()
        assert found.losses == pytest.approx(said.losses, abs=1e-4)
        assert found.scores == pytest.approx(said.scores, abs=1e-4)
        assert task.measure.compute(said.predictions, items[name].labels) == row.tasks[name]
        assert outcomes.labels("confirm")[name].tolist() == items[name].labels.tolist()


def test_the_logged_model_says_what_is_on_record(study: Path) -> None:
    spec, client = load(study / "spec.yaml"), MlflowClient(default_uri(study))
    experiment = client.get_experiment_by_name(spec.name)
    (model,) = client.search_logged_models([experiment.experiment_id])
    for name, (found, recorded) in served(study, model.model_id).items():
        if spec.tasks[name].kind.predicts is float:
            assert found[0] == pytest.approx(recorded[0], abs=1e-4)
            assert found[1] == pytest.approx(recorded[1], abs=1e-4)
        else:
            assert found == recorded, name


def test_experts_are_better_than_the_base_at_their_own_kind(board: Leaderboard) -> None:
    """The losses too are on record; a trained expert alone lowers that of its task."""
    base = board.row("base")
    for name in base.tasks:
        expert = board.row(f"expert {name}")
        assert expert.losses[name] < base.losses[name]
        assert expert.tasks[name] > 0.5
        low, high = expert.task_intervals[name]
        assert low <= expert.tasks[name] <= high
        assert board.row("ideal").tasks[name] == expert.tasks[name]


def test_the_best_found_is_compared_with_the_baseline(board: Leaderboard) -> None:
    assert board.baseline == "best shared-λ task-arithmetic"
    reference = board.row(board.baseline)
    compared = [row for row in board.rows if row.role == "candidate" and row.key != reference.key]
    assert compared
    for row in compared:
        contrast = row.against["best baseline"]
        assert contrast.estimate == pytest.approx(row.score - reference.score)
        assert contrast.interval[0] <= contrast.estimate <= contrast.interval[1]
        assert 0 <= contrast.p_value <= contrast.p_holm <= 1
