"""A converted YAML merged by both programs: mergekit's whole command on pico Llamas."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cabs_search.cli.main import main
from tests.merging.test_mergekit import LAMBDA, MERGEKIT, assert_same, read, reason

pytestmark = pytest.mark.slow
EXPERTS = ("one", "two", "three")
DENSITY, GAMMA = 1 / 4, 1 / 16
"""Shares of which every tensor here has a whole number of weights, so that none is rounded."""


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with four layers, and experts that have some of their change in common."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("llamas")
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 40, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**settings, **heads, tie_word_embeddings=False))
    model.save_pretrained(root / "base")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    common = {name: torch.randn_like(tensor) for name, tensor in base.items()}
    for name in EXPERTS:
        moved = {n: t + 0.05 * (common[n] + torch.randn_like(t)) for n, t in base.items()}
        model.load_state_dict(moved)
        model.save_pretrained(root / name)
    return root


GRADIENT = [{"filter": "self_attn", "value": [0, 0.5, 0.9]}, {"value": [1.0, 0.25]}]
EQUAL: dict[str, Any] = {"weight": 1.0, "lambda": LAMBDA}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "task_arithmetic": ({"weight": GRADIENT}, {"lambda": 0.5, "normalize": True}),
    "linear": ({"weight": [{"filter": "mlp", "value": 2.0}, {"value": 0.5}]}, {}),
    "ties": ({"density": DENSITY}, {**EQUAL, "int8_mask": True}),
    "breadcrumbs_ties": ({"density": DENSITY}, {**EQUAL, "gamma": GAMMA}),
    "sce": ({}, {"select_topk": DENSITY}),
    "ram": ({}, {"epsilon": 0.02}),
    "ramplus_tl": ({}, {"epsilon": 0.02}),
    "model_stock": ({}, {}),
    "multislerp": ({"weight": [0.5, 2.0, 1.0]}, {}),
    "nearswap": ({}, {"t": 0.02}),
    "slerp": ({}, {"t": [{"filter": "self_attn", "value": [0, 0.7, 0.3]}, {"value": 0.4}]}),
    "nuslerp": ({"weight": [0.2, 1.5]}, {}),
    "karcher": ({}, {"max_iter": 10, "tol": 1e-5}),
    "arcee_fusion": ({}, {}),
}
COUNT = {"nearswap": 1, "arcee_fusion": 1, "slerp": 2, "nuslerp": 2}
"""Models beside the base; of slerp it is one of them."""
EXACT = ("karcher", "arcee_fusion")
"""Methods whose float32 differs from ours, see the remarks of a conversion."""
BACK = ("ties", "linear", "multislerp", "nuslerp", "karcher", "arcee_fusion")
"""Methods whose recipe is written for mergekit again, and merged there."""


def by_mergekit(file: Path, to: Path) -> Any:
    if not (MERGEKIT / ".installed").exists():
        pytest.skip(f"mergekit is not installed: {reason()}")
    start = "from mergekit.scripts.run_yaml import main; main()"
    command = [MERGEKIT / "bin" / "python", "-c", start, file, to, "--no-copy-tokenizer"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return read(to)


@pytest.mark.parametrize("method", ["task-arithmetic", "linear", "slerp", "nuslerp", "multi-slerp"])
def test_anchors_are_mergekits_gradients(llamas: Path, tmp_path: Path, method: str) -> None:
    """All tensors, also those outside the layers: embeddings, final norm and output layer."""
    anchors: dict[str, Any] = {"one": [0.2, 0.9, 0.4], "two": [1.0, 0.1, 0.3], "three": 0.5}
    if "slerp" in method and method != "multi-slerp":
        del anchors["three"]
    models = {name: str(llamas / name) for name in anchors}
    asked: dict[str, Any] = {"base": str(llamas / "base"), "experts": models, "method": method}
    asked |= {"layers": 4, "lambda": anchors, "dtype": "float32"}
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "mergekit.yaml"
    recipe.write_text(yaml.safe_dump(asked))
    assert main(["convert", str(recipe), "--output", str(file)]) == 0
    assert main(["merge", "--recipe", str(recipe), "--to", str(tmp_path / "ours")]) == 0
    assert_same(read(tmp_path / "ours"), by_mergekit(file, tmp_path / "theirs"))


@pytest.mark.parametrize("method", CASES)
def test_both_programs_merge_alike(llamas: Path, tmp_path: Path, method: str) -> None:
    """mergekit's file here; and what is written of it for mergekit, there."""
    own, parameters = CASES[method]
    chosen = EXPERTS[: COUNT.get(method, 3)]
    # the first expert has the parameters of the case, the others plain ones
    plain = {"weight": 0.5} if "weight" in own else own
    models = [
        {"model": str(llamas / name), "parameters": plain if place else own}
        for place, name in enumerate(chosen)
    ]
    values = {"merge_method": method, "models": models, "parameters": parameters}
    values |= {"dtype": "float64" if method in EXACT else "float32", "out_dtype": "float32"}
    if method not in ("linear", "karcher"):
        values["base_model"] = str(llamas / ("one" if method == "slerp" else "base"))
    file, back = tmp_path / "mergekit.yaml", tmp_path / "back.yaml"
    file.write_text(yaml.safe_dump(values))
    expected = by_mergekit(file, tmp_path / "theirs")
    assert main(["merge", "--recipe", str(file), "--to", str(tmp_path / "ours")]) == 0
    assert_same(read(tmp_path / "ours"), expected)
    if method in BACK:
        recipe = tmp_path / "ours" / "recipe.yaml"
        assert main(["convert", str(recipe), "--output", str(back)]) == 0
        if method in EXACT:
            back.write_text(back.read_text().replace("dtype: float32", "dtype: float64"))
            back.write_text(back.read_text() + "out_dtype: float32\n")
        assert_same(by_mergekit(back, tmp_path / "again"), expected)


def ends(value: Any) -> dict[str, Any]:
    """Scale what a layer adds, as people do who repeat layers."""
    filters = [{"filter": name, "value": value} for name in ("o_proj", "down_proj")]
    return {"parameters": {"scale": [*filters, {"value": 1.0}]}}


STACKS: dict[str, list[tuple[str, list[int], dict[str, Any]]]] = {
    "of one model": [("one", [0, 3], {}), ("one", [1, 4], {})],
    "of three": [("base", [0, 2], {}), ("two", [1, 3], ends(0.5)), ("one", [3, 4], {})],
    "gradient": [("one", [0, 3], ends([0, 0.5, 2.0])), ("one", [3, 4], ends(-1.0))],
}


@pytest.mark.parametrize("named_base", [False, True])
@pytest.mark.parametrize("stack", STACKS)
def test_both_programs_stack_alike(
    llamas: Path, tmp_path: Path, stack: str, named_base: bool
) -> None:
    """Layers, scales, and what stands before the layers and behind them."""
    slices = [
        {"sources": [{"model": str(llamas / name), "layer_range": layers} | more]}
        for name, layers, more in STACKS[stack]
    ]
    values: dict[str, Any] = {"merge_method": "passthrough", "slices": slices, "dtype": "float32"}
    values |= {"base_model": str(llamas / "base")} if named_base else {}
    file, back = tmp_path / "mergekit.yaml", tmp_path / "back.yaml"
    file.write_text(yaml.safe_dump(values))
    expected = by_mergekit(file, tmp_path / "theirs")
    assert main(["merge", "--recipe", str(file), "--to", str(tmp_path / "ours")]) == 0
    assert_same(read(tmp_path / "ours"), expected)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["num_hidden_layers"] == sum(end - start for _, (start, end), _ in STACKS[stack])
    recipe = tmp_path / "ours" / "recipe.yaml"
    assert main(["convert", str(recipe), "--output", str(back)]) == 0
    assert_same(by_mergekit(back, tmp_path / "again"), expected)
    written = yaml.safe_load((tmp_path / "ours" / "mergekit.yaml").read_text())
    assert written["slices"] == yaml.safe_load(back.read_text())["slices"]
