"""Texts that language models write: the same as token by token, whatever their batch is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import TypeAdapter

from cabs_search.kinds.generation import Sampling
from cabs_search.scoring import batches as batching
from cabs_search.scoring.forward import evaluate, evaluate_together
from cabs_search.scoring.generate import cut, generate
from cabs_search.spec.task import Task
from cabs_search.tasks.items import Items
from tests.scoring.test_language_models import SIZE
from tests.support.standins import as_items, fields_of, make_tokenizer, rows_of, task_of

CPU = torch.device("cpu")
MODELS = {
    "Llama": SIZE,
    "Mistral": SIZE | {"sliding_window": 8},
    "Gemma3Text": SIZE | {"head_dim": 8, "sliding_window": 8},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
COUNT = 8


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    """Return a random model whose texts are not all of one token."""
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": len(make_tokenizer("gpt2"))}
    config = getattr(transformers, f"{request.param}Config")(**MODELS[request.param], **tokens)
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


def items_of(model: Any, **changes: Any) -> Items:
    rows = rows_of("generation", 1, COUNT)
    rows[0]["start"] *= 4  # it loses its beginning
    task = task_of("generation", **changes)
    return as_items(rows, task, model.config, make_tokenizer("gpt2"))


def naive(model: Any, items: Items, row: int, stop: tuple[str, ...]) -> str:
    """Write by one pass over all tokens for each new one."""
    decode, found = items.tokenizer.decode, list[int]()
    tokens = list(items.rows[row].sequences[0]["input_ids"])
    while len(found) < items.task.max_new_tokens and not any(s in decode(found) for s in stop):  # type: ignore[operator]
        with torch.inference_mode():
            found.append(int(model(torch.tensor([tokens + found])).logits[0, -1].argmax()))
    text = str(decode(found, skip_special_tokens=True))
    places = [text.find(s) for s in stop if s in text]
    return text[: min(places, default=len(text))]


def test_texts_are_those_of_single_prompts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    every = np.arange(COUNT)
    free = items_of(model)
    assert len({row.longest for row in free.rows}) > 2, "some are padded"
    assert free.rows[0].longest == 48 - 9, "no room is left for a longer prompt"
    end = "<|endoftext|>"
    texts = generate(model, free, every, CPU)
    assert texts == [naive(model, free, row, (end,)) for row in every]
    assert len(set(texts)) > COUNT // 2, "they differ"
    # A text that ends in the middle of a token, and one over two tokens.
    stop = (texts[1][2:4], texts[2][3:7])
    items = items_of(model, stop=list(stop))
    together = generate(model, items, every, CPU)
    assert together == [naive(model, items, row, (*stop, end)) for row in every]
    assert sum(map(len, together)) < sum(map(len, texts))
    monkeypatch.setattr(batching, "CACHED_TOKENS", 100)
    assert generate(model, items, every, CPU) == together, "in batches of two"
    assert generate(model, items, every[::-1], CPU) == together[::-1]


@pytest.mark.parametrize("model", ["Llama"], indirect=True)
def test_each_text_ends_by_itself(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that ended is not read on, also if a special token ended it."""
    items, every = items_of(model), np.arange(COUNT)
    first = generate(model, items, every, CPU)
    tokens = items.tokenizer(first[0], add_special_tokens=False)["input_ids"]
    passes = list[int]()
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(model.generation_config, "eos_token_id", [0, tokens[1]])
    ended = generate(model, items, every, CPU)
    hook.remove()
    assert ended[0] == items.tokenizer.decode(tokens[:2])
    assert len(passes) == items.task.max_new_tokens
    assert all(long.startswith(short) for long, short in zip(first, ended, strict=True))


@pytest.mark.parametrize("model", ["Llama"], indirect=True)
def test_scores_are_the_metrics(model: Any) -> None:
    plain, every = items_of(model), np.arange(COUNT)
    texts = generate(model, plain, every, CPU)
    rows = rows_of("generation", 1, COUNT)
    rows[0]["start"] *= 4
    for row, text in zip(rows[:4], texts, strict=False):
        row["answer"] = ["the other", f"The {text}!"]
    rows[4]["answer"] = 7
    task = task_of("generation")
    items = as_items(rows, task, model.config, plain.tokenizer)
    outcome = evaluate(model, items, every, CPU)
    assert outcome.predictions.tolist() == texts
    assert outcome.scores.tolist() == [1.0] * 4 + [0.0] * 4
    assert outcome.losses.tolist() == [0.0] * 4 + [1.0] * 4
    assert task.metric == "exact_match"
    assert task.measure.compute(outcome.predictions, items.labels) == 0.5
    by_words = as_items(rows, task_of("generation", metric="f1"), model.config, plain.tokenizer)
    both = evaluate_together([(model, items, every), (model, by_words, every)], CPU)
    assert both[0].predictions.tolist() == both[1].predictions.tolist() == texts
    assert both[1].scores[:4].tolist() == [1.0] * 4


def test_a_text_is_cut_at_the_first_stop() -> None:
    assert cut("one two three", ["three", "two"]) == "one "
    assert cut("one\n\ntwo", ["\n\n", "x"]) == "one"
    assert cut("one", []) == "one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ["a", "b"]}, "must have one column of prompts, but got a, b"),
        ({"max_new_tokens": 48}, "max_new_tokens < max_length must hold"),
        ({"stop": [""]}, "at least 1 character"),
        ({"metric": "bleu"}, "generation must have exact_match or f1, but got bleu"),
        ({"kind": "language-modeling"}, "goes with generation, but got 9 with language-modeling"),
        ({"dataset": {"csv": "x", "filter": "strict"}}, "filter goes with harness"),
    ],
)
def test_wrong_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = {"dataset": {"csv": "rows.csv"}, **fields_of("generation")}
    with pytest.raises(ValueError, match=message):
        TypeAdapter(Task).validate_python(fields | changes)
    assert task_of("generation", stop="\n\n").stop == ("\n\n",), "blanks count"


@pytest.mark.parametrize("model", ["Llama"], indirect=True)
def test_sampled_tokens_are_as_frequent_as_their_probabilities(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, temperature, count = items_of(model, max_new_tokens=2), 0.7, 400
    names = tuple(map(str, range(count)))
    items = replace(one, rows=one.rows[3:4] * count, keys=names, groups=())
    with torch.inference_mode():
        tokens = torch.tensor([one.rows[3].sequences[0]["input_ids"]])
        expected = (model(tokens).logits[0, -1] / temperature).softmax(-1)
    likeliest = one.tokenizer.decode([int(expected.argmax())])
    every, drawn = np.arange(count), Sampling(temperature=temperature, seed=1)
    found = generate(model, items, every, CPU, drawn)
    share = np.mean([text.startswith(likeliest) for text in found])
    assert 0.1 < float(expected.max()) < 0.9
    assert share == pytest.approx(float(expected.max()), abs=0.08)
    monkeypatch.setattr(batching, "CACHED_TOKENS", 1000)
    assert generate(model, items, every[9:29], CPU, drawn) == found[9:29], "of an item's own"
    assert generate(model, items, every[:20], CPU, replace(drawn, seed=2)) != found[:20]
    cold = Sampling(temperature=1e-6, seed=1)
    assert generate(model, items, every[:1], CPU, cold) == generate(model, items, every[:1], CPU)
