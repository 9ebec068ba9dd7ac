"""mergekit's passthrough as a stack and back; its tensors are held against mergekit's in
``tests/merging/test_mergekit_yaml.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cabs_search.cli.main import main
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import BASE, make_recipe
from cabs_search.merging.stack import MERGED, Slot, whole
from cabs_search.spec.load import dump_plain
from cabs_search.spec.mergekit.methods import Notes
from cabs_search.spec.mergekit.read import read_mergekit
from cabs_search.spec.mergekit.write import write_mergekit
from cabs_search.spec.recipe_file import RecipeFile, parse_recipe
from tests.scoring.test_language_models import SIZE, make_family


def piece(model: Any, start: int, end: int, scale: Any = None) -> dict[str, Any]:
    own: dict[str, Any] = {"model": str(model), "layer_range": [start, end]}
    return {"sources": [own | ({} if scale is None else {"parameters": {"scale": scale}})]}


def scaled(value: Any, *names: str) -> list[dict[str, Any]]:
    chosen = names or ("o_proj", "down_proj")
    return [*({"filter": name, "value": value} for name in chosen), {"value": 1.0}]


def config(*pieces: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"merge_method": "passthrough", "slices": [*pieces], **more}


def read(values: dict[str, Any]) -> tuple[RecipeFile, Notes]:
    notes = Notes()
    return read_mergekit(values, notes), notes


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("llama")
    make_family(root, "Llama", SIZE, tied=False, dtype="float32")
    return root


def test_slices_are_a_stack_with_the_first_and_the_last_models_ends() -> None:
    asked, notes = read(config(piece("you/a", 0, 3), piece("you/b", 1, 3), piece("you/c", 2, 3)))
    assert (asked.base, asked.experts) == ("you/a", {"b": "you/b", "c": "you/c"})
    assert asked.recipe.stack == (*whole(BASE, 3), Slot("b", 1), Slot("b", 2), Slot("c", 2))
    for tensor, owner in (
        ("model.embed_tokens.weight", None),
        ("transformer.wpe.weight", None),
        ("embeddings.LayerNorm.bias", None),
        ("model.norm.weight", "c"),
        ("lm_head.weight", "c"),
        ("embed_out.weight", "c"),
        ("pooler.dense.weight", "c"),
    ):
        lambdas = {e: asked.recipe.lambda_of(e, tensor) for e in ("b", "c")}
        assert lambdas == {e: float(e == owner) for e in ("b", "c")}, tensor
    assert notes.losses == []
    assert "base_model: there is none" in notes.notes[0]


def test_layers_of_one_model_and_a_base_that_gives_none() -> None:
    asked, _ = read(config(piece("you/a", 0, 24), piece("you/a", 8, 32)))
    assert asked.experts == {"a": "you/a"}
    assert len(asked.recipe.stack) == 48
    assert {slot.source for slot in asked.recipe.stack} == {BASE}
    assert asked.recipe.lambda_by_name == {"a": 0.0}
    asked, _ = read(config(piece("you/a", 0, 2), piece("you/a", 1, 3), base_model="you/b"))
    assert (asked.base, asked.experts) == ("you/b", {"a": "you/a"})
    assert {slot.source for slot in asked.recipe.stack} == {"a"}
    assert asked.recipe.lambda_by_name == {"a": 1.0}


def test_scales_are_those_of_what_a_layer_adds(llama: Path) -> None:
    """Also where they go from layer to layer of a slice, and where slice or file has them."""
    base = llama / BASE
    values = config(
        piece(base, 0, 2, scaled([0.5, 2.0])),
        piece(llama / "a", 1, 2) | {"parameters": {"scale": scaled(0.25)}},
        piece(llama / "a", 1, 2),
        parameters={"scale": scaled(3, "self_attn.o_proj", "mlp.down_proj")},
    )
    stack = read(values)[0].recipe.stack
    assert stack == (Slot(BASE, 0, 0.5), Slot(BASE, 1, 2.0), Slot("a", 1, 0.25), Slot("a", 1, 3.0))
    written = write_mergekit(read(values)[0], Notes())
    assert [one["sources"][0].get("parameters") for one in written["slices"]] == [
        {"scale": scaled(value, "self_attn.o_proj", "mlp.down_proj")} for value in (0.5, 2, 0.25, 3)
    ]
    assert read(written)[0] == read(values | {"dtype": "float32"})[0]


def test_what_is_merged_from_a_file_is_its_layers(llama: Path, tmp_path: Path) -> None:
    """Tensor by tensor; the export's own files say the same."""
    a, b, file = llama / "a", llama / "b", tmp_path / "m.yaml"
    values = config(piece(a, 0, 2), piece(b, 1, 2, scaled(0.5)), piece(b, 0, 1))
    file.write_text(dump_plain(values | {"dtype": "float32"}))
    assert main(["merge", "--recipe", str(file), "--to", str(tmp_path / "to")]) == 0
    of = {}
    for name in ("a", "b"):
        parts = (load_file(part) for part in (llama / name).glob("*.safetensors"))
        of[name] = {key: tensor for part in parts for key, tensor in part.items()}
    found = load_file(tmp_path / "to" / "model.safetensors")
    expected = {"model.embed_tokens.weight": of["a"]["model.embed_tokens.weight"]}
    expected |= {key: of["b"][key] for key in ("model.norm.weight", "lm_head.weight")}
    slots = [("a", 0, 1.0), ("a", 1, 1.0), ("b", 1, 0.5), ("b", 0, 1.0)]
    for place, (name, layer, scale) in enumerate(slots):
        start = f"model.layers.{layer}."
        for key, tensor in of[name].items():
            if key.startswith(start):
                factor = scale if "o_proj" in key or "down_proj" in key else 1.0
                expected[f"model.layers.{place}.{key.removeprefix(start)}"] = tensor * factor
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_allclose(found[key], tensor, atol=1e-6)
    config_json = json.loads((tmp_path / "to" / "config.json").read_text())
    assert config_json["num_hidden_layers"] == 4
    assert read(yaml.safe_load((tmp_path / "to" / "mergekit.yaml").read_text()))[0].recipe == (
        read(values)[0].recipe
    )
    again = tmp_path / "again"
    recipe = tmp_path / "to" / "recipe.yaml"
    assert main(["merge", "--recipe", str(recipe), "--to", str(again)]) == 0
    assert (again / "model.safetensors").read_bytes() == (
        tmp_path / "to" / "model.safetensors"
    ).read_bytes()
    options = ["--recipe", str(tmp_path / "to" / "recipe.json"), "--base", str(a)]
    options += ["--expert", f"b={b}", "--dtype", "float32", "--to", str(tmp_path / "third")]
    assert main(["merge", *options]) == 0
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == (
        again / "model.safetensors"
    ).read_bytes()


def test_what_mergekit_cannot_say(llama: Path) -> None:
    method, models = make_method("task-arithmetic", ("a",)), {"a": str(llama / "a")}

    def asked(stack: Any, lambda_: float) -> RecipeFile:
        recipe = make_recipe(method, {"a": lambda_}, stack=stack)
        return RecipeFile(recipe=recipe, base=str(llama / BASE), experts=models)

    with pytest.raises(ValueError, match="stack: mergekit's passthrough has layers of models"):
        write_mergekit(asked((Slot(MERGED, 0), Slot("a", 1)), 1.0), Notes())
    stack = (Slot("a", 1), Slot("a", 0))
    for lambda_, is_lost in ((1.0, False), (0.0, True), (0.5, True)):
        notes = Notes()
        values = write_mergekit(asked(stack, lambda_), notes)
        assert bool(notes.losses) == is_lost, lambda_
        assert values["base_model"] == str(llama / BASE)
    notes = Notes()
    write_mergekit(asked((Slot(BASE, 1), Slot(BASE, 0)), 0.0), notes)
    assert notes.losses == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (config(), "slices: passthrough needs a list of them, but got []"),
        (config({"sources": []}), "slices[0].sources: one model is needed, but got []"),
        (config(3), "slices[0]: a mapping is needed, but got 3"),  # type: ignore[arg-type]
        (config(piece("you/a", 2, 2)), "layer_range: 0 <= start < end <= 1000 must hold"),
        (config(piece("you/a", 0, 2), piece("you/b", -1, 2)), "slices[1].sources[0].layer_range"),
        (config({"sources": [{"model": "a"}]}), "layer_range: [START, END] is needed, but got No"),
        (config({"sources": [{"layer_range": [0, 1]}]}), "slices[0].sources[0].model: a model"),
        (config(piece("you/a", 0, 2, 0.5)), "parameters.scale: needs the base's tensors"),
        (config(piece("you/a", 0, 2, "x")), "parameters.scale: a number is needed, but got 'x'"),
        (config(piece("LLAMA", 0, 3)), "layer_range: the model has 2 layers, but got [0, 3]"),
        (config(piece("LLAMA", 0, 2, 0.5)), "parameters.scale: must be one for self_attn.o_proj"),
        (config(piece("LLAMA", 0, 2, scaled(0, "o_proj"))), "but is 0, 1 and 1 in layer 0"),
        (
            config(piece("LLAMA", 0, 1, scaled(0.5, "o_proj", "down_proj", "embed"))),
            "parameters.scale: must be 1 outside the layers, but not of model.embed_tokens.weight",
        ),
    ],
)
def test_what_cannot_be_read_meets_one_line(
    values: dict[str, Any],
    message: str,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(dump_plain(values).replace("LLAMA", str(llama / BASE)))
    assert main(["convert", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{file}: " in err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (3, "stack: a list of layers is needed, but got 3"),
        ([], "stack: a list of layers is needed, but got []"),
        ([{"model": "a"}], "stack[0]: model and layer_range are needed"),
        ([{"model": "c", "layer_range": [0, 1]}], "stack[0].model: must be one of base, a, b,"),
        ([{"model": "a", "layer_range": [1, 1]}], "stack[0].layer_range: 0 <= start < end"),
        ([{"model": "a", "layer_range": [0, 1, 2]}], "stack[0].layer_range: [START, END]"),
        ([{"model": "a", "layer_range": [0, 1], "scale": "x"}], "stack[0].scale: a number"),
        (
            [{"model": "a", "layer_range": [0, 1], "scale": 1e9}],
            "stack[0].scale: -1000 <= scale <= 1000",
        ),
        ([{"model": "a", "layer_range": [0, 1], "scale": 10**400}], "stack[0].scale: -1000"),
        ([{"model": "a", "layer_range": [0, 1], "r": 2}], "stack[0].r: no such field"),
        ([{"model": "a", "layer_range": [0, 999]}] * 2, "stack: 1000 layers at most, but got 1998"),
    ],
)
def test_a_bad_stack_of_a_recipe_meets_one_line(stack: Any, message: str) -> None:
    values = {"method": "task-arithmetic", "lambda": {"a": 1, "b": 0}, "stack": stack}
    with pytest.raises(ValueError) as found:
        parse_recipe(values, "r.yaml", Path())
    assert message in str(found.value)
    assert str(found.value).startswith("r.yaml: ")


def test_no_expert_of_a_stack_has_the_name_of_the_merge() -> None:
    stack = [{"model": "merged", "layer_range": [0, 2]}]
    values = {"method": "task-arithmetic", "lambda": {"merged": 1, "b": 0}, "stack": stack}
    with pytest.raises(ValueError, match="an expert must have another name than merged"):
        parse_recipe(values, "r.yaml", Path())
