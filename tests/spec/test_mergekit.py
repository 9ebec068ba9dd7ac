"""mergekit's YAML as a recipe and back: λ by filter and gradient, and what is said of losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cabs_search.cli.main import main
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.spec.load import dump_plain
from cabs_search.spec.mergekit.methods import Notes
from cabs_search.spec.mergekit.read import read_mergekit
from cabs_search.spec.mergekit.write import write_mergekit
from cabs_search.spec.recipe_file import RecipeFile

EXPERTS = ("a", "b")
TENSORS = [f"model.layers.{layer}.{part}.weight" for layer in range(4) for part in ("mlp", "attn")]


def config(method: str, *own: dict[str, Any], **more: Any) -> dict[str, Any]:
    models = [
        {"model": f"you/{name}", "parameters": parameters}
        for name, parameters in zip(EXPERTS, own or ({"weight": 0.5}, {"weight": 0.5}), strict=True)
    ]
    return {"merge_method": method, "base_model": "you/base", "models": models, **more}


def read(values: dict[str, Any]) -> tuple[RecipeFile, Notes]:
    notes = Notes()
    return read_mergekit(values, notes), notes


def test_filters_and_gradients_are_lambda_by_layer(tmp_path: Path) -> None:
    """Values are those that mergekit's rule gives by hand, layer by layer."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    weight = [{"filter": "attn", "value": [0, 0.6, 0.9]}, {"value": [1, 0]}]
    values = config("task_arithmetic", {"weight": weight}, {"weight": 2}, base_model=str(tmp_path))
    recipe = read(values | {"parameters": {"lambda": 0.5}})[0].recipe
    by_hand = {"attn": (0, 0.4, 0.7, 0.9), "mlp": (1, 2 / 3, 1 / 3, 0)}
    for name in TENSORS:
        layer, part = int(name.split(".")[2]), name.split(".")[3]
        assert recipe.lambda_of("a", name) == pytest.approx(by_hand[part][layer] / 2, abs=1e-8)
        assert recipe.lambda_of("b", name) == 1
    assert recipe.lambda_of("a", "lm_head.weight") == 0.5
    assert recipe.lambda_of("a", "model.attn_norm.weight") == 0


@pytest.mark.parametrize(
    ("method", "parameters", "name", "lambdas"),
    [
        ("task_arithmetic", {"normalize": True, "lambda": 2}, "task-arithmetic", (0.5, 1.5)),
        ("dare_linear", {}, "dare", (0.5, 1.5)),
        ("dare_linear", {"rescale": False}, "random", (0.5, 1.5)),
        ("linear", {}, "linear", (0.5, 1.5)),
        ("breadcrumbs", {"gamma": 0.1}, "breadcrumbs", (0.5, 1.5)),
        ("nuslerp", {"nuslerp_row_wise": True}, "nuslerp", (0.5, 1.5)),
        ("multislerp", {}, "multi-slerp", (0.5, 1.5)),
        ("multislerp", {"normalize_weights": False, "eps": "1e-8"}, "multi-slerp", (1, 3)),
        ("karcher", {"tol": 1e-5, "max_iter": 10}, "karcher", (1, 1)),
    ],
)
def test_weights_are_lambda(
    method: str, parameters: dict[str, Any], name: str, lambdas: tuple[float, ...]
) -> None:
    values = config(method, {"weight": 0.5}, {"weight": 1.5}, parameters=parameters)
    if name in ("linear", "karcher"):
        del values["base_model"]
    found, notes = read(values)
    assert found.recipe.method.name == name
    assert tuple(value for _, value in found.recipe.lambdas) == lambdas
    assert found.base == ("you/a" if name in ("linear", "karcher") else "you/base")
    assert notes.losses == []


def test_a_slerp_is_two_experts_of_which_one_is_the_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    t = [{"filter": "attn", "value": [0, 0.6, 0.9]}, {"value": 0.25}]
    values = config("slerp", {}, {}, base_model=str(tmp_path), parameters={"t": t})
    values["models"] = [{"model": "you/b"}]
    for models in ([{"model": "you/b"}], [{"model": "you/b"}, {"model": str(tmp_path)}]):
        found, notes = read(values | {"models": models})
        assert found.base == found.experts[found.recipe.experts[1]] == str(tmp_path)
        for name in (*TENSORS, "lm_head.weight"):
            layer = int(name.split(".")[2]) if "layers" in name else 0
            share = (0, 0.4, 0.7, 0.9)[layer] if "attn" in name else 0.25
            factors = [found.recipe.lambda_of(expert, name) for expert in found.recipe.experts]
            assert factors == pytest.approx([share, 1 - share], abs=1e-8)
        assert not notes.losses
    of_slice = {"models": None, "parameters": None}
    layers = {"layer_range": [0, 4]}
    sources = [{"model": "you/b", **layers}, {"model": str(tmp_path), **layers}]
    of_slice["slices"] = [{"sources": sources, "parameters": {"t": t}}]
    assert read(values | of_slice)[0] == found


def test_weights_by_layer_are_divided_by_layer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    own = ({"weight": [0.2, 1.4]}, {"weight": 0.6})
    values = config("multislerp", *own, base_model=str(tmp_path))
    recipe = read(values)[0].recipe
    for layer, weight in enumerate((0.2, 0.6, 1.0, 1.4)):
        factors = [recipe.lambda_of(e, f"model.layers.{layer}.mlp.weight") for e in EXPERTS]
        shares = [2 * weight / (weight + 0.6), 1.2 / (weight + 0.6)]
        assert factors == pytest.approx(shares, abs=1e-8)
    equal = config("nuslerp", {"weight": [0.6, -0.6]}, {"weight": -0.6}, base_model=str(tmp_path))
    recipe = read(equal)[0].recipe  # weights that cancel are in mergekit as if they were equal
    assert recipe.lambda_of("a", "model.layers.0.mlp.weight") == 0.5
    assert recipe.lambda_of("a", "model.layers.3.mlp.weight") == 0.5
    assert recipe.lambda_of("a", "model.layers.1.mlp.weight") == pytest.approx(-0.5, abs=1e-8)


def test_a_single_model_of_a_multi_slerp_is_itself() -> None:
    values = config("multislerp", parameters={"normalize_weights": False})
    values["models"] = values["models"][:1]
    assert [value for _, value in read(values)[0].recipe.lambdas] == [1]


def test_arcee_fusion_takes_one_model() -> None:
    values = config("arcee_fusion", {}, {})
    values["models"] = values["models"][:1]
    found, notes = read(values)
    assert (found.recipe.method.name, found.recipe.lambdas[0][1]) == ("arcee-fusion", 1)
    assert not notes.losses
    assert any("quartiles" in line for line in notes.notes)
    written = write_mergekit(found, Notes())
    assert written["models"] == [{"model": "you/a"}]
    assert read(written)[0].recipe == found.recipe
    other = make_recipe(found.recipe.method, {"a": 0.5})
    write_mergekit(RecipeFile(recipe=other, base="b", experts={"a": "a"}), notes)
    assert notes.losses == ["lambda: arcee_fusion has none, so that all must be 1"]


@pytest.mark.parametrize(
    ("method", "lambdas", "line"),
    [
        ("karcher", (1.0, 0.5), "lambda: karcher weighs all models alike"),
        ("slerp", (1.0, -1.0), "lambda: those that sum up to 0 leave the base's"),
        ("nuslerp", (0.0, 0.0), "lambda: those that sum up to 0 leave the base's"),
        ("karcher", (0.0, 0.0), "lambda: those that sum up to 0 leave the base's"),
        ("model-stock", (1.0, 0.5), "lambda: model_stock has none"),
    ],
)
def test_lambda_that_mergekit_cannot_have_is_a_loss(
    method: str, lambdas: tuple[float, ...], line: str
) -> None:
    recipe = make_recipe(make_method(method, EXPERTS), dict(zip(EXPERTS, lambdas, strict=True)))
    notes = Notes()
    write_mergekit(RecipeFile(recipe=recipe, base="z", experts={"a": "a", "b": "b"}), notes)
    assert any(line in loss for loss in notes.losses)


def test_a_slerp_of_other_experts_begins_at_the_first() -> None:
    """Its t is the second's share of λ, layer by layer if λ has anchors."""
    lambdas = {"a.1": 1.0, "a.2": 0.25, "b.1": 1.0, "b.2": 0.75}
    recipe = make_recipe(make_method("slerp", EXPERTS), lambdas, layers=4)
    notes = Notes()
    locations = {"a": "you/a", "b": "you/b"}
    for base, first in (("you/base", "you/a"), ("you/b", "you/b")):
        found = write_mergekit(RecipeFile(recipe=recipe, base=base, experts=locations), notes)
        assert found["base_model"] == first
        own = [(1 - x * 0.75 / 3, 1 - x * 0.25 / 3) for x in range(4)]
        shares = [b / (a + b) if first == "you/a" else a / (a + b) for a, b in own]
        assert found["parameters"]["t"] == pytest.approx(shares, abs=1e-8)
    assert not notes.losses
    assert any(line.startswith("base: slerp has none") for line in notes.notes)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (config("multislerp", parameters={"eps": 0.1}), "parameters.eps: it is always 1e-08"),
        (config("karcher", parameters={"max_iter": 3}), "parameters.max_iter: it is always 10"),
        (config("karcher", parameters={"tol": "1e-3"}), "parameters.tol: it is always 1e-05"),
        (config("nuslerp", parameters={"nuslerp_flatten": False}), "parameters.nuslerp_flatten"),
        (config("linear", {"weight": 1}, {"weight": -1}, base_model="you/a"), "sum up to 0"),
        (config("nuslerp", {"weight": 1}, {"weight": -0.9999}), "parameters.weight: weights that"),
        (config("ties", {"weight": 1}, {"weight": 2}), "parameters.weight: λ have no vote"),
        (config("ties", parameters={"rescale": True}), "parameters.rescale: true is not here"),
        (config("della", parameters={"rescale": False, "density": 0.5}), "parameters.rescale"),
        (config("ramplus_tl", {}, {}, parameters={"r": 0.5}), "parameters.r: it is always 0.1"),
        (config("model_stock", {}, {}, parameters={"filter_wise": True}), "filter_wise"),
        (config("ties", parameters={"density": [{"filter": "x", "value": 0.1}]}), "density"),
        (config("linear", parameters={"normalize": False, "weight": 1}), "normalize: false"),
        (config("sce", {}, {}, tokenizer_source="union"), "tokenizer_source"),
        (config("sce", {}, {}, tokenizer={"source": "base", "pad_to_multiple_of": 8}), "pad_to"),
    ],
)
def test_what_changes_the_weights_is_a_loss(values: dict[str, Any], line: str) -> None:
    assert any(line in loss for loss in read(values)[1].losses)


def test_what_changes_nothing_is_named() -> None:
    parameters = {"int8_mask": True, "densty": 0.5}
    more = {"parameters": parameters, "name": "x", "chat_template": "auto", "dtype": "bfloat16"}
    found, notes = read(config("task_arithmetic", **more))
    assert (found.dtype, notes.losses) == ("bfloat16", [])
    for key in ("parameters.int8_mask", "parameters.densty", "name", "chat_template", "dtype"):
        assert any(line.startswith(f"{key}: ") for line in notes.notes), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "moe"}, "merge_method: must be one of task_arithmetic, ties"),
        ({"merge_method": "passthrough"}, "slices: passthrough needs a list of them, but got None"),
        ({"merge_method": "slerp"}, "models: slerp takes two with base_model, but got 3"),
        ({"merge_method": "slerp", "base_model": "you/a"}, "parameters.t: a value is needed"),
        ({"merge_method": "slerp", "base_model": None}, "base_model: slerp needs one here"),
        ({"merge_method": "nuslerp", "base_model": None}, "base_model: nuslerp needs one here"),
        ({"merge_method": "nuslerp", "base_model": "you/a"}, "nuslerp merges 2 experts, but got 1"),
        ({"merge_method": "arcee_fusion"}, "models: arcee_fusion takes one beside the base"),
        (
            {"merge_method": "multislerp", "models": [{"model": "a", "parameters": {"weight": 0}}]}
            | {"parameters": {"normalize_weights": "no"}},
            "parameters.normalize_weights: true or false is needed",
        ),
        (
            {"merge_method": "multislerp", "models": [{"model": "a", "parameters": {"weight": 0}}]},
            "parameters.weight: weights must not sum up to 0",
        ),
        ({"models": None}, "models: a list of models is needed"),
        ({"models": [{"model": 3}]}, "models[0].model: a model must be named, but got 3"),
        ({"models": [{"model": "you/a"}]}, "parameters.weight: a value is needed"),
        ({"base_model": None}, "base_model: ties needs one here"),
        ({"parameters": {"lambda": "x"}}, "parameters.lambda: a number is needed, but got 'x'"),
        ({"parameters": {"lambda": [0, 1]}}, "a gradient needs the number of layers"),
        ({"parameters": {"density": 2, "normalize": "no"}}, "parameters.normalize: true or false"),
        ({"parameters": {"lambda": 10**400}}, "parameters.lambda: a number is needed"),
        ({"slices": [{}, {}]}, "slices: only passthrough stacks layers"),
        ({"slices": 3}, "slices: only passthrough stacks layers"),
        ({"tokenizer": "union"}, "tokenizer: a mapping is needed, but got 'union'"),
        ({"modules": {}}, "modules: not here"),
        ({"dtype": "int64"}, "dtype: must be one of float32"),
    ],
)
def test_what_cannot_be_read_meets_one_line(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(dump_plain(config("ties") | change))
    assert main(["convert", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{file}: " in err
    assert message in err


@pytest.mark.parametrize(
    ("method", "lambdas", "given"),
    [
        ("task-arithmetic", (0.3, 1.1), {}),
        ("linear", (0.3, 1.1), {}),
        ("ties-magnitude", (0.7, 0.7), {"density": (("a", 0.2), ("b", 0.4))}),
        ("ties-sum-dare", (0.7, 0.7), {"density": 0.3}),
        ("random", (0.3, 1.1), {"density": 0.3}),
        ("ties-breadcrumbs", (0.7, 0.7), {"density": 0.3, "gamma": 0.05}),
        ("della", (0.3, 1.1), {"density": 0.4, "epsilon": 0.1}),
        *((name, (1, 1), {}) for name in ("ram", "ram-plus", "model-stock", "multi-slerp")),
        ("multi-slerp", (0.5, 1.5), {}),
        ("multi-slerp", (0.7, -0.4), {}),
        ("nuslerp", (0.3, 1.1), {}),
        ("slerp", (0.7, 0.3), {}),
        ("karcher", (1, 1), {}),
        ("sce", (1, 1), {"density": 0.25}),
    ],
)
def test_a_recipe_comes_back_from_mergekit(
    method: str, lambdas: tuple[float, ...], given: dict[str, Any]
) -> None:
    recipe = make_recipe(
        make_method(method, EXPERTS, **given), dict(zip(EXPERTS, lambdas, strict=True))
    )
    locations = {name: f"you/{name}" for name in EXPERTS}
    base = "you/a" if method in ("linear", "slerp", "karcher") else "you/base"
    asked = RecipeFile(recipe=recipe, base=base, experts=locations, dtype="float32")
    notes = Notes()
    assert read(write_mergekit(asked, notes))[0] == asked
    assert notes.losses == []


def test_groups_come_back_as_filters_and_gradients(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    for weight in ([0.1, 0.2, 0.4, 0.8], [{"filter": "attn", "value": 0.1}, {"value": 0.5}]):
        values = config("task_arithmetic", {"weight": weight}, {"weight": 1.0})
        values["base_model"] = str(tmp_path)
        written = write_mergekit(read(values)[0], Notes())
        assert [model["parameters"]["weight"] for model in written["models"]] == [weight, 1.0]


@pytest.mark.parametrize("method", ["task-arithmetic", "linear", "dare"])
def test_anchors_are_gradients(tmp_path: Path, method: str) -> None:
    """What mergekit's file gives each tensor is what the recipe gave it, bit for bit."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    lambdas = {"a.1": 0.3, "a.2": 0.9, "a.3": 0.2, **dict.fromkeys(("b.1", "b.2", "b.3"), 0.5)}
    recipe = make_recipe(make_method(method, EXPERTS), lambdas, layers=4)
    base = str(tmp_path)
    locations = {"a": base if method == "linear" else "you/a", "b": "you/b"}
    notes = Notes()
    written = write_mergekit(RecipeFile(recipe=recipe, base=base, experts=locations), notes)
    assert not notes.losses
    weights = [model["parameters"]["weight"] for model in written["models"]]
    assert weights == [[0.3, 0.9, 0.2], 0.5]
    found = read(written)[0].recipe
    for tensor in [*TENSORS, "lm_head.weight", "model.embed.weight"]:
        by_name = [recipe.lambda_of(e, tensor) for e in EXPERTS]
        assert [found.lambda_of(e, tensor) for e in found.experts] == by_name


def test_convert_says_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, to = tmp_path / "m.yaml", tmp_path / "r.yaml"
    file.write_text(dump_plain(config("ties", {"weight": 1, "density": 0.5}, {"weight": 2})))
    assert main(["convert", str(file), "--output", str(to)]) == 2
    err = capsys.readouterr().err
    assert "changes the weights: parameters.weight" in err
    assert "note: parameters.density" in err
    assert "--lossy converts the rest" in err
    assert not to.exists()
    assert main(["convert", str(file), "--output", str(to), "--lossy"]) == 0
    assert main(["convert", str(to), "--json"]) == 2
    assert main(["merge", "--recipe", str(file), "--to", str(tmp_path / "out")]) == 2
    assert "λ have no vote" in capsys.readouterr().err
    models = {"base": "you/base", "experts": {"a": "you/a"}}
    file.write_text(dump_plain({**models, "method": "regmean", "lambda": 1.0}))
    assert main(["convert", str(file)]) == 2
    assert "no regmean, and a file has no calibration items, which it" in capsys.readouterr().err
