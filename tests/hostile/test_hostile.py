"""Input from strangers: one line and status 2, or a normal result; nothing runs or is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cabs_search.common import patterns
from tests.hostile.changes import RECIPES, TARGETS
from tests.hostile.named_files import ADAPTERS, CHECKPOINTS, CONFIGS, INDEXES, PICKLES, STUDIES
from tests.hostile.named_specs import DATA, SPECS, field
from tests.support.hostile import House

NAMED = SPECS | DATA | CHECKPOINTS | PICKLES | INDEXES | CONFIGS | ADAPTERS | STUDIES
FEW = 8
"""Changed inputs of each kind; ``make fuzz`` tries 25,000."""


@pytest.fixture(scope="module")
def house(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CABS_SEARCH_CACHE", str(root / "cache"))
        yield House(root, pico)


def test_what_is_valid_is_taken(house: House) -> None:
    good = [
        house.plan(house.spec(house.values)),
        *(house.merge(house.fresh(what)) for what in ("model", "shards", "adapter")),
        house.report(house.fresh("study")),
        house.status(house.fresh("study")),
        house.export(house.fresh("study")),
        house.vectors(house.spec(house.values)),
        *(house.convert(recipe.encode(), "mergekit") for recipe in RECIPES[1:]),
        *(house.convert(recipe.encode(), "recipe") for recipe in RECIPES),
    ]
    ends = [(verdict.status, verdict.wrong) for verdict in good]
    assert ends == [(0, "")] * len(good), [verdict.lines for verdict in good]


def test_there_are_many() -> None:
    parts = (SPECS, DATA, CHECKPOINTS, PICKLES, INDEXES, CONFIGS, ADAPTERS, STUDIES)
    assert len(NAMED) == sum(map(len, parts)), "two of one name"
    assert len(NAMED) >= 150


@pytest.mark.parametrize("name", NAMED)
def test_named_input_meets_one_line(house: House, name: str) -> None:
    act, message = NAMED[name]
    verdict = act(house)
    assert (verdict.status, verdict.wrong) == (2, ""), verdict.lines
    assert message in verdict.lines[0]
    assert len(verdict.lines[0]) < 3000
    assert not (house.here / "canary").exists(), "a payload ran"
    assert not house.out.exists(), "nothing is half-written"


def test_slow_patterns_are_stopped(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.5)
    act, _ = field("space.lambda.groups", {"a": "(.+)+!", "b": "."}, "")
    verdict = act(house)
    assert (verdict.status, verdict.wrong) == (2, "")
    assert "space.lambda.groups: a regular expression" in verdict.lines[0]
    assert patterns.slow_pattern(["a+", "(.+)+!", "."], ["x" * 60]) == "(.+)+!"
    assert patterns.slow_pattern([r"layer\.\d+\.", "."], ["layer.1.x"]) is None


def test_code_of_a_model_never_runs(house: House) -> None:
    """Nor is anybody asked at the terminal whether it may."""
    folder = house.fresh("model")
    (folder / "evil.py").write_text("open('canary', 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        values |= {"model_type": "evil", "tokenizer_class": "Evil"}
        classes = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        (folder / name).write_text(json.dumps(values | {"auto_map": classes}))
    base = shutil.copytree(house.valid / "base", house.work / "base")
    shutil.copy(folder / "config.json", base)
    values = house.values | {"base": str(base), "experts": {"mood": str(folder)}, "baselines": {}}
    values |= {"tasks": {"mood": house.values["tasks"]["mood"]}, "space": {}}
    path = house.root / "evil.yaml"
    path.write_text(yaml.safe_dump(values))
    verdict = house.plan(path)
    assert (verdict.status, verdict.wrong) == (2, "")
    assert "experts.mood: " in verdict.lines[0]
    assert "cannot be read" in verdict.lines[0]
    assert not (house.here / "canary").exists()


@pytest.mark.parametrize("kind", TARGETS)
def test_changed_input_meets_one_line_or_is_taken(house: House, kind: str) -> None:
    @settings(
        max_examples=FEW, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def run(data: Any) -> None:
        verdict = data.draw(TARGETS[kind](house))()
        assert not verdict.wrong, verdict.lines

    run()
