"""Gradients in λ against central differences in float64; nothing stays behind in the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_layers import GradientCheckpointingLayer

from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.scoring import gradients
from cabs_search.scoring.batches import collate
from cabs_search.scoring.forward import ENTROPY, TEMPERATURES, at_temperature
from cabs_search.scoring.likelihoods import log_likelihoods
from cabs_search.scoring.workbench import Workbench
from cabs_search.tasks.load import load_items
from tests.scoring.test_architectures import open_bench
from tests.scoring.test_forward import shared_spec
from tests.support.standins import WORD_LABELS, as_items, auto_class, make_base, rows_of, task_of

STEP, ITEMS, TOKENS = 1e-4, 6, 60
CASES = [
    ("bert", "classification", "task-arithmetic", 1.0, 1e-6),
    ("bert", "regression", "ties", 1.0, 1e-6),
    ("roberta", "multiple-choice", "cabs", 0.5, 1e-6),
    ("bert", "question-answering", "dare", 4.0, 1e-6),
    ("gpt2", "token-classification", "ties-dare", 2.0, 1e-6),
    ("deberta-v2", "classification", "magnitude", 1.0, 1e-6),
    ("gpt2", "choices-by-likelihood", "cabs", 2.0, 1e-6),  # its output layer is tied
    ("gpt2", "language-modeling", "ties-dare", 1.0, 1e-6),
    ("bert", "classification", "cabs", ENTROPY, 1e-6),
    ("roberta", "multiple-choice", "task-arithmetic", ENTROPY, 1e-5),  # nearly even: it is tiny
    ("gpt2", "token-classification", "magnitude", ENTROPY, 1e-6),
    ("gpt2", "choices-by-likelihood", "ties", ENTROPY, 1e-6),
    ("modernbert", "regression", "cabs", 1.0, 1e-5),  # it turns queries and keys in float32
]
"""Architecture, kind, method, temperature or entropy, and how close the differences are."""


def open_family(folder: Path, architecture: str, kind: str, method: str) -> tuple[Workbench, Any]:
    """Return a float64 model merged of two random experts of a random base, and items."""
    base = make_base(folder / "base", architecture)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    counts = {"regression": 1, "token-classification": len(WORD_LABELS)}
    labels = {"num_labels": counts[kind]} if kind in counts else {}
    for seed, name in enumerate(("a", "b"), 1):
        torch.manual_seed(seed)
        model = auto_class(kind).from_pretrained(base, dtype=torch.float32, **labels)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    family = Family.open(folder / "base", {name: folder / name for name in ("a", "b")})
    task = task_of(kind)
    bench = Workbench(
        family, {"a": task}, VectorCache(folder / "cache"), device="cpu", dtype="float64"
    )
    chosen = make_method(method, ("a", "b"), nm=(3, 8), density=0.3)
    bench.materialize(make_recipe(chosen, {"a": 0.7, "b": 0.4}))
    config = next(iter(bench.models.values())).config
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        base, **task.kind.tokenizer_arguments(config)
    )
    return bench, as_items(rows_of(kind, 7, ITEMS), task, config, tokenizer)


def total_loss(bench: Workbench, items: Any, temperature: float) -> float:
    """Sum the losses of all items in float64: one padded batch, every token in every layer."""
    kind, model = items.task.kind, next(iter(bench.models.values()))
    with torch.no_grad():
        if kind.is_causal:
            output = log_likelihoods(model, items, np.arange(len(items)), bench.device)
        else:
            output = model(**collate(items, np.arange(len(items))))
        at = at_temperature(output, temperature)
        wanted = kind.entropies if temperature == ENTROPY else kind.losses
        return float(wanted(items.task, at, items.rows).sum())


def by_differences(bench: Workbench, items: Any, method: Any, temperature: float) -> np.ndarray:
    """Return dL/dλ, [experts, tensors], by moving each tensor along each expert's vector."""
    family, vectors = bench.family, bench._vectors(method)
    found = np.zeros((len(family.experts), len(family.alignment.shared)))
    for column, name in enumerate(family.alignment.shared):
        tensor = bench.resident._tensors[name]
        merged = tensor.clone()
        for row, expert in enumerate(family.experts):
            if (kept := vectors[expert].kept(name, tensor.numel())) is None:
                continue
            step = torch.zeros_like(tensor)
            step[slice(None) if kept.mask is None else kept.mask] = STEP * kept.values.double()
            tensor.copy_(merged + step)
            after = total_loss(bench, items, temperature)
            tensor.copy_(merged - step)
            found[row, column] = (after - total_loss(bench, items, temperature)) / (2 * STEP)
        tensor.copy_(merged)
    return found


@pytest.mark.parametrize(("architecture", "kind", "method", "temperature", "close"), CASES)
def test_gradients_are_those_of_central_differences(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    kind: str,
    method: str,
    temperature: float,
    close: float,
) -> None:
    # so small that there are several batches, and that word embeddings have sparse gradients
    monkeypatch.setattr(gradients, "batch_tokens", lambda _: TOKENS)
    bench, items = open_family(tmp_path, architecture, kind, method)
    if method == "task-arithmetic":  # two names of one tensor: the last is its value
        first, last = bench.models["a"].base_model.encoder.layer
        first.output.dense.weight = last.output.dense.weight
    given, rows = {"a": items}, {"a": np.arange(ITEMS)}
    temperatures = {"a": temperature}
    before = bench.score(given, rows, temperatures)["a"]
    outcomes, found = bench.score_with_gradients(given, rows, temperatures)
    chosen = make_method(method, ("a", "b"), nm=(3, 8), density=0.3)
    expected = by_differences(bench, items, chosen, temperature)
    assert found["a"].shape == expected.shape
    scale = np.abs(expected).max()
    assert np.abs(found["a"] - expected).max() < close * scale
    assert np.count_nonzero(np.abs(expected) > 1e-4 * scale) > expected.size / 4
    assert outcomes["a"].losses == pytest.approx(before.losses, rel=1e-6)
    assert outcomes["a"].scores == pytest.approx(before.scores)
    if temperature == ENTROPY:
        labelled = bench.score(given, rows)["a"]
        assert outcomes["a"].predictions.tolist() == labelled.predictions.tolist()
        assert outcomes["a"].losses != pytest.approx(labelled.losses, rel=1e-5)
    elif items.task.kind.has_log_losses:
        sums = bench.losses_by_temperature(given, rows)["a"]
        known = TEMPERATURES.index(temperature)
        assert sums[known] == pytest.approx(outcomes["a"].losses.sum(), rel=1e-5)
        assert outcomes["a"].predictions.tolist() == before.predictions.tolist()


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("bert", "classification"),
        ("gpt2", "choices-by-likelihood"),
        ("gpt2", "token-classification"),
        ("llama", "classification"),
    ],
)
def test_layers_of_large_models_are_computed_twice_and_gradients_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, kind: str
) -> None:
    bench, items = open_family(tmp_path, architecture, kind, "cabs")
    given, rows = {"a": items}, {"a": np.arange(ITEMS)}
    _, expected = bench.score_with_gradients(given, rows)
    calls: list[int] = []
    model = next(iter(bench.models.values()))
    inside = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for number, layer in enumerate(inside):
        first = next(layer.children())
        first.register_forward_hook(lambda *_, number=number: calls.append(number))
    monkeypatch.setattr(gradients, "MOST_ACTIVATIONS", 0)
    caches = getattr(model.config, "use_cache", None)
    _, found = bench.score_with_gradients(given, rows)
    assert getattr(model.config, "use_cache", None) == caches
    assert calls == [0, 1, 1, 0], "forward, then each layer once more, last first"
    assert found["a"] == pytest.approx(expected["a"], rel=1e-9)
    monkeypatch.undo()
    calls.clear()
    bench.score_with_gradients(given, rows)
    assert calls == [0, 1]
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("most_activations", [gradients.MOST_ACTIVATIONS, 0])
def test_tasks_in_one_pass_have_their_own_gradients_and_nothing_stays_behind(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_activations: int
) -> None:
    spec = shared_spec(pico)
    bench = open_bench(spec, tmp_path)
    experts = tuple(spec.experts)
    bench.materialize(
        make_recipe(make_method("cabs", experts, nm=(2, 8)), dict.fromkeys(experts, 1.0))
    )
    items = {task: load_items(spec, task)["search"] for task in spec.tasks}
    rows = dict.fromkeys(spec.tasks, np.arange(8))
    parameters = [p for model in bench.models.values() for p in model.parameters()]
    parameters[3].requires_grad_(False)
    flags = [p.requires_grad for p in parameters]
    before = bench.score(items, rows)
    _, plain = bench.score_with_gradients(items, rows)
    monkeypatch.setattr(gradients, "MOST_ACTIVATIONS", most_activations)
    trunk = bench.models["mood"].base_model
    passes = []
    hook = trunk.register_forward_hook(lambda *_: passes.append(1))
    _, together = bench.score_with_gradients(items, rows)
    hook.remove()
    assert len(passes) == 1, "mood and animal share a pass"
    for task in spec.tasks:
        _, alone = bench.score_with_gradients({task: items[task]}, {task: rows[task]})
        assert together[task] == pytest.approx(alone[task], rel=1e-4, abs=1e-6)
        assert together[task] == pytest.approx(plain[task], rel=1e-4, abs=1e-6)
        assert np.abs(together[task]).max() > 1e-3
    frozen = bench.family.alignment.shared.index("embeddings.word_embeddings.weight")
    assert not together["mood"][:, frozen].any(), "no vector keeps any of it"
    assert [p.requires_grad for p in parameters] == flags
    assert all(p.grad is None for p in parameters)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trunk.modules())
    again = bench.score(items, rows)
    for task in spec.tasks:
        assert np.array_equal(before[task].losses, again[task].losses)
