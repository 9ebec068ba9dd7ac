"""Merges of adapters written as one adapter, against what PEFT makes of it."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from peft import PeftModel

from cabs_search.checkpoints.adapter import Adapter
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.cli.commands import print_export
from cabs_search.cli.parser import parser
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.serving.adapter import ADAPTER, check_adapter, read_facts
from cabs_search.serving.export import export
from cabs_search.serving.hub import local_files
from cabs_search.spec.mergekit.read import read_any
from tests.support.adapters import adapt, merged

LLAMA = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4}
QUERY = ["q_proj", "v_proj"]


def make_family(folder: Path, config: Any, a: dict[str, Any], b: dict[str, Any]) -> Family:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "base")
    for seed, (name, settings) in enumerate({"a": a, "b": b}.items()):
        again = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
        adapt(again, folder / name, seed, task_type="CAUSAL_LM", **settings)
    return Family.open(folder / "base", {name: folder / name for name in ("a", "b")})


def llama(folder: Path, a: dict[str, Any], b: dict[str, Any], *, tied: bool = False) -> Family:
    return make_family(folder, transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied), a, b)


def recipe_of(method: str = "task-arithmetic", a: float = 1.5, b: float = 0.5) -> Recipe:
    return make_recipe(make_method(method, ("a", "b"), nm=(2, 8)), {"a": a, "b": b})


def by_peft(folder: Path) -> dict[str, torch.Tensor]:
    """Merge the exported adapter into the base, as PEFT does."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(base, str(folder / "out" / ADAPTER))
    tensors: dict[str, torch.Tensor] = merged(adapted).state_dict()
    return tensors


def test_a_sum_of_adapters_is_an_exact_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"target_modules": QUERY, "r": 4}
    other = {
        "target_modules": ["q_proj", "down_proj", "embed_tokens"],
        "r": 3,
        "use_rslora": True,
        "modules_to_save": ["lm_head", "norm"],
    }
    family = llama(tmp_path, one, other)
    to = export(family, recipe_of(), tmp_path / "out", adapter="exact")
    whole, found = Checkpoint(to), by_peft(tmp_path)
    for name in whole.names:
        assert found[name].numpy() == pytest.approx(whole.read(name).numpy(), abs=1e-5), name
    # it is an expert again, and has the ranks of the experts that change a module
    again = Adapter(to / ADAPTER, base=family.base)
    ranks = {"q_proj": 7, "v_proj": 4, "down_proj": 3}
    for module, rank in ranks.items():
        (name, _) = sorted(n for n in again.low_rank if module in n)
        factors = again.factors(name)
        assert factors is not None
        assert factors[1].shape[0] == rank
    check_adapter(family, recipe_of("linear"), None)
    print_export(argparse.Namespace(json=False), recipe_of(), to)
    assert f"as an adapter: {to}/adapter (rank 7, exact)" in capsys.readouterr().out
    assert "a LoRA adapter of the base, rank 7, exact" in (to / "README.md").read_text()


def test_an_export_names_its_merge_for_mergekit(tmp_path: Path) -> None:
    """Adapters are named on their base; λ and method come back; a push leaves such paths out."""
    family = llama(tmp_path, {"target_modules": QUERY}, {"target_modules": QUERY})
    to = export(family, recipe_of(), tmp_path / "out")
    values = yaml.safe_load((to / "mergekit.yaml").read_text("utf-8"))
    assert [one["model"] for one in values["models"]] == [
        f"{tmp_path}/base+{tmp_path}/{name}" for name in ("a", "b")
    ]
    asked, notes, is_mergekit = read_any(to / "mergekit.yaml")
    assert is_mergekit
    assert (asked.recipe, notes.losses) == (recipe_of(), [])
    assert asked.experts == {name: str(tmp_path / name) for name in ("a", "b")}
    assert sorted(local_files(to)) == ["mergekit.yaml", "recipe.yaml"]
    (to / "recipe.yaml").write_text("base: owner/base\nexperts: {a: owner/a@main}\n")
    assert local_files(to) == ["mergekit.yaml"]
    pruned = export(family, recipe_of("cabs"), tmp_path / "cabs")
    assert not (pruned / "mergekit.yaml").exists()


@pytest.mark.parametrize("rank", [4, 32])
def test_any_other_merge_is_the_nearest_adapter_of_a_rank(tmp_path: Path, rank: int) -> None:
    settings = {"target_modules": ["c_attn", "c_proj"]}
    dora = settings | {"use_dora": True, "fan_in_fan_out": True}
    config = transformers.GPT2Config(**GPT2, n_positions=32)
    family = make_family(tmp_path, config, settings, dora)
    to = export(family, recipe_of("cabs"), tmp_path / "out", adapter=rank)
    whole, found = Checkpoint(to), by_peft(tmp_path)
    lost = total = least = 0.0
    for name in family.alignment.shared:
        model_name = family.experts["a"].model_name(name)
        change = whole.read(name) - family.base.read(name)
        lost += float((whole.read(name) - found[model_name]).square().sum())
        total += float(change.square().sum())
        if change.ndim == 2:
            least += float(torch.linalg.svdvals(change)[rank:].square().sum())
    facts = read_facts(to)
    assert facts is not None
    assert facts.rank == rank
    assert facts.relative_error == pytest.approx((lost / total) ** 0.5, rel=1e-3, abs=1e-5)
    assert facts.relative_error == pytest.approx((least / total) ** 0.5, rel=1e-3, abs=1e-5)
    assert (facts.relative_error > 0.1) == (rank == 4)


def test_large_matrices_are_decomposed_as_well() -> None:
    from cabs_search.serving.adapter import _nearest

    torch.manual_seed(1)
    matrix = torch.randn(200, 7) @ torch.randn(7, 300) + 0.1 * torch.randn(200, 300)
    state = torch.get_rng_state()
    b, a = _nearest(matrix, 7)
    assert torch.equal(torch.get_rng_state(), state)
    least = float(torch.linalg.svdvals(matrix)[7:].norm())
    assert float((matrix - b @ a).norm()) == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize(
    ("a", "tied", "recipe", "adapter", "message"),
    [
        ({"target_modules": QUERY}, False, recipe_of("cabs"), "exact", "give a rank .* 64"),
        (
            {"target_modules": QUERY, "use_dora": True},
            False,
            recipe_of(),
            "exact",
            "no sum of low-rank updates",
        ),
        (
            {"target_modules": QUERY, "lora_bias": True, "r": 2},
            False,
            recipe_of(),
            4,
            "experts.a tunes model.layers.0.self_attn.q_proj.bias",
        ),
        ({"target_modules": QUERY}, False, recipe_of(a=0, b=0), "exact", "changes no matrix"),
        (
            {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
            True,
            recipe_of(),
            4,
            "embed_tokens.weight is tied to the output layer",
        ),
    ],
)
def test_what_is_no_adapter_is_refused_and_nothing_is_written(
    tmp_path: Path, a: dict[str, Any], tied: bool, recipe: Recipe, adapter: Any, message: str
) -> None:
    config = transformers.LlamaConfig(
        **LLAMA, tie_word_embeddings=tied, attention_bias="lora_bias" in a
    )
    family = make_family(tmp_path, config, a, {"target_modules": QUERY})
    with pytest.raises(ValueError, match=f"^--adapter: .*{message}") as caught:
        export(family, recipe, tmp_path / "out", adapter=adapter)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_whole_experts_are_no_adapters(tmp_path: Path) -> None:
    family = llama(tmp_path, {"target_modules": QUERY}, {"target_modules": QUERY})
    both = Family.open(tmp_path / "base", {"a": tmp_path / "a", "b": tmp_path / "base"})
    with pytest.raises(ValueError, match="experts.b is a whole model"):
        export(both, recipe_of(), tmp_path / "out", adapter=8)
    assert family.experts.keys() == both.experts.keys()


def test_the_option_takes_a_rank_or_a_word() -> None:
    known = parser(with_settings=False)
    for given, expected in ((["--adapter", "exact"], "exact"), (["--adapter", "8"], 8), ([], None)):
        options = known.parse_args(["export", "results/x", "--to", "y", *given])
        assert options.adapter == expected
