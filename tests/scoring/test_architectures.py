"""Models of other architectures align, become resident and have the bits of a fresh merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cabs_search.kinds.base import Item
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.merge import merged_tensors
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.scoring.workbench import Workbench
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
}
MARKS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 60,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "RoBERTa, base with a language-model head": ("RobertaConfig", "RobertaForMaskedLM", SMALL),
    "RoBERTa, bare base": ("RobertaConfig", "RobertaModel", SMALL),
    "DistilBERT": ("DistilBertConfig", "DistilBertModel", DISTIL),
    "DeBERTa v2": ("DebertaV2Config", "DebertaV2Model", SMALL | DISENTANGLED),
    "ModernBERT": ("ModernBertConfig", "ModernBertModel", SMALL | MARKS),
    "GPT-2, base with a language-model head": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "GPT-2, bare base": ("GPT2Config", "GPT2Model", GPT2),
}


def open_bench(spec: Spec, tmp_path: Path) -> Workbench:
    family, cache = Family.open(spec.base, spec.experts), VectorCache(tmp_path / "cache")
    return Workbench(family, spec.tasks, cache, device=spec.device, dtype=spec.dtype)


@pytest.mark.parametrize(
    ("config", "model", "settings"), ARCHITECTURES.values(), ids=ARCHITECTURES.keys()
)
def test_an_architecture_goes_the_whole_way(
    tmp_path: Path, config: str, model: str, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    getattr(transformers, model)(getattr(transformers, config)(**settings)).save_pretrained(
        tmp_path / "base"
    )
    for seed, name in enumerate(("a", "b"), 1):
        torch.manual_seed(seed)
        expert = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=1 + seed, dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        expert.save_pretrained(tmp_path / name)
    (tmp_path / "rows.csv").write_text("text,label\nx,0\n")
    values = {
        "name": "x",
        "base": str(tmp_path / "base"),
        "experts": {name: str(tmp_path / name) for name in ("a", "b")},
        "tasks": {
            name: {"dataset": {"csv": str(tmp_path / "rows.csv")}, "text": "text"}
            for name in ("a", "b")
        },
        "device": "cpu",
    }
    spec = parse(values)
    bench = open_bench(spec, tmp_path)
    heads = [bench.family.alignment.heads[name] for name in ("a", "b")]
    assert all(any("classif" in t or "score" in t for t in head) for head in heads)
    recipe = make_recipe(make_method("cabs", ("a", "b"), nm=(2, 8)), {"a": 1.5, "b": 0.5})
    bench.materialize(recipe)
    merged = dict(merged_tensors(bench.family, recipe))
    for name in ("a", "b"):
        state = bench.models[name].state_dict()
        for tensor, value in merged.items():
            assert torch.equal(state[bench.family.experts[name].model_name(tensor)], value), tensor
        rows = tuple(
            Item(sequences=({"input_ids": torch.randint(3, 60, (n,)).tolist()},), label=0)
            for n in (7, 3, 5)
        )
        items = Items(spec.tasks[name], ("a", "b", "c"), rows, {"input_ids": 0})
        together = bench.score({name: items}, {name: np.arange(3)})[name]
        alone = [
            bench.score({name: items}, {name: np.array([i])})[name].losses[0] for i in range(3)
        ]
        assert together.losses == pytest.approx(alone, abs=1e-5), "padding changes nothing"
        assert np.isfinite(together.losses).all()


def test_a_shared_tensor_that_a_tasks_model_has_no_use_for(tmp_path: Path) -> None:
    """RoBERTa's classifier has no pooler, but files of its base and experts often hold one."""
    torch.manual_seed(0)
    base = transformers.RobertaModel(transformers.RobertaConfig(**SMALL))
    transformers.RobertaForSequenceClassification(base.config).save_pretrained(tmp_path / "a")
    base.save_pretrained(tmp_path / "base")
    pooler = {f"roberta.{n}": t for n, t in base.state_dict().items() if n.startswith("pooler")}
    assert pooler
    save_file(
        load_file(tmp_path / "a" / "model.safetensors") | pooler,
        tmp_path / "a" / "model.safetensors",
    )
    (tmp_path / "rows.csv").write_text("text,label\nx,0\n")
    values = {
        "name": "x",
        "base": str(tmp_path / "base"),
        "experts": {"a": str(tmp_path / "a")},
        "tasks": {"a": {"dataset": {"csv": str(tmp_path / "rows.csv")}, "text": "text"}},
        "device": "cpu",
    }
    bench = open_bench(parse(values), tmp_path)
    assert "pooler.dense.weight" in bench.family.alignment.shared
    bench.materialize(make_recipe(make_method("cabs", ("a",), nm=(2, 8)), {"a": 1.0}))
