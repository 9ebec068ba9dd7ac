"""Stacks of layers: the model built by hand, layer by layer, and no tensor twice in memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from safetensors.torch import load_file

from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import BASE, Recipe, make_recipe
from cabs_search.merging.stack import MERGED, Slot, Stack, whole
from cabs_search.scoring.generate import generate
from cabs_search.scoring.workbench import Workbench
from cabs_search.serving.export import export
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from tests.conftest import EXPERTS, pico_values
from tests.scoring.test_architectures import MARKS, open_bench
from tests.scoring.test_generation import items_of, naive
from tests.scoring.test_language_models import GPT2, SIZE, make_family
from tests.support.adapters import adapt
from tests.support.adapters import merged as merged_by_peft
from tests.support.standins import make_tokenizer, task_of

CPU = torch.device("cpu")
LAMBDAS = {"mood": 0.7, "animal": 0.4, "pair": -0.2}
STACK = (
    Slot("mood", 1, 0.5),
    Slot(MERGED, 0),
    Slot("animal", 0, 1.25),
    Slot("mood", 1),
    Slot(BASE, 1, -0.5),
)
Floats = npt.NDArray[np.float64]
State = dict[str, Floats]


@pytest.fixture(scope="module")
def spec(pico: Path) -> Spec:
    return parse(pico_values(pico))


def recipe_of(stack: Stack, lambdas: dict[str, float] = LAMBDAS) -> Recipe:
    return make_recipe(make_method("task-arithmetic", tuple(lambdas)), lambdas, stack=stack)


def states_of(pico: Path) -> dict[str, State]:
    """Read base and experts, and merge them by the formula; names as in the bare base."""
    found: dict[str, State] = {}
    for name in (BASE, *EXPERTS):
        tensors = load_file(pico / name / "model.safetensors")
        found[name] = {n.removeprefix("bert."): t.double().numpy() for n, t in tensors.items()}
    base = found[BASE]
    found[MERGED] = {
        n: base[n] + sum(v * (found[e][n] - base[n]) for e, v in LAMBDAS.items()) for n in base
    }
    return found


def norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * weight + bias


def layer_by_hand(state: State, layer: int, x: Floats, scale: float) -> Floats:
    """BERT's layer on one sequence, [tokens, hidden], with two heads."""

    def linear(name: str, given: Floats) -> Floats:
        start = f"encoder.layer.{layer}.{name}"
        return given @ state[f"{start}.weight"].T + state[f"{start}.bias"]

    def normed(name: str, given: Floats) -> Floats:
        start = f"encoder.layer.{layer}.{name}.LayerNorm"
        return norm(given, state[f"{start}.weight"], state[f"{start}.bias"])

    query, key, value = (linear(f"attention.self.{part}", x) for part in ("query", "key", "value"))
    heads = []
    for part in np.split(np.arange(x.shape[1]), 2):
        shares = np.exp(query[:, part] @ key[:, part].T / math.sqrt(len(part)))
        heads.append(shares / shares.sum(-1, keepdims=True) @ value[:, part])
    attended = linear("attention.output.dense", np.concatenate(heads, -1))
    x = normed("attention.output", x + scale * attended)
    inner = linear("intermediate.dense", x)
    inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
    return normed("output", x + scale * linear("output.dense", inner))


def logits_by_hand(states: dict[str, State], stack: Stack, head: str, tokens: Any) -> Floats:
    merged, kinds = states[MERGED], np.array(tokens["token_type_ids"])
    x = merged["embeddings.word_embeddings.weight"][np.array(tokens["input_ids"])]
    x = x + merged["embeddings.position_embeddings.weight"][: len(x)]
    x = x + merged["embeddings.token_type_embeddings.weight"][kinds]
    ends = (merged[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias"))
    x = norm(x, *ends)
    for source, layer, scale in stack:
        x = layer_by_hand(states[source], layer, x, scale)
    pooled = np.tanh(x[0] @ merged["pooler.dense.weight"].T + merged["pooler.dense.bias"])
    logits: Floats = pooled @ states[head]["classifier.weight"].T + states[head]["classifier.bias"]
    return logits


def losses_by_hand(pico: Path, spec: Spec, stack: Stack, items: Any) -> dict[str, Floats]:
    states, found = states_of(pico), {}
    for task in spec.tasks:
        losses = []
        for row in items[task].rows[:6]:
            logits = logits_by_hand(states, stack, task, row.sequences[0])
            losses.append(np.log(np.exp(logits).sum()) - logits[row.label])
        found[task] = np.array(losses)
    return found


def losses_of(bench: Workbench, items: Any) -> dict[str, Any]:
    rows = {task: np.arange(6) for task in items}
    return {task: outcome.losses for task, outcome in bench.score(items, rows).items()}


def test_a_stack_is_the_model_built_by_hand(
    pico: Path, spec: Spec, tmp_path: Path, cache: Path
) -> None:
    """Six items of each task, by formulas in float64; then other stacks, and none."""
    items = load_study_items(spec)["search"]
    bench = open_bench(spec, cache)
    bench.materialize(recipe_of(()))
    before = losses_of(bench, items)
    for stack in (STACK, (Slot("pair", 0),), STACK[1:3]):
        bench.materialize(recipe_of(stack))
        found = losses_of(bench, items)
        for task, expected in losses_by_hand(pico, spec, stack, items).items():
            np.testing.assert_allclose(found[task], expected, rtol=2e-5, atol=2e-5)
    bench.materialize(recipe_of(()))
    after = losses_of(bench, items)
    assert all((after[task] == before[task]).all() for task in items)
    bench.materialize(recipe_of(whole(MERGED, 2)))
    again = losses_of(bench, items)
    assert all((again[task] == before[task]).all() for task in items)


def test_no_tensor_stands_twice_in_memory(spec: Spec, cache: Path) -> None:
    """Three layers are read from disk, whatever the number of slots and of models."""
    bench = open_bench(spec, cache)
    own = {tensor.data_ptr() for tensor in bench.models["mood"].bert.encoder.parameters()}
    bench.materialize(recipe_of((*STACK, *STACK, *STACK)))
    addresses = set()
    for model in bench.models.values():
        layers = model.bert.encoder.layer
        assert len(layers) == 15 == model.config.num_hidden_layers
        addresses |= {parameter.data_ptr() for parameter in layers.parameters()}
        assert len({id(layer) for layer in layers}) == 15
    assert len(addresses - own) == 3 * 16, "a layer of BERT has 16 tensors"
    bench.materialize(recipe_of(()))
    assert [model.config.num_hidden_layers for model in bench.models.values()] == [2, 2, 2]


@pytest.mark.parametrize("compact", [False, True])
def test_an_exported_stack_scores_as_the_resident_one(
    pico: Path, spec: Spec, tmp_path: Path, cache: Path, compact: bool
) -> None:
    items = load_study_items(spec)["search"]
    family = Family.open(spec.base, spec.experts)
    export(family, recipe_of(STACK), tmp_path / "to", compact=compact)
    expected = losses_by_hand(pico, spec, STACK, items)
    for task in spec.tasks:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "to" / "heads" / task, output_loading_info=True
        )
        model, loading = model
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
        assert len(model.bert.encoder.layer) == 5
        for row, loss in zip(items[task].rows, expected[task], strict=False):
            tokens = {k: torch.tensor([v]) for k, v in row.sequences[0].items()}
            with torch.inference_mode():
                found = model.eval()(**tokens, labels=torch.tensor([row.label])).loss
            assert float(found) == pytest.approx(loss, rel=2e-5, abs=2e-5)
    if not compact:
        bare = transformers.AutoModel.from_pretrained(tmp_path / "to")
        assert bare.config.num_hidden_layers == 5


LANGUAGE_MODELS = [
    ("Llama", SIZE, True, (0.5, 2.0)),
    ("GPT2", GPT2, True, (0.5, 2.0)),
    ("Qwen3", SIZE | {"head_dim": 8}, False, (0.5, -1.0)),
    ("Phi", SIZE, False, (0.5, 2.0)),
    ("SmolLM3", SIZE | {"no_rope_layers": [1, 0]}, True, (0.5, 2.0)),
    (
        "Gemma3Text",
        SIZE
        | {
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        True,
        (1.0, 1.0),
    ),
]


@pytest.mark.parametrize(("name", "settings", "tied", "scales"), LANGUAGE_MODELS)
def test_a_stacked_language_model_writes_and_reads_as_its_export(
    tmp_path: Path, cache: Path, name: str, settings: Any, tied: bool, scales: tuple[float, float]
) -> None:
    """The cached keys and values of a layer that stands there twice are its own at each place."""
    family = make_family(tmp_path, name, settings, tied=tied, dtype="float32")
    first, second = scales
    stack = (
        Slot("a", 0),
        Slot("b", 1, first),
        Slot(BASE, 1),
        Slot("b", 1, second),
        Slot(MERGED, 0),
    )
    recipe = recipe_of(stack, {"a": 0.6, "b": 0.3})
    tasks = {"texts": task_of("generation"), "reads": task_of("language-modeling")}
    bench = open_bench_of(family, tasks, cache)
    bench.materialize(recipe)
    model = bench.models[BASE]
    export(family, recipe, tmp_path / "to")
    loaded, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "to", output_loading_info=True, dtype=torch.float32
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
    tokens = torch.randint(0, model.config.vocab_size, (2, 17))
    with torch.inference_mode():
        expected = loaded.eval()(tokens, use_cache=False).logits
        torch.testing.assert_close(model(tokens, use_cache=False).logits, expected)
    items = items_of(model)
    rows = np.arange(3)
    texts = generate(model, items, rows, CPU)
    assert texts == [naive(loaded, items, row, ("<|endoftext|>",)) for row in rows]
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    layers = [slot.layer for slot in stack]
    for field in ("layer_types", "no_rope_layers"):
        if field in settings:
            assert config[field] == [settings[field][layer] for layer in layers]


def open_bench_of(family: Family, tasks: Any, cache: Path, dtype: str = "float32") -> Workbench:
    return Workbench(family, tasks, VectorCache(cache), device="cpu", dtype=dtype)


def test_layers_of_adapters_are_those_that_peft_merges(tmp_path: Path, cache: Path) -> None:
    """In float32 and, resident, in half precision."""
    config = transformers.LlamaConfig(**SIZE, vocab_size=80)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / BASE)
    make_tokenizer("gpt2").save_pretrained(tmp_path / BASE)
    states = {}
    for seed, name in enumerate(("a", "b")):
        again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / BASE)
        modules = ["q_proj", "o_proj", "down_proj"]
        adapted = adapt(again, tmp_path / name, seed, target_modules=modules, task_type="CAUSAL_LM")
        states[name] = merged_by_peft(adapted).state_dict()
    family = Family.open(tmp_path / BASE, {name: tmp_path / name for name in ("a", "b")})
    stack = (Slot("b", 1), Slot("a", 0, 0.5), Slot("b", 1, -1.0))
    recipe = recipe_of(stack, {"a": 0.0, "b": 0.0})
    export(family, recipe, tmp_path / "to")
    found = load_file(tmp_path / "to" / "model.safetensors")
    for place, (name, layer, scale) in enumerate(stack):
        for key, tensor in states[name].items():
            rest = key.removeprefix(f"model.layers.{layer}.")
            if rest != key:
                is_end = rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
                expected = tensor * scale if is_end else tensor
                torch.testing.assert_close(found[f"model.layers.{place}.{rest}"], expected)
    tokens, loaded = (
        torch.randint(0, 80, (2, 9)),
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "to", dtype=torch.float32),
    )
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.05)):
        bench = open_bench_of(family, {"t": task_of("language-modeling")}, cache, dtype)
        bench.materialize(recipe)
        with torch.inference_mode():
            logits = bench.models[BASE](tokens).logits
            assert str(logits.dtype) == f"torch.{dtype}"
            torch.testing.assert_close(
                logits.float(), loaded.eval()(tokens).logits, atol=tolerance, rtol=tolerance
            )


def test_layers_that_share_tensors_or_differ_are_refused(tmp_path: Path) -> None:
    small = SIZE | MARKS | {"vocab_size": 60, "embedding_size": 8}
    for config, message in (
        (transformers.AlbertConfig(**small), "each layer must have tensors of its own"),
        (transformers.ModernBertConfig(**small), "layers 0 and 1 differ in attn_norm.weight"),
        (transformers.T5Config(d_model=8, d_ff=8, num_layers=2, num_heads=2), "one list of layers"),
    ):
        for name in (BASE, "a"):
            torch.manual_seed(len(name))
            transformers.AutoModel.from_config(config).save_pretrained(tmp_path / message / name)
        family = Family.open(tmp_path / message / BASE, {"a": tmp_path / message / "a"})
        with pytest.raises(ValueError, match=message):
            export(family, recipe_of((Slot("a", 0),), {"a": 1.0}), tmp_path / "to")


def test_layers_that_cannot_be_stacked_are_refused(tmp_path: Path, cache: Path) -> None:
    family = make_family(tmp_path, "Gemma2", SIZE | {"head_dim": 8}, tied=True, dtype="float32")
    for stack, message in (
        ((Slot("a", 0, 0.5),), "norm post_feedforward_layernorm behind"),
        ((Slot("a", 2),), "layers 0 to 1, but got 2 of a"),
    ):
        recipe = recipe_of(stack, {"a": 1.0, "b": 0.0})
        with pytest.raises(ValueError, match=message):
            export(family, recipe, tmp_path / "to")
        bench = open_bench_of(family, {"texts": task_of("language-modeling")}, cache)
        with pytest.raises(ValueError, match=message):
            bench.materialize(recipe)
    assert not (tmp_path / "to").exists()
