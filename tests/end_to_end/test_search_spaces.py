"""The papers' studies that ship, run on two-layer stand-ins of their models."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cabs_search.cli.main import main
from cabs_search.cluster.driver import stop_ray
from cabs_search.reporting.terminal.comparison import comparison_text
from cabs_search.search.candidates import Candidates
from cabs_search.spec.load import load, parse
from cabs_search.workflows.compare import compare
from cabs_search.workflows.run import run
from tests.support.standins import MAX_LENGTH, make_base, make_expert, one_thread, rows_of

FOLDER = Path(__file__).parents[2] / "search_spaces"
SHIPPED = sorted(
    path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("quickstart")
)
STUDIES = [name for name in SHIPPED if name.startswith(("gpt2", "roberta"))]
"""Studies whose data have stand-ins."""
THREE_CLASSES = ("mnli",)
OVER = {
    "roberta-four": ["order"],
    "roberta-nm": ["nm"],
    "roberta-density": ["method=magnitude,cabs", "density"],
}
"""Axes of the studies that are made to be compared."""
QUICK = ("gpt2-six",)
"""Studies that run each time."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """Start one Ray for all studies."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 << 20, **quiet
    )
    yield
    stop_ray()


def stand_in(root: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Replace models and data of a study by small ones, and its budget; keep all else."""
    architecture = "gpt2" if "gpt2" in values["base"] else "roberta"
    base = root / architecture
    if not base.exists():
        make_base(base, architecture)
    for seed, (name, task) in enumerate(values["tasks"].items(), 1):
        kind, labels = task.get("kind", "classification"), 3 if name in THREE_CLASSES else 2
        pair = isinstance(task["text"], list)
        expert = root / f"{architecture}-{name}"
        if not expert.exists():
            make_expert(expert, base, architecture, kind, seed, labels=labels, pair=pair)
        rows = [
            in_columns_of(task, row, i)
            for i, row in enumerate(rows_of(kind, seed, 50, labels=labels, pair=pair))
        ]
        data = root / f"{architecture}-{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values["experts"][name] = str(expert)
        task |= {
            "dataset": {"json": str(data)},
            "max_length": MAX_LENGTH,
            "search": {"items": 16},
            "confirm": {"items": 16},
        }
        task.pop("split")
        if "stride" in task:
            task["stride"] = 12
    for baseline in values.get("baselines", {}).values():
        baseline["lambda"] = baseline["lambda"][:2]
    count = sum(len(b["lambda"]) for b in values.get("baselines", {}).values())
    values["search"] |= {"trials": count + 2, "confirm": 1, "block": 16, "workers": 2}
    return values | {"base": str(base), "device": "cpu"}


def in_columns_of(task: dict[str, Any], row: dict[str, Any], number: int) -> dict[str, Any]:
    """Put a stand-in's row under the columns that the study reads."""
    if task.get("kind"):
        return {task["group"]: f"title {number}"} | row if "group" in task else row
    columns = task["text"] if isinstance(task["text"], list) else [task["text"]]
    return dict(zip([*columns, task.get("label", "label")], row.values(), strict=True))


@pytest.mark.parametrize(
    "study",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STUDIES],
)
def test_a_study_runs_on_stand_ins(study: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(root / "cache"))
    with one_thread():
        spec = parse(stand_in(root, yaml.safe_load((FOLDER / f"{study}.yaml").read_text())))
    if study in OVER:
        found = compare(spec, OVER[study], root / f"out-{study}", say=lambda _: None)
        assert all(line.row is not None for line in found.lines), [
            line.failure for line in found.lines
        ]
        assert found.reference is not None
        return
    result = run(spec, root / f"out-{study}", say=lambda _: None)
    board = result.leaderboard
    assert board.candidates == spec.search.trials
    scores = {row.label: row.score for row in board.rows}
    assert scores["ideal"] > scores["base"], "the experts have learned their tasks"
    assert set(board.row("best found").tasks) == set(spec.tasks)


def test_wanda_and_sparsegpt_know_gpt2s_layers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are stored as [in, out], and its config may name no pad token."""
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(root / "cache"))
    with one_thread():
        values = stand_in(root, yaml.safe_load((FOLDER / "gpt2-cola-mrpc.yaml").read_text()))
    for expert in values["experts"].values():
        config = Path(expert) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": None}))
    found = compare(
        parse(values), ["method=wanda,sparsegpt"], root / "out-gpt2", say=lambda _: None
    )
    assert all(line.row is not None for line in found.lines), [line.failure for line in found.lines]
    assert "wanda: 20 of 28 tensors" in comparison_text(found)


@pytest.mark.parametrize("study", SHIPPED)
def test_a_study_is_planned_without_a_network(
    study: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", study, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["spec"]["name"] == study
    assert found["candidates"] >= 60 or "density" in study or "nm" in study
    assert "no such folder, and the hub did not give it" in found["unreachable"]


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_what_the_paper_says(study: str) -> None:
    spec = load(study, locations=False)
    assert (
        spec.base
        == {"roberta": "FacebookAI/roberta-base", "gpt2": "openai-community/gpt2"}[
            study.split("-")[0]
        ]
    )
    if "density" in study:
        assert spec.space.densities == (0.1, 0.25, 0.5, 0.75)
    elif study == "roberta-nm":
        assert {n / m for n, m in spec.space.nm} == {0.25}
        assert {(16, 64), (32, 128), (64, 256)} < set(spec.space.nm)
    else:
        assert spec.space.nm == ((3, 32),)
    if study == "roberta-four":
        assert ["".join(name[0] for name in order).upper() for order in spec.orders] == [
            "CSRM",
            "SCMR",
            "RCMS",
            "MRSC",
        ]
    for name, value in (
        ("cabs", 1.74),
        ("task-arithmetic", 0.48),
        ("dare", 0.46),
        ("magnitude", 1.07),
    ):
        range_ = spec.space.range_of(name)
        assert range_.low < value < range_.high, "the published λ is within what is searched"
        assert Candidates.of(spec).method(name).name == name


def test_the_pair_of_7b_models_is_what_the_paper_says() -> None:
    spec = load("mistral-7b-pair", locations=False)
    assert spec.orders == (("west", "wild"), ("wild", "west"))
    assert spec.space.nm == ((64, 256),)
    range_ = spec.space.range_of("cabs")
    assert (range_.step, range_.low < 1.2 < range_.high) == (0.1, True)
    shots = {name: task.dataset.num_fewshot for name, task in spec.tasks.items()}
    last = {"mmlu": 5, "gsm8k": 5}
    assert shots == {"arc": 25, "hellaswag": 10, "truthfulqa": None, "winogrande": 5} | last
    assert [name for name, task in spec.tasks.items() if task.dataset.allow_test] == ["gsm8k"]
