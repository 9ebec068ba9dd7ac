"""λ over the layers: anchors against numpy's interpolation, for names that transformers gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cabs_search.merging.layers import count_layers, layer_of
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import LambdaKey, Recipe, make_recipe
from cabs_search.spec.mergekit.parameters import ladder, regions

SMALL: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2}
CONFIGS = {
    "bert": transformers.BertConfig(
        **SMALL, num_hidden_layers=12, intermediate_size=8, vocab_size=9
    ),
    "gpt2": transformers.GPT2Config(n_embd=8, n_head=2, n_layer=7, vocab_size=9, n_positions=8),
    "llama": transformers.LlamaConfig(
        **SMALL, num_hidden_layers=5, intermediate_size=8, vocab_size=9
    ),
    "mixtral": transformers.MixtralConfig(
        **SMALL,
        num_key_value_heads=2,
        num_hidden_layers=3,
        intermediate_size=8,
        vocab_size=9,
        num_local_experts=2,
    ),
    "data2vec": transformers.Data2VecTextConfig(
        **SMALL, num_hidden_layers=4, intermediate_size=8, vocab_size=9
    ),
}
STACK = {"bert": "encoder.layer", "gpt2": "transformer.h", "data2vec": "encoder.layer"}
OUTSIDE = {"bert": "pooler.dense.weight", "llama": "lm_head.weight", "gpt2": "transformer.wte"}


def names_of(kind: str) -> list[str]:
    config = CONFIGS[kind]
    auto = transformers.AutoModelForCausalLM
    if kind in ("bert", "data2vec"):
        auto = transformers.AutoModel
    with torch.device("meta"):
        names = list(auto.from_config(config).state_dict())
    # data2vec's names have a number in the prefix if there is a head
    return [f"data2vec_text.{name}" if kind == "data2vec" else name for name in names]


def anchored(anchors: dict[str, tuple[float, ...]], layers: int, method: str) -> Recipe:
    by_key = {
        LambdaKey(expert, str(place)): value
        for expert, values in anchors.items()
        for place, value in enumerate(values, 1)
    }
    return make_recipe(make_method(method, tuple(anchors)), by_key, layers=layers)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("method", ["task-arithmetic", "linear"])
def test_a_layer_has_the_value_on_the_line_between_its_anchors(kind: str, method: str) -> None:
    names, layers = names_of(kind), CONFIGS[kind].num_hidden_layers
    assert count_layers(names) == layers
    values = {"a": (0.2, 1.7, -0.4), "b": (1.0, 0.5, 0.9)}
    recipe = anchored(values, layers, method)
    seen = set()
    stack = STACK.get(kind, "model.layers")
    for name in names:
        inside = name.partition(f"{stack}.")[2]
        layer = int(inside.partition(".")[0]) if inside else 0  # as mergekit has those outside
        seen.add((layer, bool(inside)))
        at = {
            expert: float(np.interp(layer, np.linspace(0, layers - 1, len(own)), own))
            for expert, own in values.items()
        }
        total = sum(at.values()) if method == "linear" else 1.0
        for expert, value in at.items():
            assert recipe.lambda_of(expert, name) == pytest.approx(value / total, abs=3e-9)
    assert seen == {(0, False), *((layer, True) for layer in range(layers))}


@pytest.mark.parametrize("layers", [2, 5, 12])
def test_anchors_are_the_gradient_of_a_converted_file(layers: int) -> None:
    """Bit for bit, with the number of anchors at its least and largest as well."""
    names = [
        "embed.weight",
        *(f"model.layers.{layer}.mlp.weight" for layer in range(layers)),
        "norm.weight",
    ]
    for count in {2, layers, min(3, layers)}:
        values = tuple(np.random.default_rng(count).normal(size=count).round(3).tolist())
        own = ladder("weight", [{"weight": list(values)}], None)
        parts = regions([own], layers)
        by_group = {LambdaKey("a", part.name): part.value(own) for part in parts}
        groups = tuple((part.name, part.pattern) for part in parts)
        method = make_method("task-arithmetic", ("a",))
        converted = make_recipe(method, by_group, groups)
        recipe = anchored({"a": values}, layers, "task-arithmetic")
        assert len(recipe.lambdas) == count
        for name in names:
            assert recipe.lambda_of("a", name) == converted.lambda_of("a", name)


def test_equal_anchors_are_one_lambda_and_zeros_remove_a_vector() -> None:
    same = {"a": (0.5, 0.5, 0.5), "b": (0.0, 0.0, 0.0)}
    plain = make_recipe(make_method("cabs", ("a", "b")), {"a": 0.5, "b": 0.0})
    assert anchored(same, 12, "cabs") == plain
    alone = anchored({"a": (0.5, 0.2), "b": (0.0, 0.0)}, 4, "task-arithmetic")
    other = anchored({"a": (0.5, 0.2), "b": (0.1, 0.0)}, 4, "task-arithmetic")
    longer = anchored({"a": (0.5, 0.2), "b": (0.0, 0.0)}, 5, "task-arithmetic")
    on_line = anchored({"a": (0.5, 0.35, 0.2), "b": (0.0, 0.0, 0.0)}, 4, "task-arithmetic")
    only = anchored({"a": (0.5, 0.2)}, 4, "task-arithmetic")
    assert alone.sum_key == on_line.sum_key == only.sum_key
    assert len({alone.key, on_line.key, only.key, longer.key}) == 4
    assert len({alone.sum_key, other.sum_key, longer.sum_key}) == 3
    assert str(other) == "task-arithmetic a=0.5→0.2 b=0.1→0"
    assert str(alone) == "task-arithmetic a=0.5→0.2 b=0"
    many = anchored({"a": tuple(np.linspace(0, 1, 12).tolist())}, 24, "task-arithmetic")
    assert str(many) == "task-arithmetic a=0…1"
    assert Recipe.from_dict(many.as_dict()) == many


def test_anchors_fit_the_layers() -> None:
    for count, layers in ((5, 4), (2, 1), (2, 1001)):
        values = tuple(float(place) for place in range(count))
        with pytest.raises(ValueError, match=rf"but got \(anchors={count}, layers={layers}\)"):
            anchored({"a": values, "b": (1.0,) * count}, layers, "cabs")
    recipe = anchored({"a": (1.0, 2.0)}, 3, "cabs")
    with pytest.raises(ValueError, match=r"layers: .* x\.h\.3\.w is beyond 3"):
        recipe.lambda_of("a", "x.h.3.w")
    plain = recipe.as_dict()
    for change, message in (
        ({"layers": 1}, "anchors=2, layers=1"),
        ({"groups": [["x", ""]]}, "layers: must not stand beside groups"),
        ({"lambda": {"a.1": 1.0, "a.3": 2.0}}, "lambda: every expert must have 2 anchors"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe.from_dict(plain | change)


def test_a_model_without_numbered_layers_has_none() -> None:
    assert count_layers(["weight", "layer1.weight", "3.weight"]) == 0
    assert layer_of("encoder.block.3.layer.1.w") == 3
