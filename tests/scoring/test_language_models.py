"""Language models of several architectures: merged as a whole, scored as one by one, exported."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cabs_search.cli.main import main
from cabs_search.kinds.language_modeling import LANGUAGE_MODELING
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.merge import merged_tensors
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import BASE, Recipe, make_recipe
from cabs_search.scoring import likelihoods
from cabs_search.scoring.calibrate import calibrated
from cabs_search.scoring.likelihoods import log_likelihoods
from cabs_search.scoring.models import load_model
from cabs_search.scoring.workbench import Workbench
from cabs_search.serving import export as exporting
from cabs_search.serving.export import export
from cabs_search.spec.task import Task
from cabs_search.tasks.items import Items
from tests.support.standins import as_items, make_tokenizer, task_of

CPU = torch.device("cpu")
SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODELS = [
    ("Llama", SIZE, True, "bfloat16"),
    ("Llama", SIZE, False, "float32"),
    ("Mistral", SIZE | {"sliding_window": 8}, False, "float16"),  # too short to pack choices
    ("Qwen2", SIZE, True, "float32"),
    ("Qwen3", SIZE | {"head_dim": 8}, False, "bfloat16"),
    ("Gemma", SIZE | {"head_dim": 8}, True, "float32"),
    ("Gemma2", SIZE | {"head_dim": 8}, True, "float32"),
    ("Gemma3Text", SIZE | {"head_dim": 8}, True, "float32"),
    ("GPT2", GPT2, True, "float32"),
    ("Phi", SIZE, False, "float16"),
    ("Phi3", SIZE, False, "float32"),
    ("SmolLM3", SIZE, True, "float32"),
    ("Olmo2", SIZE, False, "float32"),
    ("Granite", SIZE | {"logits_scaling": 3.0}, True, "float32"),
]
"""Family, settings, whether the output layer is tied, and the dtype on disk and of the model."""
ROWS = [
    {"start": "the cat sits ", "ends": ["good", "bad and odd house on", "near"], "right": 1},
    {"start": "often", "ends": [" dog", "dogs"], "right": " dog"},
    {"start": "", "ends": ["the house", "a bird", "then", "in"], "right": "D"},
    {
        "start": "the",  # too little in common to pack
        "ends": [
            *("bird sleeps", "house runs in", "dog sits on", "good cat", "odd dog and cat"),
            *("near house on", "over it sits", "cat and bird", "in the house"),
        ],
        "right": 4,
    },
    {"start": "the bird " * 40, "ends": ["sleeps", "runs in the house"], "right": 0},
    {"start": "the dog", "ends": ["in", "on", "a"], "right": 2},  # one token each: no branches
]
RIGHT = {"right": 0}
TEXTS = [{"text": "the cat and the bird"}, {"text": "a house over the cat near a dog"}]


def make_family(folder: Path, family: str, settings: Any, *, tied: bool, dtype: str) -> Family:
    """Save a base of random weights and two experts that moved away from it."""
    tokenizer = make_tokenizer("gpt2")
    marks = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = getattr(transformers, f"{family}Config")(
        **settings, **marks, vocab_size=len(tokenizer), tie_word_embeddings=tied
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    for name in (BASE, "a", "b"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder / name, max_shard_size="5GB" if name == "b" else "20KB")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder / BASE)
    return Family.open(folder / BASE, {name: folder / name for name in ("a", "b")})


def recipe_of(method: str = "cabs", a: float = 1.5, b: float = 0.5) -> Recipe:
    return make_recipe(make_method(method, ("a", "b"), nm=(2, 8), density=0.3), {"a": a, "b": b})


def tasks() -> dict[str, Task]:
    choices = task_of("choices-by-likelihood", max_length=40)
    return {"choices": choices, "texts": task_of("language-modeling", max_length=7)}


def naive(model: Any, tokenizer: Any, context: str, end: str, max_length: int) -> list[float]:
    """Return log-likelihoods of a continuation's tokens by one forward pass over all tokens."""
    bare = context.rstrip()
    end = context[len(bare) :] + end
    before = tokenizer(bare)["input_ids"] if bare else [tokenizer.bos_token_id]
    tokens = before + tokenizer(bare + end)["input_ids"][len(before) if bare else 0 :]
    count = len(tokens) - len(before)
    tokens = tokens[-max_length - 1 :]
    with torch.inference_mode():
        logs = model(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    return [float(logs[i - 1, tokens[i]]) for i in range(len(tokens) - count, len(tokens))]


def naive_choices(model: Any, tokenizer: Any) -> list[list[list[float]]]:
    """Return log-likelihoods of the tokens of every choice of ROWS."""
    found = []
    for row in ROWS:
        start = str(row["start"])
        ends = [f" {end}".replace("  ", " ") for end in row["ends"]]
        ends = [end[1:] if start.endswith(" ") else end for end in ends]
        found.append([naive(model, tokenizer, start, end, 40) for end in ends])
    return found


def items_of(task: Task, config: Any, rows: Any) -> Items:
    return as_items(rows, task, config, make_tokenizer("gpt2"))


@pytest.mark.parametrize(("family", "settings", "tied", "dtype"), MODELS)
def test_a_language_model_goes_the_whole_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    settings: dict[str, Any],
    tied: bool,
    dtype: str,
) -> None:
    monkeypatch.setattr(likelihoods, "MOST_LOGITS", 1000)  # two or three tokens at once
    monkeypatch.setattr(exporting, "SHARD_BYTES", 40_000)
    opened = make_family(tmp_path, family, settings, tied=tied, dtype=dtype)
    bench = Workbench(opened, tasks(), VectorCache(tmp_path / "cache"), device="cpu", dtype=dtype)
    for recipe in (recipe_of("ties"), recipe_of(a=0.2), recipe_of()):
        bench.materialize(recipe)
    model, state = bench.models[BASE], bench.models[BASE].state_dict()
    merged = dict(merged_tensors(opened, recipe, getattr(torch, dtype)))
    prefix = "" if family != "GPT2" or next(iter(merged)) in state else "transformer."
    assert all(torch.equal(state[prefix + name], value) for name, value in merged.items())
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    export(opened, recipe, tmp_path / "out", heads={"choices": BASE, "texts": BASE})
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"generation_config.json", "chat_template.jinja", "tokenizer.json"} <= files
    assert "model.safetensors.index.json" in files
    assert "heads" not in files
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == getattr(torch, dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    items = {
        "choices": items_of(tasks()["choices"], model.config, ROWS),
        "texts": items_of(tasks()["texts"], model.config, TEXTS),
    }
    expected = naive_choices(loaded, tokenizer)
    flat = [value for row in expected for choice in row for value in choice]
    with torch.inference_mode():
        found = log_likelihoods(model, items["choices"], np.arange(len(ROWS)), CPU)
    close = 1e-5 if dtype == "float32" else 0.1
    assert found.tolist() == pytest.approx(flat, abs=close)
    with torch.inference_mode():
        alone = log_likelihoods(model, items["choices"], np.array([len(ROWS) - 1]), CPU)
    assert len(alone) == 3
    assert alone.tolist() == pytest.approx(flat[-3:], abs=close)
    outcomes = bench.score(items, {"choices": np.arange(len(ROWS)), "texts": np.arange(2)})
    sums = [torch.tensor([sum(choice) for choice in row]) for row in expected]
    right = [1, 0, 3, 4, 0, 2]
    losses = [-float(s.log_softmax(-1)[r]) for s, r in zip(sums, right, strict=True)]
    assert outcomes["choices"].losses == pytest.approx(losses, abs=10 * close)
    totals = naive_texts(loaded, tokenizer)
    assert outcomes["texts"].predictions == pytest.approx(totals, abs=100 * close)


@pytest.mark.parametrize("method", ["cabs", "task-arithmetic"])
@pytest.mark.parametrize(("tied", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_merge_of_shards_is_a_naive_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, tied: bool, dtype: str
) -> None:
    monkeypatch.setattr(exporting, "SHARD_BYTES", 20_000)
    opened = make_family(tmp_path, "Mistral", SIZE, tied=tied, dtype=dtype)
    folders = [str(tmp_path / name) for name in (BASE, "a", "b")]
    options = ["--base", folders[0], "--expert", f"a={folders[1]}", "--expert", f"b={folders[2]}"]
    options += ["--lambda", "a=1.5", "--lambda", "b=0.7", "--method", method]
    options += ["--nm", "2:8"] if method == "cabs" else []
    assert main(["merge", *options, "--to", str(tmp_path / "out")]) == 0
    base, a, b, merged = (every_tensor(tmp_path / name) for name in (BASE, "a", "b", "out"))
    assert len(list((tmp_path / "out").glob("model-*"))) > 2
    assert merged.keys() == base.keys()
    assert ("lm_head.weight" in merged) != tied
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"content {value}" in card for value in opened.fingerprints.values())
    for name, values in base.items():
        start = values.float()
        vectors = [expert[name].float() - start for expert in (a, b)]
        if method == "cabs":
            vectors = naive_cabs(vectors, 2, 8)
        expected = (1.5 * vectors[0] + 0.7 * vectors[1] + start).to(values.dtype)
        assert torch.equal(merged[name], expected), name


def every_tensor(folder: Path) -> dict[str, torch.Tensor]:
    """Read all shards of a checkpoint."""
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def naive_cabs(vectors: list[torch.Tensor], n: int, m: int) -> list[torch.Tensor]:
    """Keep the n largest weights of every m, of those that no vector before has kept."""
    taken = torch.zeros(vectors[0].numel() // m, m, dtype=torch.bool)
    found = []
    for vector in vectors:
        blocks = vector.reshape(-1, m)
        sizes = blocks.abs().masked_fill(taken, -1.0)
        order = sizes.sort(dim=1, descending=True, stable=True).indices[:, :n]
        mask = torch.zeros_like(taken).scatter_(1, order, torch.ones_like(order, dtype=torch.bool))
        taken |= mask
        found.append((blocks * mask).reshape(vector.shape))
    return found


def naive_texts(model: Any, tokenizer: Any) -> list[float]:
    """Return log-likelihoods of TEXTS in windows of 7 tokens after one token of context."""
    found = []
    for row in TEXTS:
        tokens = [tokenizer.bos_token_id, *tokenizer(row["text"])["input_ids"]]
        assert len(tokens) > 9, "there are several windows"
        total = 0.0
        for start in range(0, len(tokens) - 1, 7):
            window = torch.tensor(tokens[start : start + 8])
            with torch.inference_mode():
                logs = model(input_ids=window[None]).logits[0].float().log_softmax(-1)
            total += float(logs[:-1].gather(1, window[1:, None]).sum())
        found.append(total)
    return found


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", SIZE),
        ("Mistral", SIZE | {"sliding_window": 64}),
        ("Gemma2", SIZE | {"head_dim": 8}),
        ("Phi3", SIZE),
        ("GPT2", GPT2),
    ],
)
def test_examples_that_all_documents_share_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, settings: dict[str, Any]
) -> None:
    opened = make_family(tmp_path, family, settings, tied=False, dtype="float32")
    bench = Workbench(opened, tasks(), VectorCache(tmp_path / "cache"), device="cpu")
    rows = [row | {"start": f"{'the cat sits ' * 3}{row['start']}"} for row in ROWS[:4] + ROWS[5:]]
    rows.append({"start": "the cat sits the cat sits the cat", "ends": ["sits", "sits in"]} | RIGHT)
    model = bench.models[BASE]
    items = {"choices": items_of(tasks()["choices"], model.config, rows)}
    read: list[int] = []
    model.base_model.register_forward_hook(
        lambda _, __, inputs, ___: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )

    def score() -> tuple[Any, int]:
        read.clear()
        return bench.score(items, {"choices": np.arange(len(rows))})["choices"], sum(read)

    apart, tokens = score()
    monkeypatch.setattr(likelihoods, "SHORTEST_SHARED", 4)
    shared, fewer = score()
    assert len(read) > 1
    assert fewer < 0.8 * tokens
    assert shared.losses == pytest.approx(apart.losses, abs=1e-5)
    assert shared.scores.tolist() == apart.scores.tolist()


def test_choices_and_texts_have_the_scores_of_the_definition() -> None:
    """Log-likelihoods of three choices are 6, 5 and 9 below 0, of 1, 2 and 4 characters."""
    rows = [{"start": "the", "ends": ["a", "in", "cats"], "right": right} for right in (1, 2)]
    sums, config = [-6.0, -5.0, -9.0], transformers.LlamaConfig()
    for metric, taken in (("acc", 1), ("acc_norm", 2), ("acc_bytes", 2)):
        task = task_of("choices-by-likelihood", metric=metric)
        items = items_of(task, config, rows)
        parts = [count for item in items.rows for count in item.targets.counts]  # type: ignore[union-attr]
        output = torch.cat([torch.full((n,), s / n) for n, s in zip(parts, 2 * sums, strict=True)])
        found = task.kind.outcome(task, output, items.rows)
        assert found.predictions.tolist() == [taken, taken]
        assert found.scores.tolist() == [float(taken == 1), float(taken == 2)]
        share = np.exp(sums) / np.exp(sums).sum()
        assert found.losses == pytest.approx(-np.log(share[[1, 2]]), rel=1e-5)
        assert task.measure.compute(found.predictions, items.labels) == 0.5
    task = task_of("language-modeling")
    items = items_of(task, config, [{"text": "a cat"}, {"text": "dög"}])
    counts = [len(item.targets.tokens) for item in items.rows]  # type: ignore[union-attr]
    output = torch.cat([torch.full((n,), -t / n) for n, t in zip(counts, (10.0, 2.0), strict=True)])
    found = task.kind.outcome(task, output, items.rows)
    assert items.labels.tolist() == [5.0, 4.0]
    assert found.scores == pytest.approx([-2.0, -0.5])
    assert found.losses == pytest.approx([10 / counts[0], 2 / counts[1]])
    assert task.measure.compute(found.predictions, items.labels) == pytest.approx(np.exp(-12 / 9))
    weights = np.array([[1, 1], [2, 0]])
    samples = task.measure.resample([found.scores], [found.predictions], items.labels, weights)
    assert samples[:, 0] == pytest.approx(np.exp([-12 / 9, -10 / 5]))


def test_an_output_layer_that_a_file_holds_beside_its_embeddings_is_merged_once(
    tmp_path: Path,
) -> None:
    """Masks and angles that old files hold are not merged; bare files get the model's names."""
    make_family(tmp_path, "GPT2", GPT2, tied=True, dtype="float32")
    for name in (BASE, "a"):
        path = tmp_path / name / "model.safetensors"
        index = tmp_path / name / "model.safetensors.index.json"
        files = [path] if path.is_file() else sorted(path.parent.glob("model-*"))
        tensors = {k: v for file in files for k, v in load_file(file).items()}
        tensors |= {
            "lm_head.weight": tensors["transformer.wte.weight"].clone(),
            "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64).tril(),
        }
        if name == BASE:
            tensors = {k.removeprefix("transformer."): v for k, v in tensors.items()}
        save_file(tensors, path, {"format": "pt"})
        index.unlink(missing_ok=True)
    opened = Family.open(tmp_path / BASE, {name: tmp_path / name for name in ("a", "b")})
    assert not {"lm_head.weight", "h.0.attn.bias"} & set(opened.alignment.shared)
    assert opened.alignment.heads == {"a": (), "b": ()}
    bench = Workbench(opened, tasks(), VectorCache(tmp_path / "cache"), device="cpu")
    bench.materialize(recipe_of())
    export(opened, recipe_of(), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in bench.models[BASE].state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


@pytest.mark.parametrize(("family", "settings"), [("Llama", SIZE), ("GPT2", GPT2)])
def test_linear_layers_are_calibrated_but_not_the_output_layer(
    tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    opened = make_family(tmp_path, family, settings, tied=family == "GPT2", dtype="float32")
    config = transformers.AutoConfig.from_pretrained(tmp_path / BASE)
    items = {"choices": items_of(tasks()["choices"], config, ROWS[:2])}
    method = make_method("wanda", ("a", "b"), density=0.5)
    found = calibrated(opened, items, [method.mask], tmp_path / "cache", "cpu")  # type: ignore[list-item]
    for statistics in found.calibrations.values():
        known = {name for name in opened.alignment.shared if statistics.knows(name)}
        matrices = {n for n, shape in opened.alignment.shapes.items() if len(shape) == 2}
        assert known == {n for n in matrices if ".0." in n or ".1." in n}
        assert known


def test_configs_of_both_forms_agree(tmp_path: Path) -> None:
    make_family(tmp_path, "Llama", SIZE, tied=False, dtype="float32")
    path = tmp_path / "b" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("rope_parameters") == {"rope_theta": 10000.0, "rope_type": "default"}
    path.write_text(json.dumps(config | {"rope_theta": 10000.0, "rope_scaling": None}))
    Family.open(tmp_path / BASE, {name: tmp_path / name for name in ("a", "b")})


def cut_output_layer(folder: Path) -> None:
    """Make an expert of a tied base untied."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors")


def add_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.extra.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors")


def take_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def change_config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        config = transformers.AutoConfig.from_pretrained(folder)
        for field, value in changes.items():
            setattr(config, field, value)
        config.save_pretrained(folder)

    return change


def leave_out(field: str) -> Any:
    """Leave the default of a field out of the base's config, and have another in the expert's."""

    def change(folder: Path) -> None:
        path = folder.parent / BASE / "config.json"
        values = json.loads(path.read_text())
        del values[field]
        path.write_text(json.dumps(values))
        change_config(**{field: {"rope_type": "default", "rope_theta": 5e5}})(folder)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            cut_output_layer,
            "experts.b: .* but the base has no lm_head.weight, an output layer that",
        ),
        (add_a_tensor, "experts.b: .* but the base has no model.layers.0.self_attn.extra"),
        (take_a_tensor, "experts.b: .* has no model.layers.1.mlp.up_proj.weight"),
        (
            change_config(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
            "experts.b: .* rope_parameters.rope_theta is 500000.0 against 10000.0",
        ),
        (leave_out("rope_parameters"), "theta is 500000.0 against 10000.0"),
        (change_config(hidden_act="gelu"), "experts.b: .* hidden_act is 'gelu' against 'silu'"),
        (change_config(num_key_value_heads=1), "experts.b: .* num_key_value_heads is 1 against 2"),
        (change_config(vocab_size=500), "experts.b: .* vocab_size is 500 against"),
        (
            change_config(quantization_config={"quant_method": "gptq"}),
            "experts.b: weights must not be quantized",
        ),
    ],
)
def test_what_cannot_be_merged_whole_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    make_family(tmp_path, "Llama", SIZE, tied=True, dtype="float32")
    change(tmp_path / "b")
    with pytest.raises(ValueError, match=message) as caught:
        Family.open(tmp_path / BASE, {name: tmp_path / name for name in ("a", "b")})
    assert "\n" not in str(caught.value)


def test_a_model_that_reads_later_tokens_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    for is_decoder in (True, False):
        config.is_decoder = is_decoder
        model = transformers.BertLMHeadModel(config)
        for name in (BASE, "a"):
            model.save_pretrained(tmp_path / name)
        opened = Family.open(tmp_path / BASE, {"a": tmp_path / "a"})
        load = partial(
            load_model, opened, BASE, LANGUAGE_MODELING, {}, torch.float32, torch.device("cpu")
        )
        if is_decoder:
            load()
        else:
            with pytest.raises(ValueError, match="base: a language model must read each token"):
                load()


def test_an_export_that_a_dtype_cannot_hold_writes_nothing(tmp_path: Path) -> None:
    make_family(tmp_path, "Llama", SIZE, tied=True, dtype="float32")
    opened = Family.open(tmp_path / BASE, {name: tmp_path / name for name in ("a", "b")})
    recipe = make_recipe(make_method("task-arithmetic", ("a", "b")), {"a": 1e6, "b": 1.0})
    with pytest.raises(ValueError, match="every weight must be finite, but in torch.float16"):
        export(opened, recipe, tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()
