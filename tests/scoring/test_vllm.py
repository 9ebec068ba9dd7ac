"""vLLM's rows and the engine, with a stand-in that stores weights as vLLM does, joined and padded.

The real package needs a GPU; names and arguments are those of vllm 0.33.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from pydantic import TypeAdapter
from torch import Tensor

from cabs_search.kinds.generation import Sampling
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.recipe import BASE
from cabs_search.scoring import vllm as engines
from cabs_search.scoring import workbench as workbenches
from cabs_search.scoring.vllm import Engine, check_vllm, own_rows
from cabs_search.scoring.workbench import Workbench
from cabs_search.spec.generator import Generator, GeneratorField
from cabs_search.spec.task import Task
from cabs_search.tasks.items import Items
from tests.scoring.test_language_models import GPT2, SIZE, make_family, recipe_of
from tests.support.standins import as_items, make_tokenizer, rows_of, task_of

MODELS = {
    "Llama": (SIZE, False),
    "Mistral": (SIZE, False),
    "Qwen2": (SIZE, True),  # with biases
    "Qwen3": (SIZE | {"head_dim": 8}, True),  # with norms of queries and keys
    "GPT2": (GPT2, True),  # with transposed matrices
}
JOINT = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
STOP = ("sits", "\n")


def padded(tensor: Tensor) -> Tensor:
    rows = -(-len(tensor) // 64) * 64
    return torch.cat([tensor, torch.zeros(rows - len(tensor), *tensor.shape[1:])]).clone()


def joined(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Store a checkpoint as vLLM does."""
    found = {name: tensor.clone() for name, tensor in state.items()}
    for layer in range(layers):
        for kind in ("weight", "bias"):
            for part, joint in (("self_attn", "qkv_proj"), ("mlp", "gate_up_proj")):
                stem = f"model.layers.{layer}.{part}"
                names = [f"{stem}.{one}.{kind}" for one in JOINT[joint]]
                if names[0] in found:
                    found[f"{stem}.{joint}.{kind}"] = torch.cat([found.pop(n) for n in names])
    for name in found:
        if name.startswith("transformer.h.") and found[name].dim() == 2:
            found[name] = found[name].T.contiguous()
        if name in ("model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight"):
            found[name] = padded(found[name])
    embedded = "transformer.wte.weight" if "transformer.wte.weight" in found else None
    embedded = embedded or "model.embed_tokens.weight"
    if torch.equal(found["lm_head.weight"], found[embedded]):
        found["lm_head.weight"] = found[embedded]  # tied
    return found


def parted(found: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a checkpoint out of what ``joined`` made."""
    state = {}
    for name, tensor in like.items():
        module, _, kind = name.rpartition(".")
        parent, _, leaf = module.rpartition(".")
        joint = next((j for j, leaves in JOINT.items() if leaf in leaves), None)
        if joint is None:
            whole = found[name]
            transposed = name.startswith("transformer.h.") and whole.dim() == 2
            state[name] = (whole.T if transposed else whole)[: len(tensor)]
        else:
            sizes = [len(like[f"{parent}.{one}.{kind}"]) for one in JOINT[joint]]
            parts = found[f"{parent}.{joint}.{kind}"].split(sizes)
            state[name] = parts[JOINT[joint].index(leaf)]
    return state


class FusedModel:
    packed_modules_mapping = JOINT

    def __init__(self, folder: str) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.layers = self.model.config.num_hidden_layers
        self.parameters = joined(dict(self.model.state_dict()), self.layers)
        self.loads: list[list[str]] = []

    def named_parameters(self, *, remove_duplicate: bool) -> Any:
        assert not remove_duplicate
        return [(name, torch.nn.Parameter(t)) for name, t in self.parameters.items()]

    def load_weights(self, weights: Any) -> None:
        given = dict(weights)
        self.loads.append(sorted(given))
        like = dict(self.model.state_dict())
        for name, tensor in joined(parted(self.parameters, like) | given, self.layers).items():
            self.parameters[name].copy_(tensor)

    def become(self) -> Any:
        state = parted(self.parameters, dict(self.model.state_dict()))
        self.model.load_state_dict(state)
        return self.model


class LLM:
    made: ClassVar[list[Any]] = []
    is_stale, answers = False, True

    def __init__(self, **given: Any) -> None:
        self.given, self.params, self.resets = given, list[Any](), 0
        self.inner = FusedModel(given["model"])
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(given["model"])
        self.made.append(self)

    def apply_model(self, act: Any) -> list[Any]:
        return [act(self.inner)]

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return self.answers

    def generate(self, prompts: Any, params: Any, *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        model = self.inner.model if self.is_stale else self.inner.become()
        several = params if isinstance(params, list) else [params] * len(prompts)
        self.params += several
        return [
            self.one(model, p["prompt_token_ids"], s) for p, s in zip(prompts, several, strict=True)
        ]

    @torch.inference_mode()
    def one(self, model: Any, prompt: list[int], params: Any) -> Any:
        found, logprobs = list[int](), list[Any]()
        while len(found) < params.max_tokens:
            logs = model(torch.tensor([prompt + found])).logits[0, -1].log_softmax(-1)
            found.append(int(logs.argmax()))
            logprobs.append({found[-1]: SimpleNamespace(logprob=float(logs.max()))})
            text = self.tokenizer.decode(found)
            stops = getattr(params, "stop", [])
            if found[-1] in getattr(params, "stop_token_ids", []) or any(s in text for s in stops):
                break
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(found), logprobs=logprobs)])


def items_of(task: Task, bench: Workbench, count: int) -> Items:
    rows = rows_of("generation", 1, count)
    return as_items(rows, task, bench.models[BASE].config, make_tokenizer("gpt2"))


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(engines, "SETTINGS", {})
    monkeypatch.setattr(workbenches, "check_vllm", lambda *_: None)


@pytest.mark.parametrize("family", MODELS)
def test_rows_are_those_that_a_tensor_has_in_the_joint_parameters(family: str) -> None:
    settings, tied = MODELS[family]
    config = getattr(transformers, f"{family}Config")(
        **settings, vocab_size=70, tie_word_embeddings=tied
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    first = {name: torch.rand_like(t) for name, t in model.state_dict().items()}
    if tied:
        first["lm_head.weight"] = next(t for n, t in first.items() if t.shape[0] == 70)
    fused = joined(first, 2)
    shapes = {n: tuple(t.shape) for n, t in first.items() if not tied or n != "lm_head.weight"}
    rows = own_rows(fused, JOINT, shapes)
    missing = shapes.keys() - rows.keys()
    if family == "GPT2":
        assert {n.rsplit(".", 2)[-2] for n in missing} == {"c_attn", "c_fc", "c_proj"}
    else:
        assert not missing
    second = {name: torch.rand_like(t) for name, t in first.items()}
    if tied:
        second["lm_head.weight"] = next(t for n, t in second.items() if t.shape[0] == 70)
    for name, own in rows.items():
        assert own.is_contiguous()
        own.copy_(second[name])
    expected = joined(second, 2)
    for name, tensor in fused.items():
        if family != "GPT2" or tensor.dim() == 1 or name in rows:
            is_square = family == "GPT2" and name.endswith("attn.c_proj.weight")
            assert torch.equal(tensor, expected[name].T if is_square else expected[name]), name


def test_rows_of_other_shapes_are_no_tensors() -> None:
    joint = {"m.qkv_proj.weight": torch.zeros(10, 4), "e.weight": torch.zeros(65, 4)}
    shapes = {f"m.{one}_proj.weight": (3, 4) for one in "qkv"} | {"e.weight": (64, 4)}
    assert own_rows(joint, JOINT, shapes) == {}
    joint["m.qkv_proj.weight"] = torch.zeros(9, 4)
    assert own_rows(joint, JOINT, shapes).keys() == shapes.keys() - {"e.weight"}
    del shapes["m.k_proj.weight"]
    assert own_rows(joint, JOINT, shapes) == {}, "a part that is not merged"


@pytest.mark.parametrize("family", MODELS)
def test_texts_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    settings, tied = MODELS[family]
    opened = make_family(tmp_path, family, settings, tied=tied, dtype="float32")
    tasks, cache = {"texts": task_of("generation", stop=STOP)}, VectorCache(tmp_path / "cache")
    plain = Workbench(opened, tasks, cache, device="cpu")
    fast = Workbench(opened, tasks, cache, device="cpu", generator=Generator(engine="vllm"))
    (llm,) = LLM.made
    assert llm.given["max_model_len"] == tasks["texts"].max_length
    items = as_items(
        rows_of("generation", 1, 8),
        tasks["texts"],
        fast.models[BASE].config,
        make_tokenizer("gpt2"),
    )
    given, rows, written = {"texts": items}, {"texts": np.arange(8)[::-1].copy()}, []
    for recipe in (recipe_of(a=0, b=0), recipe_of(), recipe_of("task-arithmetic", 3, -2)):
        for bench in (plain, fast):
            bench.materialize(recipe)
        expected = plain.score(given, rows)["texts"].predictions.tolist()
        assert fast.score(given, rows)["texts"].predictions.tolist() == expected
        assert fast.score(given, rows)["texts"].predictions.tolist() == expected
        written.append(expected)
    assert written[0] != written[1] != written[2]
    assert llm.resets == 3, "once for a candidate"
    # what is stored otherwise is copied, all else is in place
    stored = {n for names in llm.inner.loads for n in names}
    assert bool(stored) == (family == "GPT2")
    assert all(name.split(".")[-2].startswith("c_") for name in stored)
    shared = {t.untyped_storage().data_ptr() for t in llm.inner.parameters.values()}
    own = {
        n: p.untyped_storage().data_ptr() in shared for n, p in fast.models[BASE].named_parameters()
    }
    assert {name for name, is_shared in own.items() if not is_shared} == stored


def test_tokens_are_drawn_by_item_and_run(tmp_path: Path) -> None:
    opened = make_family(tmp_path, "Llama", SIZE, tied=True, dtype="float32")
    tasks = {"texts": task_of("generation", stop=STOP)}
    cache, generator = VectorCache(tmp_path / "cache"), Generator(engine="vllm")
    bench = Workbench(opened, tasks, cache, device="cpu", generator=generator)
    bench.materialize(recipe_of())
    model = bench.models[BASE]
    items = as_items(
        rows_of("generation", 1, 3), tasks["texts"], model.config, make_tokenizer("gpt2")
    )
    nothing = bench.score({"texts": items}, {"texts": np.arange(0)})["texts"]
    assert len(nothing.scores) == 0
    assert LLM.made[0].params == []
    seeds = []
    for seed, rows in ((1, [0, 1, 2]), (2, [0, 1, 2]), (1, [2])):
        LLM.made[0].params.clear()
        drawn = Sampling(temperature=0.7, seed=seed)
        bench.score({"texts": items}, {"texts": np.array(rows)}, sampling=drawn)
        params = [p for p in LLM.made[0].params if p.max_tokens != 1]
        assert {p.temperature for p in params} == {0.7}
        assert all(p.stop == [*STOP, "<|endoftext|>"] and p.stop_token_ids == [0] for p in params)
        seeds.append([p.seed for p in params])
    assert len({*seeds[0], *seeds[1]}) == 6
    assert seeds[2] == seeds[0][2:]


def test_what_is_left_of_the_last_candidate_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = make_family(tmp_path, "Llama", SIZE, tied=True, dtype="float32")
    tasks = {"texts": task_of("generation")}
    cache, generator = VectorCache(tmp_path / "cache"), Generator(engine="vllm")
    bench = Workbench(opened, tasks, cache, device="cpu", generator=generator)
    model = bench.models[BASE]
    items = {
        "texts": as_items(
            rows_of("generation", 1, 2), tasks["texts"], model.config, make_tokenizer("gpt2")
        )
    }
    rows = {"texts": np.arange(2)}
    monkeypatch.setattr(LLM, "is_stale", True)
    bench.materialize(recipe_of())
    bench.score(items, rows)
    bench.materialize(recipe_of())
    bench.score(items, rows)  # the same again
    bench.materialize(recipe_of(a=0.1))
    with pytest.raises(RuntimeError, match="computes with the last candidate's weights"):
        bench.score(items, rows)
    monkeypatch.setattr(LLM, "is_stale", False)
    monkeypatch.setattr(LLM, "answers", False)
    with pytest.raises(RuntimeError, match="keeps keys and values of the last candidate"):
        bench.score(items, rows)


def test_an_error_of_vllm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(LLM, "__init__", broken)
    opened = make_family(tmp_path, "Llama", SIZE, tied=True, dtype="float32")
    tasks = {"texts": task_of("generation")}
    with pytest.raises(ValueError, match="^generator.engine: vllm: no room$"):
        Engine(opened.base, opened.alignment.shapes, tasks, torch.float32, Generator())


def test_what_it_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    tasks = {"texts": task_of("generation")}
    likelihood = {"texts": task_of("language-modeling")}

    def refusal(*args: Any, **options: Any) -> str:
        with pytest.raises(ValueError) as caught:
            check_vllm(*args, **options)
        return str(caught.value)

    assert "none does" in refusal(likelihood, "bfloat16", tmp_path, "cuda")
    assert "got float32" in refusal(tasks, "float32", tmp_path, "cuda")
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    assert "pip install 'cabs-search[vllm]'" in refusal(tasks, "bfloat16", tmp_path, "cuda")
    monkeypatch.setattr(engines, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs a GPU with CUDA" in refusal(tasks, "bfloat16", tmp_path, "auto")
    check_vllm(tasks, "bfloat16", tmp_path, "auto", is_here=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_vllm(tasks, "float16", tmp_path, "auto")
    (tmp_path / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    assert "not quantized" in refusal(tasks, "bfloat16", tmp_path, "cuda")


def test_a_word_names_the_engine() -> None:
    adapter = TypeAdapter(GeneratorField)
    assert adapter.validate_python("vllm") == Generator(engine="vllm", memory=0.5)
    assert adapter.validate_python({"engine": "vllm", "memory": 0.3}).memory == 0.3
    for wrong in ("sglang", {"memory": 1}, {"engine": "vllm", "card": 1}, 3):
        with pytest.raises(ValueError):
            adapter.validate_python(wrong)
