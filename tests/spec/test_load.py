"""Specs that are accepted, and one line with file, field, rule and value for others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects

from cabs_search.record.folder import StudyFolder
from cabs_search.record.folder import write_spec as save_spec
from cabs_search.spec.load import find_spec_file, load, parse
from cabs_search.spec.locations import locate
from tests.conftest import EXPERTS, pico_values, write_spec


def test_a_spec_survives_writing_and_reading(pico: Path, tmp_path: Path) -> None:
    spec = parse(pico_values(pico))
    again = load(write_spec(tmp_path / "again.yaml", spec.as_dict()))
    assert again == spec
    assert len(spec.orders) == 6
    assert spec.space.nm == ((2, 8), (8, 32))


def test_texts_that_look_like_numbers_stay_texts(pico: Path, tmp_path: Path) -> None:
    """In a study's folder, for our reader and for others."""
    values = pico_values(pico)
    values["tasks"]["mood"]["label"] = "08"
    spec = parse(values)
    save_spec(spec, tmp_path)
    written = StudyFolder(tmp_path).spec
    assert load(written) == spec
    plain = yaml.safe_load(written.read_text())
    assert (plain["tasks"]["mood"]["label"], plain["space"]["nm"]) == ("08", ["2:8", "8:32"])


def test_nm_is_text_and_not_base_60(pico: Path, tmp_path: Path) -> None:
    values = pico_values(pico)
    values["space"]["nm"] = "MARK"
    path = write_spec(tmp_path / "s.yaml", values)
    path.write_text(path.read_text().replace("nm: MARK", "nm: [3:32, 64:256]"))
    assert load(path).space.nm == ((3, 32), (64, 256))


def test_relative_locations_start_at_the_file(pico: Path, tmp_path: Path) -> None:
    values = pico_values(pico)
    values["base"] = "models/base"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(pico / "base")
    assert load(write_spec(tmp_path / "s.yaml", values)).base == str((pico / "base").resolve())


def change(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def act(values: dict[str, Any]) -> None:
        here: Any = values
        for part in path[:-1]:
            here = here[part]
        here[path[-1]] = to

    return act


BAD = [
    (change("base", to="/no/where"), "base: /no/where: no such folder"),
    (change("experts", "mood", to="/no/where"), "experts.mood: /no/where: no such folder"),
    (change("experts", "mood", to="cache:nothing"), "experts.mood: cache:nothing: no such folder"),
    (
        change("experts", "mood", to="package:nothing_here/x"),
        "package nothing_here is not installed",
    ),
    (change("colour", to="blue"), "colour: no such field"),
    (change("space", "colour", to="blue"), "space.colour: no such field"),
    (change("space", "nm", to=["2:8", "128:64"]), "space.nm[1]: n <= m must hold, but got 128:64"),
    (change("space", "nm", to=["0:8"]), "space.nm[0]: 0 < n must hold, but got 0:8"),
    (
        change("space", "nm", to=["x"]),
        "space.nm[0]: n:m must be two whole numbers such as 64:256, but got x",
    ),
    (change("space", "nm", to=[8]), "space.nm[0]: n:m must be written as n:m"),
    (
        change("space", "order", to=[["mood", "animal"]]),
        "space.order[0]: an order must name every expert once",
    ),
    (change("space", "order", to=[["mood", "animal", "cow"]]), "but got mood, animal, cow"),
    (
        change("space", "lambda", "low", to=3.0),
        "space.lambda: low <= high must hold, but got (low=3, high=2)",
    ),
    (change("space", "lambda", "step", to=0), "space.lambda.step:"),
    (change("space", "lambda", "step", to=0.3), "must be a multiple of step"),
    (
        change("space", "lambda", "low", to=float("nan")),
        "space.lambda.low: Input should be a finite number",
    ),
    (change("space", "method", to=["magic"]), "but got 'magic'"),
    (
        change("tasks", "mood", "dataset", to={}),
        "tasks.mood.dataset: just one of hub, csv, json, parquet, callable",
    ),
    (
        change("tasks", "mood", "dataset", to={"csv": "/no.csv"}),
        "tasks.mood.dataset.csv: /no.csv: no such file",
    ),
    (
        change("tasks", "mood", "expert", to="cow"),
        "tasks.mood: a task must name its expert (mood, animal, pair), but got cow",
    ),
    (change("name", to="../x"), "name: "),
    (change("seed", to=-1), "seed: Input should be greater than or equal to 0, but got -1"),
    (
        change("space", "nm", to=["2:8", "2:8"]),
        "space.nm: each value must stand once, but got 2:8 twice",
    ),
    (
        change("space", "lambda", to={"low": -1e5, "high": 1e5, "step": 0.001}),
        "space.lambda: (high - low) / step <=",
    ),
    (change("baselines", "cabs", "lambda", to=[1e30]), "baselines.cabs.lambda[0]: "),
    (change("tasks", "mood", "search", to={"items": 1}), "tasks.mood.search.items: "),
    (change("tasks", "mood", "max_length", to=2), "tasks.mood.max_length: "),
    (change("search", "trials", to=0), "search.trials: Input should be greater than 0, but got 0"),
    (change("search", "sampler", to="good luck"), "search.sampler:"),
    (
        change("tracking", to={"model": "some"}),
        "tracking.model: Input should be 'auto', 'always' or 'never', but got",
    ),
    (change("tracking", to={"colour": "blue"}), "tracking.colour: no such field"),
    (
        change("baselines", "cabs", "order", to=["mood"]),
        "baselines.cabs.order: an order must name every expert once",
    ),
]


@pytest.mark.parametrize(("act", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_values_meet_one_line(
    pico: Path, cache: Path, act: Callable[..., None], message: str
) -> None:
    values = pico_values(pico)
    act(values)
    with pytest.raises(ValueError) as caught:  # the message is compared as text below
        parse(values, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


ALIASES = "more: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"more{i}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
ALIASES += "name: *j"
"""Aliases of aliases: written in full, the name is gigabytes."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("- a", "a spec must be a mapping, but got list"),
        ("", "a spec must be a mapping, but got NoneType"),
        ("name: a\nname: b", "name stands twice"),
        ("name: a", "base: "),
        ("space: {more: {}}", "space.more: no such field"),
        ("name: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("name: " + "x" * (1 << 20), "at most"),
        (ALIASES, "20,000 values at most, with aliases in full"),
        ("name: &a [*a]", "20,000 values at most"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match="s.yaml") as caught:
        load(tmp_path / "s.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_an_unreachable_hub_id_says_so(pico: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="base: nobody/nothing: no such folder, and the hub did not give it: "
    ) as caught:
        parse(pico_values(pico) | {"base": "nobody/nothing"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_hub_id_of_an_adapter_gives_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    on_the_hub = ["adapter_config.json", weights, "tokenizer.json", "training_args.bin"]

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("somebody/adapter", "main")
        for file in filter_repo_objects(on_the_hub, allow_patterns=allow_patterns):
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = locate("somebody/adapter@main")
    assert {path.name for path in folder.iterdir()} == set(on_the_hub[:3])


def test_shipped_spaces_are_found_by_name() -> None:
    assert find_spec_file("quickstart").name == "quickstart.yaml"
    with pytest.raises(ValueError, match="nowhere: no such file"):
        find_spec_file("nowhere")


def test_experts_are_named_as_in_the_spec(pico: Path) -> None:
    assert tuple(parse(pico_values(pico)).experts) == EXPERTS


def test_one_value_may_stand_without_a_list(pico: Path) -> None:
    values = pico_values(pico)
    values["space"] |= {"nm": "2:8", "method": "task-arithmetic"}
    spec = parse(values)
    assert (spec.space.nm, spec.space.method) == (((2, 8),), ("task-arithmetic",))


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([], r"rounds: a value or a list of values is needed, but got \[\]"),
        (None, "rounds: a value or a list of values is needed, but got None"),
        ([1, 2, 2], "rounds: values must differ"),
        ([0], "rounds: rounds must be a whole number from 1"),
    ],
)
def test_values_of_a_rules_setting_are_checked(pico: Path, rounds: Any, message: str) -> None:
    values = pico_values(pico)
    values["space"] |= {"method": "cabs-rounds", "rounds": rounds}
    with pytest.raises(ValueError, match=message):
        parse(values)


def test_all_orders_of_many_experts_are_refused(pico: Path) -> None:
    values = pico_values(pico)
    values["experts"] |= {f"e{i}": values["experts"]["mood"] for i in range(6)}
    with pytest.raises(
        ValueError, match="space.order: all is for 6 experts at the most, but there are 9"
    ):
        parse(values)


@pytest.mark.parametrize(
    "location",
    [
        *("s3://bucket/a/b", "file:///shared/kept", "gs://bucket", "sftp://me@host/folder"),
        *("abfss://box@account.dfs.core.windows.net/a", "hdfs://host:8020/a", None),
    ],
)
def test_locations_of_artifacts_that_mlflow_has_a_store_for(
    pico: Path, location: str | None
) -> None:
    spec = parse(pico_values(pico) | {"tracking": {"artifacts": location}})
    assert spec.tracking.artifacts == location
    assert parse(spec.as_dict()).tracking == spec.tracking
