"""The quickstart's data and experts: real text and a real encoder from installed packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

import cabs_search
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.family import Family
from cabs_search.quickstart import data
from cabs_search.quickstart.experts import BASE, EXPERTS, train
from cabs_search.spec.locations import locate


@pytest.mark.parametrize(
    "dataset", [data.topic, data.headline, data.lead, data.tweets], ids=lambda f: f.__name__
)
def test_training_and_heldout_rows_have_no_group_in_common(
    dataset: Callable[[data.Split], Dataset],
) -> None:
    train_rows, heldout = dataset("train"), dataset("heldout")
    assert not set(train_rows["group"]) & set(heldout["group"])
    assert min(len(train_rows), len(heldout)) > 900
    for rows in (train_rows, heldout):
        counts = np.bincount(list(rows["label"]))
        assert len(counts) == rows.features["label"].num_classes
        assert counts.min() > 0.1 * counts.sum()


def test_every_topic_is_there_and_articles_stand_once() -> None:
    rows = [row for split in ("train", "heldout") for row in data.topic(split)]
    assert {data.TOPICS[row["label"]] for row in rows} == set(data.TOPICS)
    assert len(rows) == len({row["group"] for row in rows}) > 2000


def test_a_headline_goes_with_each_label_equally_often() -> None:
    """Neither the headline nor the body alone says the label."""
    rows = data.headline("heldout")
    bodies: dict[str, list[int]] = {}
    for row in rows:
        bodies.setdefault(row["body"], []).append(row["label"])
    assert all(sorted(labels) == [0, 1] for labels in bodies.values())


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'heldout', but got 'test'"):
        data.tweets("test")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tune two experts of the real base on a few real items."""
    root = tmp_path_factory.mktemp("experts")
    for expert in EXPERTS[0], EXPERTS[3]:
        short = replace(expert, items=64, max_length=16, epochs=1)
        train(short, locate(BASE), root / expert.name, seed=0, progress=lambda _: None)
    return {path.name: path for path in root.iterdir()}


def test_an_expert_moves_its_layers_and_nothing_else(two: dict[str, Path]) -> None:
    family = Family.open(locate(BASE), two)
    moved = {
        name for name in family.alignment.shared if family.numel(name) and _differs(family, name)
    }
    assert moved
    assert all(name.startswith("encoder.layer.") for name in moved)


def _differs(family: Family, name: str) -> bool:
    return any(
        not torch.equal(e.read(name), family.base.read(name)) for e in family.experts.values()
    )


def test_an_expert_is_made_alike_every_time(two: dict[str, Path], tmp_path: Path) -> None:
    short = replace(EXPERTS[3], items=64, max_length=16, epochs=1)
    train(short, locate(BASE), tmp_path / "again", seed=0, progress=lambda _: None)
    again, first = Checkpoint(tmp_path / "again"), Checkpoint(two["lead"])
    for name in first.names:
        assert torch.allclose(again.read(name), first.read(name), atol=1e-5), name


def test_real_checkpoints_merge_and_load(two: dict[str, Path]) -> None:
    merged = cabs_search.merge(locate(BASE), two, dict.fromkeys(two, 1.5), nm=(3, 32))
    model = AutoModelForSequenceClassification.from_pretrained(two["topic"])
    names = {f"bert.{name}" for name in merged}
    assert names <= model.state_dict().keys()
    family = Family.open(locate(BASE), two)
    changed = sum(int((merged[n] != family.base.read(n)).sum()) for n in merged)
    assert 0.12 < changed / sum(family.numel(n) for n in merged if n.startswith("encoder")) < 0.16


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_quickstart(tmp_path: Path) -> None:
    """Experts beat the majority class by 15 points; the merge keeps more of that than the base."""
    environment = os.environ | {"CABS_SEARCH_CACHE": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-m",
        "cabs_search.cli",
        "quickstart",
        "--output",
        str(tmp_path / "out"),
        "--json",
    ]
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1700, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    board = json.loads(found.stdout)
    assert board["candidates"] >= 8, "baselines, and what is recommended"
    assert board["refinement"]["levels"]
    rows = {row["label"]: row for row in board["rows"]}
    for expert in EXPERTS:
        labels = np.bincount(list(expert.dataset("heldout")["label"]))
        assert (
            rows[f"expert {expert.name}"]["tasks"][expert.name] > labels.max() / labels.sum() + 0.15
        )
    for label in ("best shared-λ task-arithmetic", "best shared-λ cabs", "recommended"):
        assert rows["base"]["score"] + 0.05 < rows[label]["score"] < rows["ideal"]["score"]
    assert board["verdict"]
    assert board["tie_set"]["labels"]
