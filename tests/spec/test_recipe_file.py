"""A recipe as a YAML file: read as it was written, merged bit for bit, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cabs_search.cli.main import main
from cabs_search.merging.family import Family
from cabs_search.merging.masks.settings import NM
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import LambdaKey, Recipe, make_recipe
from cabs_search.serving.export import export
from cabs_search.spec.load import dump_plain, load_plain
from cabs_search.spec.mergekit.read import read_any
from cabs_search.spec.recipe_file import RecipeFile, parse_recipe
from tests.conftest import EXPERTS

GROUPS = (("layer.0", r"^encoder\.layer\.0\."), ("rest: all", ""))
LAMBDAS = {f"{e}.{g}": 0.1 + i + 1e-9 for i, e in enumerate(EXPERTS) for g, _ in GROUPS[:1]}
LAMBDAS |= {f"{e}.{GROUPS[1][0]}": -1e-5 for e in EXPERTS}


def grouped(method: str, **settings: Any) -> Recipe:
    nested = {}
    for expert in EXPERTS:
        for group, _ in GROUPS:
            nested[expert, group] = LAMBDAS[f"{expert}.{group}"]
    by_key = {LambdaKey(*key): value for key, value in nested.items()}
    return make_recipe(make_method(method, EXPERTS, **settings), by_key, GROUPS)


RECIPES = (
    grouped("cabs", nm=tuple((e, NM(i, 8)) for i, e in enumerate(EXPERTS, 1)), tail="drop"),
    make_recipe(
        make_method("magnitude", EXPERTS, density=0.25),
        {f"{e}.{place}": 0.1 * i + 0.7 * place for i, e in enumerate(EXPERTS) for place in (1, 2)},
        layers=2,
    ),
    make_recipe(
        make_method("ties-dare", EXPERTS, density=0.3, seed=7),
        dict(zip(EXPERTS, (0.5, 1e-9, 2.0), strict=True)),
    ),
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.method.name)
def test_a_recipe_is_read_as_it_was_written(recipe: Recipe, tmp_path: Path) -> None:
    locations = {name: f"owner/{name}@main" for name in EXPERTS}
    asked = RecipeFile(recipe=recipe, base="owner/base", experts=locations, dtype="bfloat16")
    (tmp_path / "recipe.yaml").write_text(asked.as_yaml(), encoding="utf-8")
    assert read_any(tmp_path / "recipe.yaml").asked == asked
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.as_dict()))
    assert read_any(tmp_path / "recipe.json").asked.recipe == recipe


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=["groups", "anchors"])
def test_the_file_of_an_export_gives_the_same_files(
    pico: Path, tmp_path: Path, recipe: Recipe
) -> None:
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    heads = {"mood": "mood", "again": "mood", "pair": "pair"}
    made = export(family, recipe, tmp_path / "made", heads=heads, dtype=torch.bfloat16)
    again = tmp_path / "again"
    assert main(["merge", "--recipe", str(made / "recipe.yaml"), "--output", str(again)]) == 0
    files = [file for file in made.rglob("*") if file.suffix in (".safetensors", ".json", ".yaml")]
    assert {file.parent.name for file in files} == {"made", *heads}
    for file in files:
        assert (again / file.relative_to(made)).read_bytes() == file.read_bytes(), file


def test_anchors_count_by_their_numbers(tmp_path: Path) -> None:
    lambdas = {f"{e}.{place}": 0.1 * place for e in EXPERTS for place in range(1, 12)}
    recipe = make_recipe(make_method("magnitude", EXPERTS), lambdas, layers=12)
    values = recipe.as_dict() | {"lambda": dict(sorted(recipe.as_dict()["lambda"].items()))}
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    found = read_any(tmp_path / "recipe.json").asked.recipe
    for expert in EXPERTS:
        assert found.anchors_of(expert) == recipe.anchors_of(expert)


def test_a_recipe_for_another_number_of_layers_meets_one_line(
    pico: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {name: str(pico / name) for name in EXPERTS}
    for layers in (3, 12):
        lambdas = {f"{e}.{place}": 0.5 * place for e in EXPERTS for place in (1, 2, 3)}
        recipe = make_recipe(make_method("magnitude", EXPERTS), lambdas, layers=layers)
        asked = RecipeFile(recipe=recipe, base=str(pico / "base"), experts=models)
        (tmp_path / "r.yaml").write_text(asked.as_yaml())
        to = tmp_path / "out"
        assert main(["merge", "--recipe", str(tmp_path / "r.yaml"), "--to", str(to)]) == 2
        message = f"layers: must be the model's number, 2, but got {layers}"
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not to.exists()


def test_folders_are_relative_to_the_file(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = {name: name for name in EXPERTS}
    values = {"base": "base", "experts": experts, "method": "linear", "lambda": 1}
    found = parse_recipe(values, "x.yaml", pico)
    assert found.experts == {name: str(pico / name) for name in EXPERTS}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(found.as_yaml())
    assert read_any("x.yaml").asked == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lamda": 1}, "lamda: no such field"),
        ({"method": "magic"}, "method: method must be one of"),
        ({"nm": "9:8"}, "nm: n <= m must hold, but got 9:8"),
        ({"nm": {"mood": "2:8"}}, "nm: the value must be expert's (mood, animal, pair)"),
        ({"order": ["mood"]}, "order: order must name every expert once"),
        ({"density": 0.5}, "density: cabs does not use it; it has nm, order, overlap, tail"),
        ({"lambda": {"mood": 1}}, "lambda: must have a value for each expert"),
        ({"lambda": dict.fromkeys(EXPERTS, "much")}, "lambda.mood: a number is needed"),
        ({"lambda": {e: {"low": 1} for e in EXPERTS}}, "lambda.mood: must have a value"),
        ({"groups": {"low": "("}}, "groups.low: a group must be a regular expression"),
        ({"layers": 1}, "layers: Input should be greater than or equal to 2, but got 1"),
        ({"layers": "many"}, "layers: "),
        ({"layers": 4, "lambda": dict.fromkeys(EXPERTS, "much")}, "lambda.mood.1: a number is"),
        ({"layers": 4, "lambda": {e: [1, "x"] for e in EXPERTS}}, "lambda.mood.2: a number is"),
        (
            {"layers": 4, "lambda": {"mood": [1, 2], "animal": [1, 2, 3], "pair": 1}},
            "as many values as the others, but mood has 2 and animal has 3",
        ),
        (
            {"layers": 4, "lambda": {e: [1, 2, 3, 4, 5] for e in EXPERTS}},
            "must hold, but got (anchors=5, layers=4)",
        ),
        (
            {"layers": 4, "lambda": {e: [] for e in EXPERTS}},
            "must hold, but got (anchors=0, layers=4)",
        ),
        ({"lambda": {e: [1, 2] for e in EXPERTS}}, "lambda.mood: a number is needed"),
        (
            {"layers": 4, "lambda": {f"{e}.{n}": 1 for e in EXPERTS for n in (1, 7)}},
            "anchors must be mood.1 to mood.2, but got mood.1, mood.7",
        ),
        ({"heads": {"../up": "mood"}}, "heads"),
        ({"heads": {"x": "cow"}}, "heads.x: an expert must be named"),
        ({"dtype": "int8"}, "dtype"),
        ({"experts": 3}, "experts"),
    ],
)
def test_a_bad_file_meets_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    asked = RecipeFile(
        recipe=make_recipe(make_method("cabs", EXPERTS), dict.fromkeys(EXPERTS, 1.0)),
        base="base",
        experts={name: name for name in EXPERTS},
    )
    (tmp_path / "r.yaml").write_text(dump_plain(asked.as_dict() | change))
    with pytest.raises(ValueError, match=r"r\.yaml: ") as found:
        read_any(tmp_path / "r.yaml")
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_no_mapping_meets_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"r\.yaml: a recipe must be a mapping, but got list"):
        load_plain(tmp_path / "r.yaml", "recipe")
