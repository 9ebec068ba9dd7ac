"""Ensembles against naive averages of whole models, one item and one choice at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from cabs_search.kinds.base import output_of
from cabs_search.kinds.causal import targets_of
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.merge import merged_tensors
from cabs_search.merging.recipe import BASE, Recipe
from cabs_search.scoring.ensemble import score_ensemble
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.candidates import Candidates, ensemble_recipes, reference_recipes
from cabs_search.spec.load import parse
from cabs_search.tasks.items import Items
from cabs_search.tasks.load import load_items
from tests.conftest import EXPERTS, pico_values
from tests.scoring.test_language_models import (
    MODELS,
    ROWS,
    items_of,
    make_family,
    make_tokenizer,
    naive_choices,
    tasks,
)
from tests.support.standins import task_of


@pytest.fixture(scope="module")
def spec(pico: Path) -> Any:
    return parse(pico_values(pico) | {"ensembles": "mean"})


def test_the_mean_of_classifiers_is_that_of_each_trunk_under_the_tasks_head(
    pico: Path, tmp_path: Path, spec: Any
) -> None:
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    bench = Workbench(family, spec.tasks, VectorCache(tmp_path), device="cpu")
    items = {task: load_items(spec, task)["confirm"] for task in spec.tasks}
    rows = {"animal": np.array([5, 0, 17, 3]), "mood": np.arange(24), "pair": np.array([2])}
    (recipe,) = ensemble_recipes(spec).values()
    found = score_ensemble(bench, recipe, items, rows)
    assert list(found) == list(rows)
    trunks = {e: AutoModelForSequenceClassification.from_pretrained(pico / e) for e in EXPERTS}
    for task, chosen in rows.items():
        for place, row in enumerate(chosen):
            item = items[task].rows[row]
            mean = sum(chances(pico / task, trunks[e].base_model, item) for e in EXPERTS) / 3
            assert found[task].predictions[place] == int(mean.argmax())
            assert found[task].scores[place] == float(int(mean.argmax()) == item.label)
            loss = -float(mean[item.label].log())
            assert found[task].losses[place] == pytest.approx(loss, abs=1e-5)


@torch.inference_mode()
def chances(head: Path, trunk: Any, item: Any) -> torch.Tensor:
    """Return probabilities of one item's classes by one expert's head on another one's trunk."""
    model = AutoModelForSequenceClassification.from_pretrained(head).eval()
    model.base_model.load_state_dict(trunk.state_dict())
    inputs = {field: torch.tensor([values]) for field, values in item.sequences[0].items()}
    return model(**inputs).logits[0].double().softmax(-1)


def prompts(model: Any, tokenizer: Any) -> list[list[float]]:
    """Return log-likelihoods of the tokens before the first choice of each of ROWS."""
    found = []
    for row in ROWS:
        start, end = str(row["start"]), str(row["ends"][0])
        if not start.rstrip():
            found.append([])
            continue
        bare = start.rstrip()
        end = f" {end}" if not end.startswith(" ") else end
        before = tokenizer(bare)["input_ids"]
        tokens = before + tokenizer(bare + end)["input_ids"][len(before) :]
        cut = max(0, len(tokens) - 41)
        own = before[cut:]
        with torch.inference_mode():
            logs = model(input_ids=torch.tensor([own])).logits[0].double().log_softmax(-1)
        found.append([float(logs[i - 1, own[i]]) for i in range(1, len(own))])
    return found


@pytest.mark.parametrize("ensemble", ["mean", "packllm"])
@pytest.mark.parametrize("place", [1, 2, 8])  # Llama, Mistral with unpacked choices, GPT-2
def test_language_models_are_averaged_as_by_hand(tmp_path: Path, place: int, ensemble: str) -> None:
    family, settings, tied, _ = MODELS[place]
    opened = make_family(tmp_path, family, settings, tied=tied, dtype="float32")
    own = {"choices": tasks()["choices"]}
    bench = Workbench(opened, own, VectorCache(tmp_path / "cache"), device="cpu")
    items = {"choices": items_of(own["choices"], bench.models[BASE].config, ROWS)}
    recipe = Recipe.from_dict(
        {"method": "task-arithmetic", "lambda": {"a": 1.0, "b": 1.0}, "ensemble": ensemble}
    )
    rows = np.array([3, 0, 1, 2, 5, 4])
    (found,) = score_ensemble(bench, recipe, items, {"choices": rows}).values()
    tokenizer = make_tokenizer("gpt2")
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("a", "b")
    ]
    choices = [naive_choices(model, tokenizer) for model in models]
    starts = [prompts(model, tokenizer) for model in models]
    right = [1, 0, 3, 4, 0, 2]
    for at, row in enumerate(rows):
        sums = np.array([[sum(tokens) for tokens in of_model[row]] for of_model in choices])
        if ensemble == "mean":
            pooled = np.log(np.exp(sums).mean(axis=0))
        else:
            perplexities = np.array([np.exp(-np.mean(of_model[row] or [0])) for of_model in starts])
            weights = (1 / perplexities) / (1 / perplexities).sum()
            assert (weights != weights[0]).any() == bool(starts[0][row])
            pooled = weights @ sums
        loss = np.log(np.exp(pooled).sum()) - pooled[right[row]]
        assert found.losses[at] == pytest.approx(loss, abs=1e-4)
        assert found.predictions[at] == int(pooled.argmax())


def test_right_choices_take_the_same_average() -> None:
    """Three of a choice's log-likelihoods become one: shares are of the mixture."""
    task = task_of("right-choices", max_length=40)
    config = transformers.GPT2Config()
    row = {"start": "the cat", "ends": ["sits on", "runs in the house", "x"], "right": [1, 0, 1]}
    item = items_of(task, config, [row]).rows[0]
    counts = targets_of(item).counts
    outputs = [-torch.rand(sum(counts), generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    found = task.kind.outcome(task, task.kind.averaged(outputs, [item]), [item])
    sums = np.array([[float(p.sum()) for p in output.split(counts)] for output in outputs])
    mixture = np.exp(sums).mean(axis=0)
    assert found.scores[0] == pytest.approx((mixture[0] + mixture[2]) / mixture.sum(), abs=1e-6)


def test_numbers_choices_and_words_are_averaged_as_by_hand() -> None:
    draws = np.random.default_rng(0)
    kind = task_of("regression").kind
    logits = draws.standard_normal((3, 5, 1)).astype(np.float32)
    outputs = [output_of(torch.from_numpy(one)) for one in logits]
    assert kind.averaged(outputs, []).logits.numpy() == pytest.approx(logits.mean(axis=0))

    kind = task_of("token-classification").kind
    logits = draws.standard_normal((3, 2, 4, 5)).astype(np.float32)
    outputs = [output_of(torch.from_numpy(one)) for one in logits]
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert kind.averaged(outputs, []).logits.exp().numpy() == pytest.approx(chances.mean(axis=0))

    kind = task_of("multiple-choice").kind
    items = fake_choices(2, 4, 3)
    logits = draws.standard_normal((3, 1, 9)).astype(np.float32)
    outputs = [output_of(torch.from_numpy(one)) for one in logits]
    found = kind.averaged(outputs, items.rows).logits
    assert found.shape == (1, 9)
    for part in (slice(0, 2), slice(2, 6), slice(6, 9)):
        own = np.exp(logits[:, 0, part])
        mean = (own / own.sum(axis=1, keepdims=True)).mean(axis=0)
        assert found[0, part].exp().numpy() == pytest.approx(mean, abs=1e-6)


def fake_choices(*counts: int) -> Items:
    from tests.scoring.test_forward import items_of as made_up

    return made_up("multiple-choice", [(4,) * count for count in counts])


def test_an_ensemble_is_no_model_and_no_candidate(pico: Path, spec: Any) -> None:
    ((label, recipe),) = ensemble_recipes(spec).items()
    assert label == "ensemble mean"
    assert str(recipe) == "mean of the outputs of mood, animal, pair"
    assert recipe.forwards == 3
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    alone = reference_recipes(spec.experts)
    assert [one.key for one in recipe.members] == [alone[f"expert {e}"].key for e in EXPERTS]
    whole = Recipe.from_dict({k: v for k, v in recipe.as_dict().items() if k != "ensemble"})
    assert whole.key != recipe.key
    assert whole.sum_key != recipe.sum_key
    values = pico_values(pico)
    values["space"]["method"] = ["task-arithmetic"]
    candidates = Candidates.of(parse(values))
    assert candidates.includes(whole)
    assert not candidates.includes(recipe)
    family = Family.open(pico / "base", {name: pico / name for name in EXPERTS})
    with pytest.raises(ValueError, match="the mean of the outputs of .* is no single model"):
        list(merged_tensors(family, recipe))
    with pytest.raises(ValueError, match="ensemble must be mean or packllm, but got 'sum'"):
        Recipe.from_dict(recipe.as_dict() | {"ensemble": "sum"})


def test_what_cannot_be_averaged_meets_one_line(pico: Path) -> None:
    values = pico_values(pico)
    with pytest.raises(ValueError, match="ensembles: packllm cannot average outputs of classif"):
        parse(values | {"ensembles": ["mean", "packllm"]})
    with pytest.raises(ValueError, match="each value must stand once, but got mean twice"):
        parse(values | {"ensembles": ["mean", "mean"]})
    with pytest.raises(ValueError, match="spec: ensembles"):
        parse(values | {"ensembles": ["median"]})
    one = values | {"experts": {"mood": values["experts"]["mood"]}, "ensembles": "mean"}
    one |= {"tasks": {"mood": values["tasks"]["mood"]}, "baselines": {}}
    with pytest.raises(ValueError, match="ensembles: two experts at the least are needed"):
        parse(one)
