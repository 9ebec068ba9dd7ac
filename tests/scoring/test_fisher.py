"""The diagonal of the Fisher information against plain autograd, one item and answer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import BASE
from cabs_search.scoring import calibrate
from cabs_search.scoring.calibrate import calibrated, fisher
from cabs_search.spec.load import parse
from cabs_search.tasks.load import load_study_items
from tests.conftest import EXPERTS, pico_values
from tests.scoring.test_language_models import ROWS, SIZE, items_of, make_family, tasks
from tests.support.standins import make_tokenizer


def assert_is_diagonal(found: dict[str, torch.Tensor], naive: dict[str, torch.Tensor]) -> None:
    """Compare all tensors together, as only their ratios count; names may have a prefix."""
    full = [next(other for other in naive if other.endswith(name)) for name in found]
    mine = torch.cat([tensor.reshape(-1).double() for tensor in found.values()])
    theirs = torch.cat([naive[name].reshape(-1).double() for name in full])
    assert float(mine.square().mean()) == pytest.approx(1, rel=1e-4)
    expected = theirs / theirs.square().mean().sqrt()
    assert torch.allclose(mine, expected, rtol=1e-3, atol=1e-6)


def add_squares(model: Any, naive: dict[str, torch.Tensor], log_p: torch.Tensor) -> None:
    """Add p·(∂ log p/∂θ)² of one answer."""
    model.zero_grad()
    log_p.backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            square = float(log_p.detach().exp()) * parameter.grad**2
            naive[name] = naive.get(name, torch.zeros(())) + square


def test_fisher_of_a_classifier_takes_every_class_by_its_probability(pico: Path) -> None:
    spec = parse(pico_values(pico))
    items = load_study_items(spec)["search"]["animal"]
    family = Family.open(spec.base, spec.experts)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        pico / "animal", dtype=torch.float32
    ).eval()
    naive: dict[str, torch.Tensor] = {}
    for row in items.rows:
        one = {k: torch.tensor([v]) for k, v in row.sequences[0].items()}
        for log_p in model(**one).logits[0].log_softmax(0):
            add_squares(model, naive, log_p)
    found = fisher(family, "animal", items, "cpu")
    assert found.keys() == set(family.alignment.shared)
    assert_is_diagonal(found, naive)


@pytest.mark.parametrize("tied", [False, True])
def test_fisher_of_a_language_model_takes_every_choice_by_its_share(
    tmp_path: Path, tied: bool
) -> None:
    opened = make_family(tmp_path, "Llama", SIZE, tied=tied, dtype="float32")
    config = transformers.AutoConfig.from_pretrained(tmp_path / BASE)
    items = items_of(tasks()["choices"], config, ROWS[:2])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    naive: dict[str, torch.Tensor] = {}
    tokenizer = make_tokenizer("gpt2")
    for row in ROWS[:2]:
        sums = []
        context = str(row["start"]).rstrip()
        for end in row["ends"]:
            texts = (context, f"{context} {end.strip()}")
            before, both = (tokenizer(text)["input_ids"] for text in texts)
            logs = model(input_ids=torch.tensor([both])).logits[0].log_softmax(-1)
            sums += [sum(logs[at - 1, both[at]] for at in range(len(before), len(both)))]
        for log_p in torch.stack(sums).log_softmax(0):
            add_squares(model, naive, log_p)
    found = fisher(opened, "a", items, "cpu")
    assert found.keys() == set(opened.alignment.shared)
    assert_is_diagonal(found, naive)


def test_fisher_of_a_model_that_is_sure_of_everything_is_zero(
    pico: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse(pico_values(pico))
    items = load_study_items(spec)["search"]["animal"]
    monkeypatch.setattr(torch.autograd, "grad", lambda _, inputs, **__: [None] * len(inputs))
    found = fisher(Family.open(spec.base, spec.experts), "animal", items, "cpu")
    assert not any(tensor.any() for tensor in found.values())


def test_statistics_are_computed_once_whatever_else_a_study_needs(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse(pico_values(pico))
    items, family = load_study_items(spec)["search"], Family.open(spec.base, spec.experts)
    masks = [make_method(name, EXPERTS).mask for name in ("fisher", "wanda")]
    alone = calibrated(family, items, masks[:1], tmp_path)
    assert not alone.calibrations_for(masks[1])
    monkeypatch.setattr(calibrate, "fisher", None)  # the next call would fail
    both = calibrated(family, items, masks, tmp_path)
    monkeypatch.setattr(calibrate, "statistics", None)
    again = calibrated(family, items, masks, tmp_path)
    for expert in EXPERTS:
        paths = {one.calibrations_for(masks[0])[expert].path for one in (alone, both, again)}
        assert len(paths) == 1
        assert both.calibrations_for(masks[1])[expert].path not in paths


def test_statistics_that_are_not_finite_are_refused() -> None:
    found = {"a.weight": torch.ones(2), "b.weight": torch.tensor([1.0, float("nan")])}
    with pytest.raises(ValueError, match="experts.mood: b.weight: .* is not finite"):
        calibrate._check_finite("mood", found)
