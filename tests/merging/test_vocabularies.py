"""Experts with other vocabularies than the base: refused, or merged by their common rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from cabs_search.checkpoints.vocabulary import COMMON_ROWS, tokens_of
from cabs_search.cli.main import main
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.merge import merged_tensors
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import BASE, make_recipe
from cabs_search.scoring.calibrate import fisher, statistics
from cabs_search.scoring.workbench import Workbench
from tests.scoring.test_language_models import SIZE, every_tensor, items_of, tasks
from tests.support.standins import as_items, make_tokenizer, task_of

LAMBDAS = {"more": 1.5, "fewer": 0.7}


def make_models(folder: Path, *, tied: bool) -> None:
    """Save a base with two rows of padding, an expert with tokens there and one more, and an expert
    with two rows less than there are tokens.
    """
    tokenizer = make_tokenizer("gpt2")
    count = len(tokenizer)
    torch.manual_seed(0)
    for name, rows in ((BASE, count + 2), ("more", count + 3), ("fewer", count - 2)):
        config = transformers.LlamaConfig(**SIZE, vocab_size=rows, tie_word_embeddings=tied)
        model: Any = transformers.LlamaForCausalLM(config)
        model.to(torch.bfloat16).save_pretrained(folder / name)
        if name == "more":
            tokenizer.add_tokens(["<|one|>", "<|two|>", "<|three|>"])
        tokenizer.save_pretrained(folder / name)
        tokenizer = make_tokenizer("gpt2")


def naive(start: torch.Tensor, experts: list[torch.Tensor], tokens: int) -> npt.NDArray[np.float32]:
    """Return base + Σ λτ, of rows of tokens τ of those that both have."""
    base: npt.NDArray[np.float32] = start.float().numpy()
    total = base.copy()
    for weight, expert in zip(LAMBDAS.values(), experts, strict=True):
        rows = len(base) if len(base) < tokens else min(tokens, len(expert))
        total[:rows] += np.float32(weight) * (expert.float().numpy()[:rows] - base[:rows])
    return total


@pytest.mark.parametrize("tied", [True, False])
def test_common_rows_are_merged_and_the_bases_others_kept(tmp_path: Path, tied: bool) -> None:
    make_models(tmp_path, tied=tied)
    folders = {name: tmp_path / name for name in LAMBDAS}
    options = ["merge", "--base", str(tmp_path / BASE), "--method", "task-arithmetic"]
    for name, weight in LAMBDAS.items():
        options += ["--expert", f"{name}={folders[name]}", "--lambda", f"{name}={weight}"]
    options += ["--dtype", "float32", "--to", str(tmp_path / "out")]
    assert main(options) == 2
    assert main([*options, "--vocabulary", COMMON_ROWS]) == 0
    base, more, fewer, merged = (every_tensor(tmp_path / n) for n in (BASE, *LAMBDAS, "out"))
    assert ("lm_head.weight" in merged) != tied
    count = len(tokens_of(tmp_path / BASE))
    for name, start in base.items():
        expected = naive(start, [more[name], fewer[name]], count)
        assert merged[name].numpy() == pytest.approx(expected, abs=1e-6), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"expert more has {count + 3} rows of tokens: the first {count}, " in card
    assert "--vocabulary common-rows" in card
    # a resident model that becomes it by way of the cache has the same bits
    family = Family.open(tmp_path / BASE, folders, COMMON_ROWS)
    recipe = make_recipe(make_method("cabs", tuple(LAMBDAS), nm=(2, 8)), LAMBDAS)
    tasks = {"texts": task_of("language-modeling", max_length=7)}
    bench = Workbench(family, tasks, VectorCache(tmp_path / "cache"), device="cpu")
    bench.materialize(recipe)
    state = bench.models[BASE].state_dict()
    for name, tensor in merged_tensors(family, recipe, torch.float32):
        assert torch.equal(state[name], tensor), name
    # with fewer common tokens it is another vector
    forget(tmp_path / "more", count - 1)
    less = Family.open(tmp_path / BASE, folders, COMMON_ROWS)
    cache, method = VectorCache(tmp_path / "cache"), recipe.method
    before, after = cache.paths(family, method), cache.paths(less, method)
    assert all(before[name] != after[name] for name in LAMBDAS), "the second is pruned after it"
    tau = less.delta("model.embed_tokens.weight", "more")
    assert tau[count - 2].any()
    assert not tau[count - 1 :].any()


def forget(folder: Path, token: int) -> None:
    """Take a token out of a tokenizer."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    values["model"]["vocab"] = {name: at for name, at in vocabulary.items() if at != token}
    path.write_text(json.dumps(values))


def test_other_vocabularies_are_refused_in_a_line_that_says_what_to_set(tmp_path: Path) -> None:
    make_models(tmp_path, tied=True)
    experts = {"more": tmp_path / "more"}
    with pytest.raises(ValueError, match="vocab_size is .*; `vocabulary: common-rows` merges"):
        Family.open(tmp_path / BASE, experts)
    path = tmp_path / "more" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = (tokens_of(tmp_path / BASE)[row] for row in (40, 41))
    vocabulary[first], vocabulary[second] = 41, 40
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="experts.more: common rows .* row 40 is '.*' against"):
        Family.open(tmp_path / BASE, experts, COMMON_ROWS)
    path.unlink()
    with pytest.raises(ValueError, match="experts.more: .* has neither tokenizer.json nor"):
        Family.open(tmp_path / BASE, experts, COMMON_ROWS)


def test_fisher_information_of_tokens_is_that_of_common_rows(tmp_path: Path) -> None:
    make_models(tmp_path, tied=False)
    family = Family.open(tmp_path / BASE, {n: tmp_path / n for n in LAMBDAS}, COMMON_ROWS)
    config = transformers.AutoConfig.from_pretrained(tmp_path / BASE)
    rows = [{"start": "a", "ends": ["b", "c"], "right": 0}]
    items = items_of(tasks()["choices"], config, rows)
    for expert in LAMBDAS:
        found = fisher(family, expert, items, "cpu")
        assert {name: tuple(f.shape) for name, f in found.items()} == {
            name: tuple(shape) for name, shape in family.alignment.shapes.items()
        }
        tokens, (_, common) = found["lm_head.weight"], family.alignment.common_rows[expert]
        assert tokens[:common].any(dim=1).all(), "each has a probability"
        assert not tokens[common:].any()


def test_an_expert_without_a_token_of_the_items_cannot_be_calibrated(tmp_path: Path) -> None:
    make_models(tmp_path, tied=True)
    family = Family.open(tmp_path / BASE, {"fewer": tmp_path / "fewer"}, COMMON_ROWS)
    tokenizer = make_tokenizer("gpt2")
    config = transformers.AutoConfig.from_pretrained(tmp_path / BASE)
    rows = [{"text": 2 * tokenizer.decode([len(tokenizer) - 1])}]
    items = as_items(rows, task_of("language-modeling"), config, tokenizer)
    with pytest.raises(ValueError, match="experts.fewer: calibration runs the expert itself"):
        statistics(family, "fewer", items, "cpu")
