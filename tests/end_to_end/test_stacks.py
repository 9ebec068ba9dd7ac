"""A search over stacks of layers by real workers: it goes on where it ended, and is exported."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from mlflow import MlflowClient
from transformers import AutoModel, AutoModelForSequenceClassification

from cabs_search.cli.main import main
from cabs_search.cluster.driver import stop_ray
from cabs_search.merging.stack import Stack, stack_text
from cabs_search.scoring.forward import evaluate
from cabs_search.spec.load import parse
from cabs_search.tasks.load import load_study_items
from cabs_search.workflows.export import export_trial
from cabs_search.workflows.run import run
from tests.conftest import EXPERTS, pico_values, write_spec
from tests.support.records import record_of


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    """Start one Ray for both runs."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 << 20, **quiet
    )
    yield
    stop_ray()


def values_of(pico: Path, trials: int) -> dict[str, Any]:
    values = pico_values(pico, sampler="auto", trials=trials, confirm=1)
    values["space"] = {
        "method": "task-arithmetic",
        "lambda": {"low": 0.5, "high": 0.5},
        "stack": {"by": "depth", "scale": {"low": 0.5, "high": 1.5, "step": 0.5}},
    }
    return values | {"baselines": {"task-arithmetic": {"lambda": [0.5]}}}


def test_stacks_are_searched_recorded_and_exported(
    pico: Path, tmp_path: Path, cache: Path, workers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    first = run(parse(values_of(pico, 6)), folder, say=lambda _: None)
    assert len(first.leaderboard.tried) == 6
    file = write_spec(tmp_path / "pico.yaml", values_of(pico, 11))
    assert main(["run", str(file), "--output", str(folder)]) == 0
    outcomes = record_of(folder)
    scored = list(outcomes.scored("search").values())
    stacks: list[Stack] = [one.recipe.stack for one in scored]
    assert len(scored) == 11
    assert stacks.count(()) == 1, "the baseline, which is the merge's own start as well"
    assert len(set(stacks)) == 11
    runs = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_runs(["1"])
    in_mlflow = {r.data.params["stack"] for r in runs if "stack" in r.data.params}
    assert in_mlflow == {stack_text(stack) for stack in stacks if stack}
    longest = max(scored, key=lambda one: len(one.recipe.stack))
    assert len(longest.recipe.stack) > 2
    page = (folder / "report.html").read_text()
    assert stack_text(stacks[1]) in page
    number = next(
        r.data.tags["cabs_search.trial"]
        for r in runs
        if r.data.tags.get("recipe") == longest.recipe.key
    )
    recipe, to = export_trial(folder, number, tmp_path / "to")
    assert recipe == longest.recipe
    assert AutoModel.from_pretrained(to).config.num_hidden_layers == len(recipe.stack)
    items = load_study_items(parse(values_of(pico, 11)))["search"]
    for task in EXPERTS:
        model = AutoModelForSequenceClassification.from_pretrained(to / "heads" / task).eval()
        found = evaluate(model, items[task], np.arange(len(items[task])), torch.device("cpu"))
        recorded = longest.tasks[task]
        assert found.losses == pytest.approx(recorded.losses, abs=1e-5)
        assert found.predictions.tolist() == recorded.predictions.tolist()
    capsys.readouterr()
    export = ["export", str(folder), "--to", str(tmp_path / "x"), "--trial", number]
    assert main([*export, "--adapter", "2"]) == 2
    assert "--adapter: a stack of layers is no adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ({"layers": 3}, "space.stack.layers: must be the model's number, 2, but got 3"),
        ({"repeat": 16, "layers": 2}, ""),
    ],
)
def test_a_plan_counts_layers(
    pico: Path, tmp_path: Path, cache: Path, capsys: Any, stack: Any, message: str
) -> None:
    values = values_of(pico, 5)
    values["space"]["stack"] = stack
    status = main(["plan", str(write_spec(tmp_path / "p.yaml", values))])
    out, err = capsys.readouterr()
    assert (status, message in err) == (2 if message else 0, True)
    if not message:
        assert "5 of about 10^39 in the space" in out
        assert "sampler: tpe" in out
