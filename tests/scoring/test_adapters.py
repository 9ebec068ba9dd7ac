"""Adapters go the whole way of experts: scored with their heads, cached, merged, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import cabs_search
from cabs_search.kinds.classification import CLASSIFICATION
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.merge import merged_tensors
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.merging.resident import Resident
from cabs_search.scoring.calibrate import statistics
from cabs_search.scoring.models import check_heads, load_model
from cabs_search.scoring.workbench import Workbench
from cabs_search.serving.export import export
from cabs_search.spec.load import parse
from cabs_search.tasks.load import load_study_items
from tests.conftest import make_tokenizer, pico_values
from tests.scoring.test_architectures import ARCHITECTURES, MARKS, SMALL
from tests.support.adapters import adapt, merged

LABELS = {"mood": 2, "animal": 3}


@pytest.fixture(scope="module")
def classifiers(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of the pico base, each beside the same expert as a whole model.

    One has a tokenizer of its own.
    """
    root = tmp_path_factory.mktemp("classifiers")
    for seed, (name, labels) in enumerate(LABELS.items(), 1):
        torch.manual_seed(seed)
        model = transformers.BertForSequenceClassification.from_pretrained(
            pico / "base", num_labels=labels, dtype=torch.float32
        )
        settings = {"task_type": "SEQ_CLS", "target_modules": ["query", "dense"]}
        merged(adapt(model, root / name, seed, **settings)).save_pretrained(root / f"{name}-whole")
    make_tokenizer(root / "animal")
    return root


def values_of(pico: Path, experts: dict[str, Path]) -> dict[str, object]:
    values = pico_values(pico)
    values["experts"] = {name: str(path) for name, path in experts.items()}
    values["tasks"] = {name: values["tasks"][name] for name in experts}
    return values


def test_classifiers_score_as_the_same_experts_do_as_whole_models(
    pico: Path, classifiers: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(make_method("cabs", tuple(LABELS), nm=(2, 8)), {"mood": 1.5, "animal": 1})
    outcomes, inputs = [], []
    for end in ("", "-whole"):
        spec = parse(values_of(pico, {n: classifiers / f"{n}{end}" for n in LABELS}))
        family, items = Family.open(spec.base, spec.experts), load_study_items(spec)["search"]
        check_heads(spec.heads, family)
        bench = Workbench(family, spec.tasks, VectorCache(tmp_path / f"cache{end}"), device="cpu")
        bench.materialize(recipe)
        tensors = dict(merged_tensors(family, recipe))
        for name, model in bench.models.items():
            state, expert = model.state_dict(), family.experts[name]
            assert all(torch.equal(state[expert.model_name(n)], t) for n, t in tensors.items())
        outcomes.append(bench.score(items, {name: np.arange(24) for name in items}))
        inputs.append(statistics(family, "mood", items["mood"], "cpu", whole=False)[0])
    for name, squares in inputs[0].items():
        assert squares == pytest.approx(inputs[1][name], rel=1e-4)
    for name in LABELS:
        assert outcomes[0][name].losses == pytest.approx(outcomes[1][name].losses, abs=1e-4)
        assert len(set(outcomes[0][name].losses)) > 10


LLAMA = SMALL | MARKS | {"num_key_value_heads": 2}
BASES = ARCHITECTURES | {
    "Llama, tied": ("LlamaConfig", "LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    "Llama, untied": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
}
HEADS = {"DistilBERT": ["pre_classifier"], "DeBERTa v2": ["pooler"], "ModernBERT": ["head"]}
"""Modules of a head that PEFT does not save by itself."""


@pytest.mark.parametrize(
    ("name", "config", "model", "settings"),
    [(name, *base) for name, base in BASES.items()],
    ids=BASES.keys(),
)
def test_an_architectures_adapter_is_loaded_with_its_head(
    tmp_path: Path, name: str, config: str, model: str, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    made.save_pretrained(tmp_path / "base")
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, dtype=torch.float32
    )
    more = {"modules_to_save": HEADS[name]} if name in HEADS else {}
    adapted = adapt(tuned, tmp_path / "a", task_type="SEQ_CLS", target_modules="all-linear", **more)
    whole = merged(adapted).eval()
    family = Family.open(tmp_path / "base", {"a": tmp_path / "a"})
    loaded = load_model(family, "a", CLASSIFICATION, {}, torch.float32, torch.device("cpu"))
    whole.config.pad_token_id = loaded.config.pad_token_id = 0  # decoders take no batch without
    tokens = torch.randint(3, 60, (2, 9))
    with torch.no_grad():
        expected = whole(tokens).logits
        assert loaded(tokens).logits == pytest.approx(expected, abs=1e-4)
    assert family.alignment.heads["a"]
    assert loaded.config.num_labels == 3


def test_a_task_of_another_kind_than_the_adapters_is_refused(pico: Path, classifiers: Path) -> None:
    values = values_of(pico, {"mood": classifiers / "mood"})
    values["tasks"]["mood"] |= {"kind": "token-classification"}  # type: ignore[index]
    spec = parse(values)
    with pytest.raises(ValueError, match="experts.mood is BertForSequenceClassification"):
        load_study_items(spec)


def test_exported_heads_load(pico: Path, classifiers: Path, tmp_path: Path) -> None:
    family = Family.open(pico / "base", {name: classifiers / name for name in LABELS})
    recipe = make_recipe(make_method("cabs", tuple(LABELS), nm=(2, 8)), {"mood": 1.5, "animal": 1})
    to = export(family, recipe, tmp_path / "merged")
    tensors = dict(merged_tensors(family, recipe))
    for name, labels in LABELS.items():
        model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
            to / "heads" / name, output_loading_info=True
        )
        assert not loading["missing_keys"]
        assert model.config.num_labels == labels
        state, expert = model.state_dict(), family.experts[name]
        assert all(
            torch.equal(state[expert.model_name(n)], tensor) for n, tensor in tensors.items()
        )
        assert torch.equal(state["classifier.weight"], expert.read("classifier.weight"))
        assert transformers.AutoTokenizer.from_pretrained(to / "heads" / name)("good cat")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_language_models_go_the_whole_way(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    base, names = tmp_path / "base", ("one", "two")
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(base)
    wholes = {}
    for seed, name in enumerate(names, 1):
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        settings = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
        wholes[name] = tmp_path / f"{name}-whole"
        merged(adapt(model, tmp_path / name, seed, **settings)).save_pretrained(wholes[name])
    family = Family.open(base, {name: tmp_path / name for name in names})
    assert set(family.alignment.shared) == set(family.base.names)
    lambdas, cache = {"one": 1.5, "two": 0.5}, VectorCache(tmp_path / "cache")
    recipe = make_recipe(make_method("cabs", names, nm=(64, 256)), lambdas)
    paths = cache.ensure(family, recipe.method)
    shared = {n: torch.empty(s, dtype=dtype) for n, s in family.alignment.shapes.items()}
    resident = Resident(family.base, shared)
    resident.materialize(cache.open(paths), recipe)
    tensors = cabs_search.merge(base, {n: tmp_path / n for n in names}, lambdas, nm=(64, 256))
    exported = export(family, recipe, tmp_path / "merged", heads={})
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype="auto")
    others = cabs_search.merge(base, wholes, lambdas, nm=(64, 256))
    for name, tensor in tensors.items():
        assert torch.equal(shared[name], tensor), name
        assert torch.equal(model.state_dict()[name], tensor), name
        assert tensor.float() == pytest.approx(others[name].float(), abs=1e-2), name
    card = (exported / "README.md").read_text()
    assert family.fingerprints["one"] in card
    assert json.loads((exported / "config.json").read_text())["architectures"]
