"""Bases and experts of other architectures align, become resident and give the bits of a fresh merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cabs_search.evaluate import Workbench
from cabs_search.materialize import merged_tensors
from cabs_search.recipe import make_method, make_recipe
from cabs_search.spec import parse
from cabs_search.store import Store

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2}
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "RoBERTa, base with a language-model head": ("RobertaConfig", "RobertaForMaskedLM", SMALL),
    "RoBERTa, bare base": ("RobertaConfig", "RobertaModel", SMALL),
    "DistilBERT": ("DistilBertConfig", "DistilBertModel", DISTIL),
    "DeBERTa v2": ("DebertaV2Config", "DebertaV2Model", SMALL | DISENTANGLED),
    "ModernBERT": ("ModernBertConfig", "ModernBertModel", SMALL | MARKS),
    "GPT-2, base with a language-model head": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "GPT-2, bare base": ("GPT2Config", "GPT2Model", GPT2),
}


@pytest.mark.parametrize(("config", "model", "settings"), ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_an_architecture_goes_the_whole_way(tmp_path: Path, config: str, model: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    getattr(transformers, model)(getattr(transformers, config)(**settings)).save_pretrained(tmp_path / "base")
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
        "tasks": {name: {"dataset": {"csv": str(tmp_path / "rows.csv")}, "text": "text"} for name in ("a", "b")},
        "device": "cpu",
    }
    bench = Workbench(parse(values), Store(tmp_path / "cache"))
    heads = [bench.family.alignment.heads[name] for name in ("a", "b")]
    assert all(any("classif" in t or "score" in t for t in head) for head in heads)
    recipe = make_recipe(make_method("cabs", ("a", "b"), nm=(2, 8)), {"a": 1.5, "b": 0.5})
    bench.materialize(recipe)
    merged = dict(merged_tensors(bench.family, recipe))
    for name in ("a", "b"):
        state = bench.models[name].state_dict()
        for tensor, value in merged.items():
            assert torch.equal(state[bench.family.experts[name].model_name(tensor)], value), tensor
        ids = torch.randint(3, 60, (2, 7))
        if model.startswith("GPT2"):
            bench.models[name].config.pad_token_id = 0
        with torch.inference_mode():
            assert bench.models[name](input_ids=ids).logits.isfinite().all()
