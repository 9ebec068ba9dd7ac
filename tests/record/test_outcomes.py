"""The record: blocks written once, results read back bit for bit, a study it is tied to."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cabs_search.kinds.base import Item, Outcome
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.record.entries import Block, Bound
from cabs_search.record.outcomes import Outcomes
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import SPLITS, Items, SplitName
from tests.conftest import EXPERTS, pico_values

COUNT = 6
WEIGHTS = {"base": "b"}


@pytest.fixture
def spec(pico: Path) -> Spec:
    return parse(pico_values(pico))


@pytest.fixture
def items(spec: Spec) -> dict[SplitName, dict[str, Items]]:
    """Six items of each task, two in a group."""
    rows = tuple(Item(sequences=({"input_ids": [i]},), label=i % 2) for i in range(COUNT))
    names = tuple(map(str, range(COUNT)))
    groups = ("a", "b", "a", "c", "d", "e")
    return {
        split: {
            name: Items(task, names, rows, {"input_ids": 0}, groups if name == "mood" else ())
            for name, task in spec.tasks.items()
        }
        for split in SPLITS
    }


@pytest.fixture
def outcomes(spec: Spec, items: Any, tmp_path: Path) -> Outcomes:
    outcomes = Outcomes(tmp_path / "outcomes", spec.tasks)
    outcomes.bind(spec, items, WEIGHTS)
    return outcomes


def recipe_of(value: float) -> Recipe:
    method = make_method("task-arithmetic", EXPERTS)
    return make_recipe(method, dict.fromkeys(EXPERTS, value))


def block_of(recipe: Recipe, number: int) -> Block:
    """Half of the items of every task, all predicted 1."""
    draw = np.random.default_rng(number)
    predictions = np.ones(COUNT // 2, dtype=np.int64)
    of_tasks = {
        name: Outcome(*draw.random((2, COUNT // 2), dtype=np.float32), predictions)
        for name in EXPERTS
    }
    return Block(
        recipe=recipe, split="search", number=number, outcomes=of_tasks, evaluate_seconds=0.3
    )


def test_results_come_back_bit_for_bit_in_the_order_of_items(outcomes: Outcomes) -> None:
    recipe, blocks = recipe_of(0.5), [block_of(recipe_of(0.5), number) for number in (1, 0)]
    for block in blocks:
        assert outcomes.scored_one("search", recipe) is None
        outcomes.record([block])
    scored = outcomes.scored("search")[recipe.key]
    assert scored.recipe == recipe
    assert scored.evaluate_seconds == pytest.approx(0.6)
    assert (scored.items, scored.score) == (3 * COUNT, 0.5)
    for name in EXPERTS:
        for field in ("scores", "losses", "predictions"):
            parts = [getattr(block.outcomes[name], field) for block in reversed(blocks)]
            assert np.array_equal(getattr(scored.tasks[name], field), np.concatenate(parts))
    assert outcomes.done_blocks(recipe, "search") == {0, 1}
    assert outcomes.scored("confirm") == {}


def test_recipes_come_in_the_order_of_their_completion(outcomes: Outcomes) -> None:
    first, second = recipe_of(0.5), recipe_of(1.0)
    with outcomes.kept_open():
        for recipe, number in ((first, 0), (second, 0), (second, 1), (first, 1)):
            outcomes.record([block_of(recipe, number)])
    assert list(outcomes.scored("search")) == [second.key, first.key]
    assert list(outcomes.scored("search", lambda recipe: recipe == first)) == [first.key]


def test_a_block_is_recorded_once_or_nothing_is(outcomes: Outcomes) -> None:
    outcomes.record([block_of(recipe_of(0.5), 0)], {"materialize": 1.0})
    before = outcomes.spent()
    with pytest.raises(sqlite3.IntegrityError):
        outcomes.record(
            [block_of(recipe_of(1.0), 0), block_of(recipe_of(0.5), 0)], {"materialize": 1.0}
        )
    assert outcomes.spent() == before
    assert outcomes.done_blocks(recipe_of(1.0), "search") == set()


def test_amounts_add_up(outcomes: Outcomes) -> None:
    for number in (0, 1):
        outcomes.record([block_of(recipe_of(0.5), number)], {"materialize": 1.5})
    spent = outcomes.spent()
    assert spent["materialize"] == 3.0
    assert spent["evaluate search"] == pytest.approx(0.6)
    assert spent["wall"] > 0


def test_items_their_labels_and_groups_are_known(
    outcomes: Outcomes, items: Any, spec: Spec
) -> None:
    mine = items["search"]["mood"]
    assert outcomes.bound()[0] == Bound(
        task="mood", split="search", digest=mine.digest, items=COUNT
    )
    assert len(outcomes.bound()) == 2 * len(spec.tasks)
    assert outcomes.labels("confirm")["pair"].tolist() == [0, 1] * (COUNT // 2)
    assert outcomes.clusters("search")["mood"].tolist() == [0, 1, 0, 2, 3, 4]
    assert outcomes.clusters("search")["pair"].tolist() == list(range(COUNT))


def test_the_record_keeps_its_id(outcomes: Outcomes, spec: Spec) -> None:
    again = Outcomes(outcomes.path.parent, spec.tasks)
    assert again.study_id() == outcomes.study_id()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"search": {"block": 9}}, "search.block"),
    ],
)
def test_another_study_is_refused(
    outcomes: Outcomes, items: Any, pico: Path, change: dict[str, Any], key: str
) -> None:
    other = parse(pico_values(pico) | change)
    with pytest.raises(ValueError, match=rf"holds another study \({key} differs\)"):
        Outcomes(outcomes.path.parent, other.tasks).bind(other, items, WEIGHTS)


def test_other_weights_are_refused(outcomes: Outcomes, items: Any, spec: Spec) -> None:
    outcomes.bind(spec, items, WEIGHTS)
    with pytest.raises(ValueError, match=r"\(weights of base differs\)"):
        outcomes.bind(spec, items, {"base": "other"})


def test_a_record_of_another_version_and_a_damaged_one_are_refused(
    outcomes: Outcomes, spec: Spec
) -> None:
    with closing(sqlite3.connect(outcomes.path)) as db:
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(ValueError, match="a record must have form 2, but got 1"):
        Outcomes(outcomes.path.parent, spec.tasks)
    outcomes.path.write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match="outcomes.sqlite: cannot be read"):
        Outcomes(outcomes.path.parent, spec.tasks)
