"""Rows to items: splits that do not leak, labels, metrics, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sklearn.metrics import f1_score, matthews_corrcoef

from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task
from cabs_search.tasks.load import load_items
from tests.conftest import pico_values, write_rows


def spec_with(pico: Path, **changes: Any) -> Spec:
    """The pico spec with one task's fields changed."""
    values = pico_values(pico)
    values["tasks"]["mood"] |= changes
    return parse(values)


def duplicated_rows(split: str | None = None) -> Dataset:
    """Rows of few texts, many of them equal but for their case."""
    texts = [f"the cat {w}" for w in ("runs", "sits", "sleeps", "very good", "bad")] * 12
    return Dataset.from_dict(
        {
            "text": [
                f"{t} {'a ' * (i % 7)}".upper() if i % 2 else f"{t} {'a ' * (i % 7)}"
                for i, t in enumerate(texts)
            ],
            "label": [i % 2 for i in range(60)],
        }
    )


def named_splits(split: str) -> Dataset:
    """Two splits of the data with common rows."""
    start = 0 if split == "train" else 20
    return Dataset.from_dict(
        {
            "text": [
                f"good {'cat ' * (i // 8)}{'dog ' * (i % 8)}" for i in range(start, start + 40)
            ],
            "label": [0] * 40,
        }
    )


def grouped_rows() -> Dataset:
    return Dataset.from_dict(
        {
            "text": [f"good {'cat ' * (i % 10)}{'dog ' * (i // 10)}" for i in range(80)],
            "label": [0] * 80,
            "who": [i % 9 for i in range(80)],
        }
    )


READ: list[str] = []
"""Formats that were read."""


def as_pandas() -> Dataset:
    READ.append("pandas")
    return grouped_rows().with_format("pandas")


def two_splits() -> Any:
    return {"train": 1, "test": 2}


def long_rows() -> Dataset:
    return Dataset.from_dict(
        {"text": [f"{'good ' * 50} {'cat ' * i}" for i in range(60)], "label": [0] * 60}
    )


def infinite_labels() -> Dataset:
    return Dataset.from_dict({"text": ["good", "bad"], "label": [0.0, float("inf")]})


def broken() -> Dataset:
    raise KeyError("the file is gone")


def texts_of(spec: Spec, split: str) -> set[tuple[int, ...]]:
    return {tuple(row.sequences[0]["input_ids"]) for row in load_items(spec, "mood")[split].rows}


def test_equal_texts_never_stand_on_both_sides(pico: Path) -> None:
    spec = spec_with(
        pico, dataset={"callable": "tests.tasks.test_load:duplicated_rows"}, search={}, confirm={}
    )
    search, confirm = texts_of(spec, "search"), texts_of(spec, "confirm")
    assert search
    assert confirm
    assert not search & confirm


def test_groups_never_stand_on_both_sides(pico: Path) -> None:
    spec = spec_with(
        pico,
        dataset={"callable": "tests.tasks.test_load:grouped_rows"},
        group="who",
        search={},
        confirm={},
    )
    items = load_items(spec, "mood")
    rows = grouped_rows()
    ungrouped = load_items(
        spec_with(
            pico, dataset={"callable": "tests.tasks.test_load:grouped_rows"}, search={}, confirm={}
        ),
        "mood",
    )
    assert (
        len(items["search"]) + len(items["confirm"])
        == len(rows)
        == len(ungrouped["search"]) + len(ungrouped["confirm"])
    )
    by_key = {key: split for split in items for key in items[split].keys}
    from cabs_search.tasks.dataset import Row

    sides: dict[int, set[str]] = {}
    for text, label, who in zip(rows["text"], rows["label"], rows["who"], strict=True):
        sides.setdefault(who, set()).add(by_key[Row((text,), label, "").key])
    assert all(len(side) == 1 for side in sides.values())


def test_tables_are_read_as_values_and_once(pico: Path) -> None:
    found = []
    for name in ("grouped_rows", "as_pandas"):
        spec = spec_with(pico, dataset={"callable": f"{HERE}:{name}"}, group="who")
        found.append(texts_of(spec, "search"))
    assert found[0] == found[1]
    assert READ == ["pandas"], "both splits are parts of one"


def test_rows_in_both_named_splits_are_left_out_of_search(pico: Path) -> None:
    source = {"callable": "tests.tasks.test_load:named_splits"}
    spec = spec_with(
        pico, dataset=source, search={"split": "train"}, confirm={"split": "test"}, max_length=60
    )
    with pytest.warns(UserWarning, match="tasks.mood: 20 search rows are left out"):
        items = load_items(spec, "mood")
    assert (len(items["search"]), len(items["confirm"])) == (20, 40)
    assert not set(items["search"].keys) & set(items["confirm"].keys)


def test_items_are_the_same_every_time_and_change_with_the_seed(pico: Path) -> None:
    values = pico_values(pico)
    first, again = (load_items(parse(values), "mood") for _ in range(2))
    other = load_items(parse(values | {"seed": 1}), "mood")
    assert first["search"].keys == again["search"].keys
    assert first["search"].keys != other["search"].keys
    assert first["search"].rows == again["search"].rows


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_local_files_of_every_kind_give_the_same_items(
    pico: Path, tmp_path: Path, kind: str
) -> None:
    rows = write_rows(tmp_path / "rows.csv", 1, 2, 120)
    data = Dataset.from_csv(str(rows))
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        path.write_text("\n".join(json.dumps(row) for row in data))
    elif kind == "parquet":
        data.to_parquet(path)
    expected = load_items(parse(pico_values(pico)), "mood")
    found = load_items(spec_with(pico, dataset={kind: str(path)}), "mood")
    assert found["search"].keys == expected["search"].keys
    assert found["search"].labels.tolist() == expected["search"].labels.tolist()


def test_labels_by_name(pico: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"cat {'a ' * i},LABEL_{i % 2}\n" for i in range(30)))
    items = load_items(spec_with(pico, dataset={"csv": str(path)}, search={}, confirm={}), "mood")
    assert set(items["search"].labels.tolist()) <= {0, 1}
    assert sum(len(i) for i in items.values()) == 30


HERE = "tests.tasks.test_load"
BAD = [
    ({"text": "body"}, "tasks.mood.text: no column body; the data has text, label"),
    ({"label": "y"}, "tasks.mood.label: no column y"),
    ({"group": "who"}, "tasks.mood.group: no column who"),
    (
        {"search": {"items": 1000}},
        "tasks.mood.search.items: at most the rows at hand must be asked for, but got 1000 of",
    ),
    (
        {"metric": "f1", "metric_arguments": {"average": "magic"}},
        "tasks.mood.metric: f1 cannot be computed",
    ),
    ({"metric": "no_such_metric"}, "tasks.mood.metric: no_such_metric cannot be computed"),
    ({"text": "label"}, "tasks.mood.text: every text must be a string"),
    (
        {"label": "text"},
        "tasks.mood.label: a label must be one of the head's classes (0 LABEL_0, 1 LABEL_1)",
    ),
    ({"dataset": {"callable": f"{HERE}:nothing"}}, "tasks.mood.dataset: cannot be read"),
    (
        {"dataset": {"callable": f"{HERE}:broken"}},
        "tasks.mood.dataset: cannot be read: 'the file is gone'",
    ),
    (
        {"dataset": {"callable": f"{HERE}:two_splits"}},
        "tasks.mood.split: the data has several splits (train, test)",
    ),
    ({"dataset": {"callable": "sys:exit"}}, "tasks.mood.dataset: cannot be read: SystemExit"),
    (
        {"metric_arguments": {"average": "macro"}},
        "tasks.mood.metric: accuracy cannot be computed: it takes no arguments",
    ),
    (
        {"search": {"items": 119}, "confirm": {}},
        "tasks.mood.confirm.items: at most the rows at hand",
    ),
    (
        {"dataset": {"callable": f"{HERE}:long_rows"}, "max_length": 64},
        "max_length: at most 32, the model's positions",
    ),
    (
        {"dataset": {"callable": f"{HERE}:infinite_labels"}},
        "tasks.mood.label: a label must be one of the head's classes",
    ),
    ({"dataset": {"hub": "nobody/nothing"}}, "tasks.mood.dataset: cannot be read"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[m[:50] for _, m in BAD])
def test_bad_data_meets_one_line(pico: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # the message is compared as text below
        load_items(spec_with(pico, **changes), "mood")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ordinary_metrics_need_no_network() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.integers(2, size=200), draw.integers(2, size=200)

    def by_name(name: str, **arguments: Any) -> float:
        task = Task(dataset={"csv": "x"}, text="t", metric=name, metric_arguments=arguments)  # type: ignore[arg-type]
        return task.measure.compute(a, b)

    assert by_name("accuracy") == by_name("exact_match") == np.mean(a == b)
    assert by_name("f1") == f1_score(b, a)
    assert by_name("f1", average="macro") == f1_score(b, a, average="macro")
    assert by_name("matthews_correlation") == matthews_corrcoef(b, a)


def grouped_splits(split: str) -> Dataset:
    """Two splits with equal texts under other groups."""
    return Dataset.from_dict(
        {
            "text": [f"good {'cat ' * i}" for i in range(20)],
            "label": [0] * 20,
            "who": [f"{split} {i}" for i in range(20)],
        }
    )


def test_equal_texts_under_other_groups_are_left_out_of_search(pico: Path) -> None:
    source = {"callable": f"{HERE}:grouped_splits"}
    splits = {"search": {"split": "train"}, "confirm": {"split": "test"}}
    with (
        pytest.warns(UserWarning, match="tasks.mood: 20 search rows are left out"),
        pytest.raises(ValueError, match="tasks.mood.search.items"),
    ):
        load_items(spec_with(pico, dataset=source, group="who", **splits), "mood")


@pytest.mark.parametrize("seed", range(8))
def test_every_row_can_be_asked_for(pico: Path, seed: int) -> None:
    rows = len(load_items(spec_with(pico, search={}, confirm={}), "mood")["search"].keys) * 2 - 1
    values = pico_values(pico) | {"seed": seed}
    values["tasks"]["mood"] |= {
        "search": {"items": rows // 2},
        "confirm": {"items": rows - rows // 2 - 2},
    }
    items = load_items(parse(values), "mood")
    assert (len(items["search"]), len(items["confirm"])) == (rows // 2, rows - rows // 2 - 2)
